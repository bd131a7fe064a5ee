//! What happens to a connection: its last error, and for how long it was lost.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Event;

/// What happened to the connection.
#[derive(Default)]
pub(super) struct Disturbances {
    /// The last error.
    last: Mutex<Option<String>>,
    /// Since when there is none, after there was one.
    lost: Mutex<Option<Instant>>,
    /// Hears for how long it was lost, once it is back.
    pub(super) when_back: OnceLock<WhenBack>,
}

pub(crate) type WhenBack = Box<dyn Fn(Duration) + Send + Sync>;

impl Disturbances {
    pub(super) fn note(&self, event: &Event) {
        match event {
            Event::ServerError(_) | Event::ClientError(_) => {
                *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(event.to_string());
            }
            Event::Disconnected => {
                self.lost().get_or_insert_with(Instant::now);
            }
            Event::Connected => {
                let lost = self.lost().take();
                if let (Some(lost), Some(when_back)) = (lost, self.when_back.get()) {
                    when_back(lost.elapsed());
                }
            }
            _ => {}
        }
    }

    /// The last error, for people.
    pub(super) fn last(&self) -> Option<String> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lost(&self) -> MutexGuard<'_, Option<Instant>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
