//! Whether a service can take work: once nothing is waited for, until it is closed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is waited for. Shared by all clones.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    waiting: BTreeMap<u64, String>,
    next: u64,
    closed: bool,
}

/// One thing that is waited for. Dropped without [`Waiting::ready`] it is waited for for ever: what
/// failed to start is not ready.
#[derive(Debug)]
#[must_use = "the service is ready only after `ready` was called"]
pub struct Waiting {
    number: u64,
    state: Arc<Mutex<State>>,
}

impl Readiness {
    /// The service is not ready until `ready` is called on what this returns.
    pub fn wait_for(&self, what: &str) -> Waiting {
        let mut state = lock(&self.state);
        let number = state.next;
        state.next += 1;
        state.waiting.insert(number, what.to_owned());
        Waiting { number, state: self.state.clone() }
    }

    /// Never ready again: the service is ending.
    pub fn close(&self) {
        lock(&self.state).closed = true;
    }

    /// Ready, or what is waited for.
    pub fn check(&self) -> Result<(), String> {
        let state = lock(&self.state);
        if state.closed {
            return Err("shutting down".to_owned());
        }
        if state.waiting.is_empty() {
            return Ok(());
        }
        let waiting: Vec<&str> = state.waiting.values().map(String::as_str).collect();
        Err(format!("waiting for {}", waiting.join(", ")))
    }
}

impl Waiting {
    pub fn ready(self) {
        lock(&self.state).waiting.remove(&self.number);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_once_nothing_is_waited_for_and_until_closed() {
        let readiness = Readiness::default();
        let (store, bus) = (readiness.wait_for("store"), readiness.wait_for("bus"));
        assert_eq!(readiness.check(), Err("waiting for store, bus".to_owned()));
        store.ready();
        assert_eq!(readiness.check(), Err("waiting for bus".to_owned()));
        bus.ready();
        assert_eq!(readiness.check(), Ok(()));
        readiness.close();
        assert_eq!(readiness.check(), Err("shutting down".to_owned()));
    }

    #[test]
    fn what_was_given_up_is_not_ready() {
        let readiness = Readiness::default();
        drop(readiness.wait_for("store"));
        assert!(readiness.check().is_err());
    }
}
