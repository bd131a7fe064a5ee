//! Sums that anyone on the bus may add to; each addition is answered with the sum after it.
//!
//! Additions to one key happen one after the other, so the intervals `sum - amount .. sum` that they are answered with never
//! overlap, whoever adds and whoever dies meanwhile: a number may be drawn by one only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::Status;

use crate::key;
use crate::nats::NatsCounters;

/// Sums that one process holds of one name; an addition to one more is refused.
const SUMS_MAX: usize = 1_000_000;

/// The sums of one name. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Counters {
    way: Way,
}

#[derive(Clone, Debug)]
enum Way {
    InProcess(Arc<Sums>),
    Nats(Arc<NatsCounters>),
}

impl Counters {
    pub(crate) fn in_process(sums: Arc<Sums>) -> Counters {
        Counters { way: Way::InProcess(sums) }
    }

    pub(crate) fn nats(counters: NatsCounters) -> Counters {
        Counters { way: Way::Nats(Arc::new(counters)) }
    }

    /// Adds, and returns the sum after. An error leaves open whether it was added: to ask again is to add again.
    pub async fn add(&self, key: &str, amount: u64) -> Result<u64, Status> {
        let token = key::checked(key)?;
        match &self.way {
            Way::InProcess(sums) => sums.add(token, amount),
            Way::Nats(counters) => counters.add(&token, amount).await,
        }
    }

    /// The sum; 0 when nothing was added, or nothing within the time that sums are kept for.
    pub async fn get(&self, key: &str) -> Result<u64, Status> {
        let token = key::checked(key)?;
        match &self.way {
            Way::InProcess(sums) => Ok(sums.get(&token)),
            Way::Nats(counters) => counters.get(&token).await,
        }
    }
}

/// The sums of one name, within one process.
#[derive(Debug)]
pub(crate) struct Sums {
    kept: Duration,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    sums: HashMap<String, Sum>,
    /// When old ones were looked for last.
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Sum {
    value: u64,
    changed: Instant,
}

impl Sums {
    /// `kept`: how long after its last addition a sum is kept.
    pub(crate) fn new(kept: Duration) -> Sums {
        Sums { kept, table: Mutex::default() }
    }

    fn add(&self, key: String, amount: u64) -> Result<u64, Status> {
        let now = Instant::now();
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.swept.is_none_or(|swept| now - swept > self.kept / 2) {
            table.sums.retain(|_, sum| now - sum.changed <= self.kept);
            table.swept = Some(now);
        }
        if table.sums.len() >= SUMS_MAX && !table.sums.contains_key(&key) {
            return Err(Status::unavailable(format!("{SUMS_MAX} sums are kept: no room for one more")));
        }
        let sum = table.sums.entry(key).or_insert(Sum { value: 0, changed: now });
        let before = if now - sum.changed <= self.kept { sum.value } else { 0 };
        let overflow = || Status::out_of_range(format!("{before} and {amount} are more than a sum can be"));
        let value = before.checked_add(amount).ok_or_else(overflow)?;
        *sum = Sum { value, changed: now };
        Ok(value)
    }

    fn get(&self, key: &str) -> u64 {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = table.sums.get(key).filter(|sum| sum.changed.elapsed() <= self.kept);
        kept.map_or(0, |sum| sum.value)
    }
}
