//! How many events one object may get: a burst, then few. An API server, and who reads its events, must not suffer for one node.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

const BURST: f64 = 25.0;
/// One more each so often.
const EVERY: Duration = Duration::from_secs(5 * 60);
/// Objects that are watched; of those beyond, the ones with the most left are forgotten first.
const OBJECTS_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Limits {
    objects: HashMap<String, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Limits {
    /// Whether one more may be told of the object now.
    pub(super) fn take(&mut self, object: &str, now: Instant) -> bool {
        self.make_room(object, now);
        let bucket = self.objects.entry(object.to_owned()).or_insert(Bucket { left: BURST, at: now });
        bucket.left = bucket.left_at(now);
        bucket.at = now;
        let may = bucket.left >= 1.0;
        if may {
            bucket.left -= 1.0;
        }
        may
    }

    /// The one that was taken last was not told after all.
    pub(super) fn give_back(&mut self, object: &str) {
        if let Some(bucket) = self.objects.get_mut(object) {
            bucket.left = (bucket.left + 1.0).min(BURST);
        }
    }

    fn make_room(&mut self, object: &str, now: Instant) {
        if self.objects.len() < OBJECTS_MAX || self.objects.contains_key(object) {
            return;
        }
        self.objects.retain(|_, bucket| bucket.left_at(now) < BURST);
        if self.objects.len() >= OBJECTS_MAX {
            let most = self.objects.iter().max_by(|(_, one), (_, other)| one.left.total_cmp(&other.left));
            if let Some(object) = most.map(|(object, _)| object.clone()) {
                self.objects.remove(&object);
            }
        }
    }
}

impl Bucket {
    fn left_at(&self, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.at);
        (self.left + since.as_secs_f64() / EVERY.as_secs_f64()).min(BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_one_each_five_minutes_for_each_object() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        assert_eq!((0..100).filter(|_| limits.take("a", start)).count(), 25);
        assert!(limits.take("b", start));
        assert!(!limits.take("a", start + EVERY / 2));
        assert!(limits.take("a", start + EVERY + Duration::from_secs(1)));
        assert!(!limits.take("a", start + EVERY + Duration::from_secs(1)));
        limits.give_back("a");
        assert!(limits.take("a", start + EVERY + Duration::from_secs(1)));
        assert_eq!((0..100).filter(|_| limits.take("a", start + EVERY * 1000)).count(), 25);
    }

    #[test]
    fn so_many_objects_are_watched_and_not_more() {
        let (mut limits, now) = (Limits::default(), Instant::now());
        assert!((0..25).all(|_| limits.take("busy", now)));
        for object in 0..2 * OBJECTS_MAX {
            assert!(limits.take(&object.to_string(), now));
        }
        assert!(limits.objects.len() <= OBJECTS_MAX);
        assert!(!limits.take("busy", now), "who used up most is not forgotten");
    }
}
