//! What was tried for which image: when to look again, and how long to wait for one to be complete.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// How long an image that does not become complete is waited for.
const COMPLETE_MAX: Duration = Duration::from_secs(10 * 60);
/// The pause after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);

/// By the digest that an image's names lead to: as many as containerd has.
#[derive(Debug, Default)]
pub(super) struct Attempts(BTreeMap<String, Attempt>);

#[derive(Debug)]
struct Attempt {
    /// When it was first seen without its layers.
    seen: Instant,
    failures: u32,
    /// Not before then.
    next: Option<Instant>,
    /// Nothing was missing when the image had this stamp.
    whole: Option<i64>,
}

impl Attempts {
    /// Forgets images that are gone.
    pub(super) fn keep(&mut self, is_there: impl Fn(&str) -> bool) {
        self.0.retain(|digest, _| is_there(digest));
    }

    /// Whether an image is to be looked at now.
    pub(super) fn is_due(&mut self, digest: &str, stamp: i64) -> bool {
        let attempt = self.of(digest);
        attempt.whole != Some(stamp) && attempt.next.is_none_or(|next| Instant::now() >= next)
    }

    pub(super) fn is_whole(&mut self, digest: &str, stamp: i64) {
        self.of(digest).whole = Some(stamp);
    }

    /// Whether it may still become complete before its layers come.
    pub(super) fn may_wait(&mut self, digest: &str) -> bool {
        self.of(digest).seen.elapsed() < COMPLETE_MAX
    }

    /// All that was missing came: it is looked at once more, as it may have other manifests.
    pub(super) fn is_done(&mut self, digest: &str) {
        let attempt = self.of(digest);
        (attempt.failures, attempt.next) = (0, None);
    }

    /// When it is tried again.
    pub(super) fn failed(&mut self, digest: &str) -> Duration {
        let attempt = self.of(digest);
        let pause = FIRST_PAUSE.saturating_mul(1 << attempt.failures.min(16)).min(LONGEST_PAUSE);
        attempt.failures = attempt.failures.saturating_add(1);
        attempt.next = Some(Instant::now() + pause);
        pause
    }

    fn of(&mut self, digest: &str) -> &mut Attempt {
        self.0.entry(digest.to_owned()).or_insert_with(|| Attempt {
            seen: Instant::now(),
            failures: 0,
            next: None,
            whole: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failures_are_tried_again_more_and_more_seldom() {
        let mut attempts = Attempts::default();
        assert!(attempts.is_due("a", 1));
        assert_eq!(attempts.failed("a"), FIRST_PAUSE);
        assert!(!attempts.is_due("a", 1) && attempts.is_due("b", 1));
        tokio::time::advance(FIRST_PAUSE).await;
        assert!(attempts.is_due("a", 1));
        assert_eq!(attempts.failed("a"), 2 * FIRST_PAUSE);
        for _ in 0..40 {
            attempts.failed("a");
        }
        assert_eq!(attempts.failed("a"), LONGEST_PAUSE);
        attempts.is_done("a");
        assert!(attempts.is_due("a", 1));
        assert_eq!(attempts.failed("a"), FIRST_PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_whole_is_looked_at_again_once_it_was_pulled_anew() {
        let mut attempts = Attempts::default();
        attempts.is_whole("a", 1);
        assert!(!attempts.is_due("a", 1) && attempts.is_due("a", 2));
        attempts.keep(|_| false);
        assert!(attempts.is_due("a", 1), "it was removed in between");
        assert!(attempts.may_wait("a"));
        tokio::time::advance(COMPLETE_MAX).await;
        assert!(!attempts.may_wait("a"));
    }
}
