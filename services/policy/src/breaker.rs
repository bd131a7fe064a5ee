//! The circuit breaker of one policy: after repeated failures it is not run for a while, and its failure rule answers at once.
//!
//! States: closed -> open (after [`FAILURES_MAX`] failures in a row) -> one trial when the pause is over -> closed, or
//! open for twice as long. Pure: the time is given.

use std::time::{Duration, Instant};

/// Failures in a row until a policy is not run any more.
const FAILURES_MAX: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct Breaker {
    failures: u32,
    open: Option<Open>,
    tireless: bool,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    until: Instant,
    pause: Duration,
}

impl Breaker {
    /// Never opens: where each answer counts by itself.
    pub(crate) fn tireless() -> Breaker {
        Breaker { tireless: true, ..Breaker::default() }
    }

    /// Whether the policy may run now. After a pause only one may try, until it is known how that went.
    pub(crate) fn admits(&mut self, now: Instant) -> bool {
        match &mut self.open {
            None => true,
            Some(open) if now < open.until => false,
            Some(open) => {
                open.until = now + open.pause;
                true
            }
        }
    }

    pub(crate) fn succeeded(&mut self) {
        (self.failures, self.open) = (0, None);
    }

    /// Notes a failure; true when the circuit was closed and opens now.
    pub(crate) fn failed(&mut self, now: Instant) -> bool {
        self.failures = self.failures.saturating_add(1);
        if self.failures < FAILURES_MAX || self.tireless {
            return false;
        }
        let was_closed = self.open.is_none();
        let pause = self.open.map_or(PAUSE_MIN, |open| PAUSE_MAX.min(open.pause * 2));
        self.open = Some(Open { until: now + pause, pause });
        was_closed
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_after_failures_in_a_row_only() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..10 {
            assert!(!breaker.failed(now) && !breaker.failed(now));
            breaker.succeeded();
        }
        assert!(!breaker.failed(now) && !breaker.failed(now) && breaker.failed(now));
        assert!(breaker.is_open() && !breaker.admits(now));
    }

    #[test]
    fn one_that_is_tireless_never_opens() {
        let (mut breaker, now) = (Breaker::tireless(), Instant::now());
        breaker.succeeded();
        for _ in 0..10 {
            assert!(!breaker.failed(now) && breaker.admits(now));
        }
    }

    #[test]
    fn one_tries_after_each_pause_and_the_pauses_grow_to_a_bound() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        for _ in 0..FAILURES_MAX {
            breaker.failed(now);
        }
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let open = breaker.open.unwrap();
            pauses.push(open.pause.as_secs());
            assert!(!breaker.admits(open.until - Duration::from_millis(1)));
            now = open.until;
            assert!(breaker.admits(now), "one may try");
            assert!(!breaker.admits(now), "a second one may not");
            assert!(!breaker.failed(now), "it is no news that the circuit is open");
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        breaker.succeeded();
        assert!(breaker.admits(now) && !breaker.is_open());
    }
}
