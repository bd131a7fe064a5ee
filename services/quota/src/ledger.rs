//! What was drawn: one counter for each project, metric and window, of a minute in each region too.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bus::{Bus, Counters};
use proto::{QuotaMetric, QuotaWindow};
use tonic::Status;

/// Counters are kept for as long as a window lasts and clocks of quota services may differ, twice: one that was forgotten would be
/// given again.
const MINUTES_KEPT: Duration = Duration::from_secs(30 * 60);
const DAYS_KEPT: Duration = Duration::from_secs(49 * 60 * 60);
/// Sums that are remembered, so that less is drawn in vain.
const SUMS_MAX: usize = 100_000;
/// Spenders that are remembered, and how long after they were heard of.
const SPENDERS_MAX: usize = 10_000;
const SPENDER_KEPT: Duration = Duration::from_secs(120);

/// One counter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Account {
    pub(crate) project: String,
    pub(crate) region: String,
    pub(crate) metric: QuotaMetric,
    pub(crate) window: QuotaWindow,
    /// Of the window.
    pub(crate) number: u64,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    minutes: Counters,
    days: Counters,
    /// As they were last heard of; they only grow.
    sums: Mutex<HashMap<Account, u64>>,
    spenders: Mutex<HashMap<String, Instant>>,
}

impl Ledger {
    pub(crate) fn new(bus: &Bus) -> Ledger {
        Ledger {
            minutes: bus.counters("quota-minutes", MINUTES_KEPT),
            days: bus.counters("quota-days", DAYS_KEPT),
            sums: Mutex::default(),
            spenders: Mutex::default(),
        }
    }

    /// Draws so many, and returns the sum after.
    pub(crate) async fn draw(&self, account: &Account, amount: u64) -> Result<u64, Status> {
        let sum = self.counters(account).add(&account.key(), amount).await?;
        self.remember(account, sum);
        Ok(sum)
    }

    /// What was drawn so far, as this process last heard; asked for when it never did.
    pub(crate) async fn drawn(&self, account: &Account) -> Result<u64, Status> {
        if let Some(sum) = lock(&self.sums).get(account) {
            return Ok(*sum);
        }
        self.drawn_now(account).await
    }

    pub(crate) async fn drawn_now(&self, account: &Account) -> Result<u64, Status> {
        let sum = self.counters(account).get(&account.key()).await?;
        self.remember(account, sum);
        Ok(sum)
    }

    fn counters(&self, account: &Account) -> &Counters {
        if account.window == QuotaWindow::Day { &self.days } else { &self.minutes }
    }

    fn remember(&self, account: &Account, sum: u64) {
        let mut sums = lock(&self.sums);
        if sums.len() >= SUMS_MAX && !sums.contains_key(account) {
            let of_this_time = |other: &Account| other.number >= account.number;
            sums.retain(|other, _| other.window != account.window || of_this_time(other));
            if sums.len() >= SUMS_MAX {
                sums.clear();
            }
        }
        let known = sums.entry(account.clone()).or_default();
        *known = sum.max(*known);
    }

    /// Notes who spends; how many of them there are.
    pub(crate) fn heard(&self, spender: &str) -> u64 {
        let now = Instant::now();
        let mut spenders = lock(&self.spenders);
        let kept = |last: &Instant| now.duration_since(*last) <= SPENDER_KEPT;
        match spenders.get_mut(spender) {
            Some(last) => *last = now,
            None => {
                spenders.retain(|_, last| kept(last));
                if spenders.len() < SPENDERS_MAX {
                    spenders.insert(spender.to_owned(), now);
                }
            }
        }
        spenders.len() as u64
    }
}

impl Account {
    fn key(&self) -> String {
        let metric = self.metric.code();
        match self.window {
            QuotaWindow::Day => format!("{metric}/{}/{}", self.project, self.number),
            _ => format!("{metric}/{}/{}/{}", self.project, self.region, self.number),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
