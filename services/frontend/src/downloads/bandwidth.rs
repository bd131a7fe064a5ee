//! The background's own bandwidth cap: a token bucket in stored bytes. Pure.
//!
//! A chunk is paid for when it is asked, and may overdraw the bucket: the next one waits until the debt is
//! paid. So the rate holds for chunks of any size, and nothing is ever too large to be asked.

use std::time::{Duration, Instant};

/// How much unused allowance is kept: what a moment of silence may be made up for with.
const SAVED: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct Bandwidth {
    /// Bytes a second; `None`: no cap.
    rate: Option<f64>,
    /// Bytes that may be asked now; negative while in debt.
    allowance: f64,
    counted: Instant,
}

impl Bandwidth {
    pub(super) fn new(bytes_per_second: Option<u64>, now: Instant) -> Bandwidth {
        Bandwidth { rate: bytes_per_second.map(|rate| rate.max(1) as f64), allowance: 0.0, counted: now }
    }

    /// `None` when something may be asked now; otherwise the time from which it may.
    pub(super) fn wait_until(&mut self, now: Instant) -> Option<Instant> {
        let rate = self.rate?;
        let earned = now.saturating_duration_since(self.counted).as_secs_f64() * rate;
        self.allowance = (self.allowance + earned).min(SAVED.as_secs_f64() * rate);
        self.counted = now;
        (self.allowance < 0.0).then(|| now + Duration::from_secs_f64((-self.allowance / rate).min(3600.0)))
    }

    pub(super) fn spend(&mut self, bytes: u64) {
        if self.rate.is_some() {
            self.allowance -= bytes as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_the_rate_whatever_the_size() {
        for size in [1_000, 100_000, 5_000_000] {
            let start = Instant::now();
            let mut bandwidth = Bandwidth::new(Some(1_000_000), start);
            let (mut now, mut sent) = (start, 0);
            while sent < 20_000_000 {
                match bandwidth.wait_until(now) {
                    Some(later) => now = later.max(now + Duration::from_nanos(1)),
                    None => {
                        bandwidth.spend(size);
                        sent += size;
                    }
                }
            }
            let rate = (sent - size) as f64 / (now - start).as_secs_f64();
            assert!((900_000.0..1_020_000.0).contains(&rate), "{size}: {rate}");
        }
    }

    #[test]
    fn without_a_cap_nothing_waits() {
        let now = Instant::now();
        let mut bandwidth = Bandwidth::new(None, now);
        bandwidth.spend(u64::MAX);
        assert_eq!(bandwidth.wait_until(now), None);
    }
}
