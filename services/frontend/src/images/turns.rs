//! Who may change what: one thing at a time per image; eviction alone, since it looks at all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio::time::{Instant, sleep};

/// How often eviction looks whether everything else is at rest. It does not queue: behind a queued eviction
/// every mount would wait for the slowest.
const ALONE_POLL: Duration = Duration::from_millis(100);

/// The right to change one image, until dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _shared: OwnedRwLockReadGuard<()>,
    _one: OwnedMutexGuard<()>,
}

/// The right to change every image, until dropped.
#[derive(Debug)]
pub(super) struct Alone {
    _all: OwnedRwLockWriteGuard<()>,
}

#[derive(Debug, Default)]
pub(super) struct Turns {
    all: Arc<RwLock<()>>,
    /// A lock per image, kept only while somebody uses it.
    locks: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Turns {
    /// Waits until nobody else has the turn of `image`.
    pub(super) async fn take(&self, image: &str) -> Turn {
        let one = self.lock_of(image).lock_owned().await;
        Turn { _shared: self.all.clone().read_owned().await, _one: one }
    }

    /// Waits, at most this long, until nobody has any turn.
    pub(super) async fn alone(&self, at_most: Duration) -> Option<Alone> {
        let deadline = Instant::now() + at_most;
        loop {
            if let Ok(all) = self.all.clone().try_write_owned() {
                return Some(Alone { _all: all });
            }
            if Instant::now() >= deadline {
                return None;
            }
            sleep(ALONE_POLL).await;
        }
    }

    fn lock_of(&self, image: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(image).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        locks.insert(image.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_per_image_and_eviction_alone() {
        let turns = Turns::default();
        let held = turns.take("one").await;
        let other = turns.take("two").await;
        assert!(turns.lock_of("one").try_lock().is_err());
        assert!(turns.alone(Duration::ZERO).await.is_none());
        drop((held, other));
        let alone = turns.alone(Duration::ZERO).await.unwrap();
        assert!(turns.all.try_read().is_err());
        drop(alone);
        turns.take("one").await;
    }
}
