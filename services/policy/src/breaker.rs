//! The circuit breaker of one policy: after repeated failures it is not run for a while, and its failure rule answers at once.
//!
//! States: closed -> open (after [`FAILURES_MAX`] failures in a row, or [`FAILURES_OF_LAST_MAX`] among the last [`LAST`] calls) ->
//! one trial when the pause is over -> closed, or open for twice as long; and for twice as long, too, when it opens again soon after
//! a trial closed it. Pure: the time is given.
//!
//! A policy that fails for some images only goes on: its failure rule answers for these, and it for all others.

use std::time::{Duration, Instant};

/// Failures in a row until a policy is not run any more.
const FAILURES_MAX: u32 = 3;
/// The same for one that now and then succeeds.
const FAILURES_OF_LAST_MAX: u32 = 10;
/// How many calls are remembered for that.
const LAST: u32 = 20;
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct Breaker {
    /// How the last [`LAST`] calls ended, the newest in the lowest bit: 1 is a failure.
    last: u32,
    open: Option<Open>,
    /// When a trial closed it, after which pause.
    closed: Option<(Instant, Duration)>,
    tireless: bool,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    until: Instant,
    pause: Duration,
    /// One tries whether it works again.
    trying: bool,
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
                (open.until, open.trying) = (now + open.pause, true);
                true
            }
        }
    }

    pub(crate) fn succeeded(&mut self, now: Instant) {
        match self.open {
            None => self.last = shifted(self.last),
            // What failed before the pause is forgiven, but not forgotten.
            Some(open) if open.trying => {
                let closed = Some((now, open.pause));
                *self = Breaker { closed, tireless: self.tireless, ..Breaker::default() };
            }
            // It began before the circuit opened.
            Some(_) => {}
        }
    }

    /// Notes a failure; true when the circuit was closed and opens now.
    pub(crate) fn failed(&mut self, now: Instant) -> bool {
        if let Some(open) = &mut self.open {
            if open.trying {
                let pause = PAUSE_MAX.min(open.pause * 2);
                *open = Open { until: now + pause, pause, trying: false };
            }
            return false;
        }
        self.last = shifted(self.last) | 1;
        let opens = !self.tireless
            && (self.last.trailing_ones() >= FAILURES_MAX || self.last.count_ones() >= FAILURES_OF_LAST_MAX);
        if opens {
            let pause = self.pause(now);
            self.open = Some(Open { until: now + pause, pause, trying: false });
        }
        opens
    }

    /// Of a circuit that opens. One that answers some questions and fails in all others would else fail all the time.
    fn pause(&self, now: Instant) -> Duration {
        match self.closed {
            Some((closed, pause)) if now.saturating_duration_since(closed) < PAUSE_MAX => {
                PAUSE_MAX.min(pause * 2)
            }
            _ => PAUSE_MIN,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }
}

/// With room for one more.
fn shifted(last: u32) -> u32 {
    (last << 1) & ((1 << LAST) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_after_failures_in_a_row() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        assert!(!breaker.failed(now) && !breaker.failed(now));
        breaker.succeeded(now);
        assert!(!breaker.failed(now) && !breaker.failed(now) && breaker.failed(now));
        assert!(breaker.is_open() && !breaker.admits(now));
    }

    #[test]
    fn opens_when_half_of_the_last_calls_failed_and_not_before() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for call in 0..1000 {
            // Two of five.
            if matches!(call % 5, 0 | 2) { assert!(!breaker.failed(now)) } else { breaker.succeeded(now) }
        }
        let mut calls = 0;
        while !breaker.is_open() {
            breaker.succeeded(now);
            breaker.failed(now);
            calls += 2;
            assert!(calls <= LAST);
        }
        assert!(breaker.admits(now + PAUSE_MIN));
        breaker.succeeded(now);
        assert!(!breaker.is_open() && !breaker.failed(now), "what was before the pause is forgiven");
    }

    #[test]
    fn one_that_opens_again_soon_after_a_trial_rests_for_longer_each_time() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        let mut pauses = Vec::new();
        for closed_for in [0, 1, 1, 59, 61, 0] {
            now += Duration::from_secs(closed_for);
            while !breaker.failed(now) {}
            let open = breaker.open.unwrap();
            pauses.push(open.pause.as_secs());
            now = open.until;
            assert!(breaker.admits(now));
            breaker.succeeded(now);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 1, 2]);
    }

    #[test]
    fn how_calls_end_that_began_before_it_opened_changes_nothing() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        while !breaker.failed(now) {}
        assert!(!breaker.failed(now) && !breaker.failed(now));
        breaker.succeeded(now);
        assert!(breaker.is_open() && !breaker.admits(now) && breaker.admits(now + PAUSE_MIN));
    }

    #[test]
    fn one_that_is_tireless_never_opens() {
        let (mut breaker, now) = (Breaker::tireless(), Instant::now());
        breaker.succeeded(now);
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
        assert!(breaker.admits(now + PAUSE_MAX));
        breaker.succeeded(now);
        assert!(breaker.admits(now) && !breaker.is_open());
    }
}
