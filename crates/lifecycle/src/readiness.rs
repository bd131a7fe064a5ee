//! Whether a service can take work: once nothing is waited for and all that it depends on works, until it is closed.
//!
//! What a service depends on comes and goes. A loss that is over soon changes nothing, or each restart of a server would
//! take all services out of their load balancers at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long a part that worked may fail before the service is not ready.
pub const UNREADY_AFTER: Duration = Duration::from_secs(30);
/// Of a reason, in characters: what a server answers may be a page.
const REASON_MAX: usize = 300;

/// What is waited for, and what is depended on. Shared by all clones.
#[derive(Clone, Debug)]
pub struct Readiness {
    state: Arc<Mutex<State>>,
    unready_after: Duration,
}

#[derive(Debug, Default)]
struct State {
    waiting: BTreeMap<u64, String>,
    parts: BTreeMap<u64, (String, Condition)>,
    notes: BTreeMap<&'static str, Vec<String>>,
    next: u64,
    closed: bool,
}

#[derive(Debug)]
enum Condition {
    /// It has not worked so far, and why not.
    NotYet(String),
    Works,
    Fails {
        since: Instant,
        reason: String,
    },
}

/// One thing that is waited for. Dropped without [`Waiting::ready`] it is waited for for ever: what
/// failed to start is not ready.
#[derive(Debug)]
#[must_use = "the service is ready only after `ready` was called"]
pub struct Waiting {
    number: u64,
    state: Arc<Mutex<State>>,
}

/// One thing that the service depends on. Dropped, it stays as it was.
#[derive(Debug)]
#[must_use = "the service is ready only after `works` was called"]
pub struct Part {
    number: u64,
    state: Arc<Mutex<State>>,
}

impl Default for Readiness {
    fn default() -> Readiness {
        Readiness::new(UNREADY_AFTER)
    }
}

impl Readiness {
    /// `unready_after`: how long a part that worked may fail.
    pub fn new(unready_after: Duration) -> Readiness {
        Readiness { state: Arc::default(), unready_after }
    }

    /// The service is not ready until `ready` is called on what this returns.
    pub fn wait_for(&self, what: &str) -> Waiting {
        let mut state = lock(&self.state);
        let number = state.number();
        state.waiting.insert(number, what.to_owned());
        Waiting { number, state: self.state.clone() }
    }

    /// The service is ready while this works; until it is known whether it does, it is not.
    pub fn depend_on(&self, what: &str) -> Part {
        let mut state = lock(&self.state);
        let number = state.number();
        state.parts.insert(number, (what.to_owned(), Condition::NotYet("not known yet".to_owned())));
        Part { number, state: self.state.clone() }
    }

    /// Never ready again: the service is ending.
    pub fn close(&self) {
        lock(&self.state).closed = true;
    }

    /// Ready, or what is waited for and which parts fail, in one line.
    pub fn check(&self) -> Result<(), String> {
        let failed = self.failed();
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    }

    /// What somebody should look at though the service works; in place of what was noted of it before.
    pub fn note(&self, what: &'static str, lines: Vec<String>) {
        lock(&self.state).notes.insert(what, lines);
    }

    /// Each note in a line of its own.
    pub fn notes(&self) -> Vec<String> {
        let state = lock(&self.state);
        let notes = state.notes.iter();
        let lines = notes.flat_map(|(what, lines)| lines.iter().map(move |line| format!("{what}: {line}")));
        lines.map(|line| line.replace(['\n', '\r'], " ")).collect()
    }

    /// What is waited for, and each part that fails, in a line of its own; nothing: ready.
    pub fn failed(&self) -> Vec<String> {
        let state = lock(&self.state);
        if state.closed {
            return vec!["shutting down".to_owned()];
        }
        let mut missing = Vec::new();
        if !state.waiting.is_empty() {
            let waiting: Vec<&str> = state.waiting.values().map(String::as_str).collect();
            missing.push(format!("waiting for {}", waiting.join(", ")));
        }
        for (what, condition) in state.parts.values() {
            match condition {
                Condition::Works => {}
                Condition::NotYet(reason) => missing.push(format!("{what}: {reason}")),
                Condition::Fails { since, reason } => {
                    let failing = since.elapsed();
                    if failing >= self.unready_after {
                        missing.push(format!("{what}: {reason}, for {} s", failing.as_secs()));
                    }
                }
            }
        }
        missing.into_iter().map(|line| line.replace(['\n', '\r'], " ")).collect()
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Waiting {
    pub fn ready(self) {
        lock(&self.state).waiting.remove(&self.number);
    }
}

impl Part {
    pub fn works(&self) {
        self.set(|_| Condition::Works);
    }

    pub fn fails(&self, reason: impl Into<String>) {
        let reason: String = reason.into().chars().take(REASON_MAX).collect();
        self.set(|before| match before {
            Condition::NotYet(_) => Condition::NotYet(reason),
            Condition::Works => Condition::Fails { since: Instant::now(), reason },
            Condition::Fails { since, .. } => Condition::Fails { since: *since, reason },
        });
    }

    fn set(&self, condition: impl FnOnce(&Condition) -> Condition) {
        if let Some((_, now)) = lock(&self.state).parts.get_mut(&self.number) {
            *now = condition(now);
        }
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
        readiness.note("keys", vec!["a file may be\nread by others".to_owned()]);
        assert_eq!(readiness.check(), Ok(()), "a note is no failure");
        assert_eq!(readiness.notes(), ["keys: a file may be read by others"]);
        readiness.close();
        assert_eq!(readiness.check(), Err("shutting down".to_owned()));
    }

    #[test]
    fn what_was_given_up_is_not_ready() {
        let readiness = Readiness::default();
        drop(readiness.wait_for("store"));
        assert!(readiness.check().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_loss_is_borne_and_a_long_one_is_told_until_it_is_over() {
        let readiness = Readiness::default();
        let (bus, store) = (readiness.depend_on("bus"), readiness.depend_on("store"));
        assert_eq!(readiness.failed(), ["bus: not known yet", "store: not known yet"]);
        store.works();
        assert_eq!(readiness.check(), Err("bus: not known yet".to_owned()));
        bus.fails("no connection");
        assert_eq!(readiness.check(), Err("bus: no connection".to_owned()), "it has never worked");
        bus.works();
        assert_eq!(readiness.check(), Ok(()));
        bus.fails("no connection");
        tokio::time::advance(UNREADY_AFTER / 2).await;
        bus.fails("no\nconnection");
        assert_eq!(readiness.check(), Ok(()));
        tokio::time::advance(UNREADY_AFTER / 2).await;
        assert_eq!(readiness.check(), Err("bus: no connection, for 30 s".to_owned()), "since the first loss");
        bus.works();
        assert_eq!(readiness.check(), Ok(()));
        bus.fails("again");
        assert_eq!(readiness.check(), Ok(()), "and the next loss begins anew");
    }
}
