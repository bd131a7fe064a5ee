//! How many guests may take long at the same time: one processor less than there are, so that ordinary questions find one
//! that is free whatever guests do.

use std::num::NonZero;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    free: Mutex<usize>,
    left: Condvar,
}

/// A place in the lane, until dropped.
#[derive(Debug)]
pub(super) struct Place {
    lane: Lane,
}

impl Lane {
    pub(super) fn of_this_machine() -> Lane {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        Lane::with(processors.saturating_sub(1).max(1))
    }

    fn with(places: usize) -> Lane {
        Lane { shared: Arc::new(Shared { free: Mutex::new(places), left: Condvar::new() }) }
    }

    /// Waits for a place until `deadline`. Blocks the thread.
    pub(super) fn enter(&self, deadline: Instant) -> Option<Place> {
        let mut free = self.free();
        while *free == 0 {
            let wait = deadline.checked_duration_since(Instant::now())?;
            let woken = self.shared.left.wait_timeout(free, wait);
            free = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        *free -= 1;
        drop(free);
        Some(Place { lane: self.clone() })
    }

    fn free(&self) -> MutexGuard<'_, usize> {
        // A number, counted up and down.
        self.shared.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.lane.free() += 1;
        self.lane.shared.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_finds_no_place_waits_for_one_or_for_the_deadline() {
        let lane = Lane::with(1);
        let soon = || Instant::now() + Duration::from_millis(20);
        let place = lane.enter(soon()).unwrap();
        assert!(lane.enter(soon()).is_none() && lane.enter(Instant::now()).is_none());
        let waiting = {
            let lane = lane.clone();
            std::thread::spawn(move || lane.enter(Instant::now() + Duration::from_secs(60)).is_some())
        };
        drop(place);
        assert!(waiting.join().unwrap());
        assert!(lane.enter(soon()).is_some(), "the place was given back");
    }
}
