//! Keeps a line that a fault could repeat without end from filling the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines of one kind.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Seldom {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    said: Option<Instant>,
    unsaid: u64,
}

impl Seldom {
    /// Whether to say it now; if so, how often it was not said since the last time.
    pub(crate) fn due(&self) -> Option<u64> {
        self.due_at(Instant::now())
    }

    fn due_at(&self, now: Instant) -> Option<u64> {
        // Two fields that are each good by itself.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.said.is_some_and(|said| now.saturating_duration_since(said) < EVERY) {
            state.unsaid += 1;
            return None;
        }
        state.said = Some(now);
        Some(std::mem::take(&mut state.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_the_first_and_then_one_in_a_while_with_how_many_it_left_out() {
        let (seldom, began) = (Seldom::default(), Instant::now());
        assert_eq!(seldom.due_at(began), Some(0));
        let soon = began + EVERY / 2;
        assert_eq!((seldom.due_at(soon), seldom.due_at(soon)), (None, None));
        assert_eq!(seldom.due_at(began + EVERY), Some(2));
        assert_eq!(seldom.due_at(began + EVERY * 2), Some(0));
    }
}
