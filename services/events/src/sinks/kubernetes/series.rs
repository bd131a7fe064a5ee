//! Events that were told lately: a repeat of one counts in its series, instead of being another object.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// After so long without a repeat the next one is told as a new one, as others do it.
pub(super) const OPEN_FOR: Duration = Duration::from_secs(6 * 60);
/// Series that are open at a time; the one that was counted longest ago is closed first.
const OPEN_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct SeriesTable {
    open: HashMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    count: u64,
    at: Instant,
}

/// An event that has a series, or gets one with its first repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Open {
    /// Of the object.
    pub(super) name: String,
    /// How often it happened so far, what was left out included.
    pub(super) count: u64,
}

impl SeriesTable {
    /// `within`: how long ago it was counted last at most.
    pub(super) fn open(&self, key: &str, now: Instant, within: Duration) -> Option<Open> {
        let entry = self.open.get(key).filter(|entry| entry.is_open(now, within))?;
        Some(Open { name: entry.name.clone(), count: entry.count })
    }

    pub(super) fn begin(&mut self, key: String, name: String, count: u64, now: Instant) {
        if self.open.len() >= OPEN_MAX {
            self.open.retain(|_, entry| entry.is_open(now, OPEN_FOR));
        }
        if self.open.len() >= OPEN_MAX
            && let Some(oldest) =
                self.open.iter().min_by_key(|(_, entry)| entry.at).map(|(key, _)| key.clone())
        {
            self.open.remove(&oldest);
        }
        self.open.insert(key, Entry { name, count, at: now });
    }

    pub(super) fn counted(&mut self, key: &str, count: u64, now: Instant) {
        if let Some(entry) = self.open.get_mut(key) {
            (entry.count, entry.at) = (count, now);
        }
    }

    /// It happened so often more, and is told with the next one.
    pub(super) fn count_along(&mut self, key: &str, count: u64) {
        if let Some(entry) = self.open.get_mut(key) {
            entry.count = entry.count.saturating_add(count);
        }
    }

    pub(super) fn close(&mut self, key: &str) {
        self.open.remove(key);
    }
}

impl Entry {
    fn is_open(&self, now: Instant, within: Duration) -> bool {
        now.saturating_duration_since(self.at) < within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_open_for_minutes_and_few_are() {
        let (mut table, start) = (SeriesTable::default(), Instant::now());
        table.begin("a".to_owned(), "a.1".to_owned(), 1, start);
        table.count_along("a", 2);
        table.counted("a", 4, start + OPEN_FOR / 2);
        let open = Some(Open { name: "a.1".to_owned(), count: 4 });
        assert_eq!(table.open("a", start + OPEN_FOR, OPEN_FOR), open);
        assert_eq!(table.open("a", start + OPEN_FOR * 3 / 2, OPEN_FOR), None);
        for number in 0..2 * OPEN_MAX {
            let now = start + OPEN_FOR + Duration::from_millis(number as u64);
            table.begin(number.to_string(), String::new(), 1, now);
        }
        assert!(table.open.len() <= OPEN_MAX);
        assert!(table.open.contains_key(&(2 * OPEN_MAX - 1).to_string()));
    }
}
