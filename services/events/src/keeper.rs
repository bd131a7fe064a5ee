//! Makes the stream that keeps the mesh's events, and makes it again should it be gone.
//!
//! Those who tell events need no right to make streams: this service has it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bus::{Bus, StreamConfig};
use tokio_util::sync::CancellationToken;

/// Between two looks, as long as the stream is there and while it is not.
const EVERY: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub(crate) struct Keeper {
    bus: Bus,
    config: StreamConfig,
    state: Arc<Mutex<Result<(), String>>>,
}

impl Keeper {
    pub(crate) fn new(bus: Bus, config: StreamConfig) -> Keeper {
        Keeper { bus, config, state: Arc::new(Mutex::new(Err("not opened yet".to_owned()))) }
    }

    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let forever = async {
            loop {
                let opened = self.bus.open_stream(self.config.clone()).await;
                let opened = opened.map(drop).map_err(|status| status.message().to_owned());
                let pause = if opened.is_ok() { EVERY } else { RETRY };
                self.note(opened);
                // In one process nobody else looks for repeats whose time is over.
                self.bus.events().flush();
                tokio::time::sleep(pause).await;
            }
        };
        shutdown.run_until_cancelled(forever).await;
    }

    pub(crate) fn state(&self) -> Result<(), String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, now: Result<(), String>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*state, &now) {
            (Err(_), Ok(())) => tracing::info!(stream = self.config.name, "events are kept"),
            (Ok(()), Err(error)) => tracing::warn!(stream = self.config.name, error, "events are not kept"),
            _ => {}
        }
        *state = now;
    }
}
