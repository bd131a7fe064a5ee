//! Decisions, told over the bus to whoever asks for them: no setting and no restart.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bus::{Bus, Teller};
use proto::subjects::DECISIONS;
use proto::{RecordReply, RecordRequest, RecordedDecision};

use crate::meters;

/// For how long decisions are told after somebody asked. Nobody has to say that he stops, so nothing is told for ever to
/// who went away.
pub const TOLD_FOR_MAX: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Live {
    teller: Teller,
    instance: String,
    /// Of the next decision that is told.
    number: AtomicU64,
    /// Nothing is told after that.
    until: Mutex<Option<Instant>>,
}

impl Live {
    pub(super) fn new(bus: &Bus) -> Live {
        Live {
            teller: bus.teller(DECISIONS),
            instance: format!("{:016x}", rand::random::<u64>()),
            number: AtomicU64::new(0),
            until: Mutex::default(),
        }
    }

    /// Several may ask: who asked for the longest time is told to the end.
    pub(super) fn ask(&self, request: RecordRequest) -> RecordReply {
        let wanted = Duration::from_millis(request.for_ms.into()).min(TOLD_FOR_MAX);
        let mut until = self.until();
        *until = (*until).max(Some(Instant::now() + wanted));
        RecordReply { instance: self.instance.clone() }
    }

    pub(super) fn is_asked(&self) -> bool {
        self.until().is_some_and(|until| Instant::now() < until)
    }

    /// Never waits. What is lost has a number too, by which who listens knows of it.
    pub(super) fn tell(&self, decision: &mut RecordedDecision) {
        if !self.is_asked() {
            return;
        }
        decision.instance.clone_from(&self.instance);
        decision.number = self.number.fetch_add(1, Ordering::Relaxed);
        if !self.teller.tell(decision) {
            meters::unrecorded();
        }
    }

    fn until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
