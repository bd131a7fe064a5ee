//! What is done when a cache refuses for want of quota: nobody else is asked, as a limit is the same for all of them.
//!
//! Lower classes give up at once, and come back when it is worth asking again. What a process waits for goes on being asked for,
//! every few seconds, should more be allowed; after a while the object store is asked, where an operator lets it be.

use std::sync::Arc;
use std::time::Duration;

use proto::quota::Refused;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Class, Content, FetchError};
use crate::metrics;

/// How often what a process waits for is asked for again, however long the window lasts: a limit may be raised.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What an image is short of now; none when its content comes.
#[derive(Debug, Default)]
pub(super) struct Shortage {
    refused: watch::Sender<Option<Arc<Refused>>>,
}

/// How one request bears that there is no quota.
#[derive(Debug, Default)]
pub(super) struct Bearing {
    since: Option<Instant>,
}

impl Content {
    /// Told whenever the image's content begins, and ends, to be refused for want of quota.
    pub(crate) fn shortage(&self) -> watch::Receiver<Option<Arc<Refused>>> {
        self.shortage.refused.subscribe()
    }

    pub(super) fn is_short(&self, refused: Refused) {
        metrics::quota_refused();
        self.mesh.events.quota(&self.manifest_digest, &refused);
        self.shortage.refused.send_replace(Some(Arc::new(refused)));
    }

    pub(super) fn comes(&self) {
        if self.shortage.refused.borrow().is_some() {
            self.shortage.refused.send_replace(None);
        }
    }
}

impl Bearing {
    /// After a round that was refused until `retry` has passed: the wait before the next one; none when that is up to the caller.
    pub(super) fn wait(&mut self, class: Class, retry: Duration, quota_wait: Duration) -> Option<Duration> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if class != Class::Demand {
            return None;
        }
        let left = quota_wait.saturating_sub(since.elapsed());
        let pause = retry.min(ASK_AGAIN);
        Some(if left.is_zero() { pause } else { pause.min(left) })
    }

    /// Whether it was waited for so long that an operator may want the store to be asked.
    pub(super) fn is_over(&self, quota_wait: Duration) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= quota_wait)
    }
}

impl FetchError {
    /// When it is worth asking again, if it was refused for want of quota.
    pub(crate) fn short_for(&self) -> Option<Duration> {
        match self {
            FetchError::Quota { refused, .. } => Some(refused.retry),
            _ => None,
        }
    }
}
