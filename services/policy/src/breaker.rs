//! The circuit breaker of one policy: after repeated failures it is not run for a while, and its failure rule answers at once.
//!
//! States: closed -> open -> one trial when the pause is over -> closed, or open for twice as long; and for twice as long, too, when
//! it opens again soon after a trial closed it. It opens after [`FAILURES_MAX`] failures in a row, or [`FAILURES_OF_LAST_MAX`] among
//! the last [`LAST`] calls; and as their number says little of what failures cost (one that loops takes a thousand times as long as an
//! answer), also when [`COSTLY_MAX`] of [`REMEMBERED`] calls took most of the time of all, or when failures wasted the time of
//! [`WASTE_MAX`] whole calls. Pure: the time is given.
//!
//! A policy that fails for some images only goes on: its failure rule answers for these, and it for all others.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Failures in a row until a policy is not run any more.
const FAILURES_MAX: usize = 3;
/// The same for one that now and then succeeds.
const FAILURES_OF_LAST_MAX: usize = 10;
const LAST: usize = 20;
/// Failures among more calls, all of a short while, when they took more than [`MOST`] of the time of all.
const COSTLY_MAX: usize = 5;
const REMEMBERED: usize = 100;
const SHORT_WHILE: Duration = Duration::from_secs(10);
const MOST: f64 = 0.5;
/// Processor time that failures may waste at once, in calls that each take all they may.
const WASTE_MAX: f64 = 2.5;
/// The same in the long run: how much of it is forgiven each second.
const FORGIVEN: f64 = 0.2;
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct Breaker {
    /// At most [`REMEMBERED`], the newest first.
    last: VecDeque<Call>,
    wasted: Waste,
    open: Option<Open>,
    /// When a trial closed it, after which pause.
    closed: Option<(Instant, Duration)>,
    tireless: bool,
}

/// How a call ended, and which part of the time that a call may take it took.
#[derive(Clone, Copy, Debug)]
struct Call {
    when: Instant,
    failed: bool,
    took: f64,
}

/// Processor time of failures, less what is forgiven, in calls that each take all they may.
#[derive(Clone, Copy, Debug, Default)]
struct Waste {
    calls: f64,
    when: Option<Instant>,
}

impl Waste {
    /// With one more; what it comes to.
    fn add(&mut self, now: Instant, calls: f64) -> f64 {
        let passed = self.when.map_or(Duration::ZERO, |when| now.saturating_duration_since(when));
        *self =
            Waste { calls: (self.calls - passed.as_secs_f64() * FORGIVEN).max(0.0) + calls, when: Some(now) };
        self.calls
    }
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

    /// `took`: which part of the time that a call may take it took.
    pub(crate) fn succeeded(&mut self, now: Instant, took: f64) {
        match self.open {
            None => self.remember(Call { when: now, failed: false, took }),
            // What failed before the pause is forgiven, but not forgotten; what it cost takes its time.
            Some(open) if open.trying => {
                let closed = Some((now, open.pause));
                let (wasted, tireless) = (self.wasted, self.tireless);
                *self = Breaker { wasted, closed, tireless, ..Breaker::default() };
            }
            // It began before the circuit opened.
            Some(_) => {}
        }
    }

    /// True when the circuit was closed and opens now.
    pub(crate) fn failed(&mut self, now: Instant, took: f64) -> bool {
        let wasted = self.wasted.add(now, took);
        if let Some(open) = &mut self.open {
            if open.trying {
                let pause = PAUSE_MAX.min(open.pause * 2);
                *open = Open { until: now + pause, pause, trying: false };
            }
            return false;
        }
        self.remember(Call { when: now, failed: true, took });
        let opens = !self.tireless && (wasted >= WASTE_MAX || self.fails_too_often(now));
        if opens {
            let pause = self.pause(now);
            self.open = Some(Open { until: now + pause, pause, trying: false });
        }
        opens
    }

    fn remember(&mut self, call: Call) {
        self.last.truncate(REMEMBERED - 1);
        self.last.push_front(call);
    }

    fn fails_too_often(&self, now: Instant) -> bool {
        let failures = |among: usize| self.last.iter().take(among).filter(|call| call.failed);
        let in_a_row = self.last.iter().take_while(|call| call.failed).count();
        let recent =
            || failures(REMEMBERED).filter(|call| now.saturating_duration_since(call.when) < SHORT_WHILE);
        let wasted: f64 = recent().map(|call| call.took).sum();
        let costly = wasted > MOST * self.last.iter().map(|call| call.took).sum::<f64>();
        in_a_row >= FAILURES_MAX
            || failures(LAST).count() >= FAILURES_OF_LAST_MAX
            || (costly && recent().count() >= COSTLY_MAX)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a failure that costs nothing to speak of.
    const QUICK: f64 = 0.001;

    #[test]
    fn opens_when_a_few_failures_among_many_answers_take_the_time_of_all() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let answer = |breaker: &mut Breaker| (0..100).for_each(|_| breaker.succeeded(now, QUICK));
        for _ in 0..2 {
            assert!(!breaker.failed(now, 1.0));
            answer(&mut breaker);
        }
        assert!(breaker.failed(now, 1.0));
        let later = now + PAUSE_MIN;
        assert!(breaker.admits(later));
        breaker.succeeded(later, QUICK);
        answer(&mut breaker);
        assert!(!breaker.is_open());
        assert!(breaker.failed(later, 1.0), "a pause of a second does not forgive what all of them took");
    }

    #[test]
    fn opens_when_a_tenth_of_the_calls_fails_and_takes_most_of_the_time_and_not_before() {
        let now = Instant::now();
        let opens = |took: f64| {
            let mut breaker = Breaker::default();
            let mut calls = (0..400).map(|call| match call % 10 {
                0 => breaker.failed(now, took),
                _ => {
                    breaker.succeeded(now, QUICK);
                    false
                }
            });
            calls.position(|opened| opened)
        };
        assert_eq!(opens(QUICK), None, "they cost no more than answers");
        assert_eq!(opens(QUICK * 20.0), Some(10 * (COSTLY_MAX - 1)));
    }

    #[test]
    fn one_that_takes_its_whole_time_now_and_then_goes_on() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        for _ in 0..100 {
            assert!(!breaker.failed(now, 1.0));
            (0..LAST).for_each(|_| breaker.succeeded(now, QUICK));
            now += Duration::from_secs(5);
        }
    }

    #[test]
    fn opens_after_failures_in_a_row() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        assert!(!breaker.failed(now, QUICK) && !breaker.failed(now, QUICK));
        breaker.succeeded(now, QUICK);
        assert!(!breaker.failed(now, QUICK) && !breaker.failed(now, QUICK) && breaker.failed(now, QUICK));
        assert!(breaker.is_open() && !breaker.admits(now));
    }

    #[test]
    fn opens_when_half_of_the_last_calls_failed_and_not_before() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for call in 0..1000 {
            // Two of five.
            if matches!(call % 5, 0 | 2) {
                assert!(!breaker.failed(now, QUICK))
            } else {
                breaker.succeeded(now, QUICK)
            }
        }
        let mut calls = 0;
        while !breaker.is_open() {
            breaker.succeeded(now, QUICK);
            breaker.failed(now, QUICK);
            calls += 2;
            assert!(calls <= LAST);
        }
        assert!(breaker.admits(now + PAUSE_MIN));
        breaker.succeeded(now, QUICK);
        assert!(!breaker.is_open() && !breaker.failed(now, QUICK), "what was before the pause is forgiven");
    }

    #[test]
    fn one_that_opens_again_soon_after_a_trial_rests_for_longer_each_time() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        let mut pauses = Vec::new();
        for closed_for in [0, 1, 1, 59, 61, 0] {
            now += Duration::from_secs(closed_for);
            while !breaker.failed(now, QUICK) {}
            let open = breaker.open.unwrap();
            pauses.push(open.pause.as_secs());
            now = open.until;
            assert!(breaker.admits(now));
            breaker.succeeded(now, QUICK);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 1, 2]);
    }

    #[test]
    fn how_calls_end_that_began_before_it_opened_changes_nothing() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        while !breaker.failed(now, QUICK) {}
        assert!(!breaker.failed(now, QUICK) && !breaker.failed(now, QUICK));
        breaker.succeeded(now, QUICK);
        assert!(breaker.is_open() && !breaker.admits(now) && breaker.admits(now + PAUSE_MIN));
    }

    #[test]
    fn one_that_is_tireless_never_opens() {
        let (mut breaker, now) = (Breaker::tireless(), Instant::now());
        breaker.succeeded(now, QUICK);
        for _ in 0..10 {
            assert!(!breaker.failed(now, QUICK) && breaker.admits(now));
        }
    }

    #[test]
    fn one_tries_after_each_pause_and_the_pauses_grow_to_a_bound() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        for _ in 0..FAILURES_MAX {
            breaker.failed(now, QUICK);
        }
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let open = breaker.open.unwrap();
            pauses.push(open.pause.as_secs());
            assert!(!breaker.admits(open.until - Duration::from_millis(1)));
            now = open.until;
            assert!(breaker.admits(now), "one may try");
            assert!(!breaker.admits(now), "a second one may not");
            assert!(!breaker.failed(now, QUICK), "it is no news that the circuit is open");
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert!(breaker.admits(now + PAUSE_MAX));
        breaker.succeeded(now, QUICK);
        assert!(breaker.admits(now) && !breaker.is_open());
    }
}
