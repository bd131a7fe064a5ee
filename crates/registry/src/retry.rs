//! How long to wait before a failed request is tried again.

use std::time::Duration;

use crate::config::RetryConfig;

/// One request's remaining tries: exponential pauses, spread at random so that the clients that
/// failed together do not come back together, bounded in number and in total time.
#[derive(Debug)]
pub(super) struct Retry {
    config: RetryConfig,
    failures: u32,
    paused: Duration,
}

impl Retry {
    pub(super) fn new(config: &RetryConfig) -> Retry {
        Retry { config: config.clone(), failures: 0, paused: Duration::ZERO }
    }

    /// The tries start over: what was tried made progress.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
        self.paused = Duration::ZERO;
    }

    /// The pause before the next try; none when there is no next try. `asked` is what the server
    /// wants (`Retry-After`): never less than that is waited.
    pub(super) fn pause(&mut self, asked: Option<Duration>) -> Option<Duration> {
        self.failures += 1;
        if self.failures >= self.config.attempts {
            return None;
        }
        let doubled = self.config.first_pause.saturating_mul(1 << (self.failures - 1).min(16));
        let spread = doubled.min(self.config.longest_pause).mul_f64(rand::random_range(0.5..1.0));
        let pause = asked.map_or(spread, |asked| asked.saturating_add(spread));
        self.paused = self.paused.saturating_add(pause);
        (self.paused <= self.config.total_pause).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> RetryConfig {
        RetryConfig {
            attempts: 4,
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_millis(150),
            total_pause: Duration::from_secs(10),
        }
    }

    #[test]
    fn pauses_grow_within_bounds_and_end() {
        let mut retry = Retry::new(&config());
        let between = |pause: Option<Duration>, low: u64, high: u64| {
            let millis = pause.unwrap().as_millis();
            assert!((u128::from(low)..=u128::from(high)).contains(&millis), "{millis}");
        };
        between(retry.pause(None), 50, 100);
        between(retry.pause(None), 75, 150);
        between(retry.pause(None), 75, 150);
        assert_eq!(retry.pause(None), None);
        retry.reset();
        between(retry.pause(None), 50, 100);
    }

    #[test]
    fn waits_as_long_as_asked_or_not_at_all() {
        let mut retry = Retry::new(&config());
        assert!(retry.pause(Some(Duration::from_secs(5))).unwrap() >= Duration::from_secs(5));
        assert_eq!(retry.pause(Some(Duration::from_secs(5))), None, "more than the total");
        assert_eq!(Retry::new(&config()).pause(Some(Duration::MAX)), None);
    }
}
