//! Pauses between attempts: longer and longer, never the same for two, and no shorter than who is asked wants them.

use std::time::{Duration, SystemTime};

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(60);
/// The longest that a receiver may ask for.
const ASKED_MAX: Duration = Duration::from_secs(5 * 60);

#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { next: FIRST }
    }
}

impl Backoff {
    /// `asked`: what the receiver wants.
    pub(crate) fn pause(&mut self, asked: Option<Duration>) -> Duration {
        let own = self.next.mul_f64(rand::random_range(0.5..1.0));
        self.next = (self.next * 2).min(LONGEST);
        match asked {
            // All who were refused were told the same: a tenth more keeps them apart.
            Some(asked) => asked.min(ASKED_MAX).mul_f64(rand::random_range(1.0..1.1)).max(own),
            None => own,
        }
    }
}

/// What a `Retry-After` asks for: seconds or a date.
pub(crate) fn asked(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_respect_what_is_asked() {
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = (0..12).map(|_| backoff.pause(None)).collect();
        assert!(pauses[0] >= FIRST / 2 && pauses[0] <= FIRST);
        assert!(pauses[11] >= LONGEST / 2 && pauses.iter().all(|pause| *pause <= LONGEST));
        let mut backoff = Backoff::default();
        let asked = backoff.pause(Some(Duration::from_secs(7)));
        assert!((Duration::from_secs(7)..Duration::from_secs(8)).contains(&asked), "{asked:?}");
        assert!(backoff.pause(Some(Duration::from_secs(1 << 40))) < ASKED_MAX * 2);
    }

    #[test]
    fn a_wait_is_asked_for_in_seconds_or_by_a_date() {
        let now = httpdate::parse_http_date("Mon, 30 Nov 2026 12:00:00 GMT").unwrap();
        assert_eq!(asked(" 120 ", now), Some(Duration::from_secs(120)));
        assert_eq!(asked("Mon, 30 Nov 2026 12:00:30 GMT", now), Some(Duration::from_secs(30)));
        assert_eq!(asked("Mon, 30 Nov 2026 11:00:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(asked("soon", now), None);
        assert_eq!(asked("-1", now), None);
    }
}
