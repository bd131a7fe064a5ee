//! The metrics of those who spend; names are stable.

use metrics::{Counter, Gauge, counter, gauge};
use proto::{QuotaMetric, QuotaWindow};

/// What was spent, by `project` and `metric`, in requests, bytes or imports.
const SPENT: &str = "sluice_quota_spent_total";
/// What was refused, each time, by `project` and `metric`.
const REFUSED: &str = "sluice_quota_refused_total";
/// What a limit in shadow mode would have refused, each time, by `project` and `metric`.
const SHADOW_REFUSED: &str = "sluice_quota_shadow_refused_total";
/// What was left of a limit for all of the mesh when it was last heard of, by `project`, `metric` and `window`.
const REMAINING: &str = "sluice_quota_remaining";
/// Claims, by `outcome`: answered, unanswered.
const CLAIMS: &str = "sluice_quota_claims_total";

/// Handles, as a look-up for each request would take a lock.
pub(crate) struct Meters {
    pub(crate) spent: Counter,
    pub(crate) refused: Counter,
    pub(crate) shadow_refused: Counter,
    minute: Gauge,
    day: Gauge,
}

impl Meters {
    pub(crate) fn new(project: &str, metric: QuotaMetric) -> Meters {
        let labels = [("project", project.to_owned()), ("metric", metric.code().to_owned())];
        let remaining = |window: QuotaWindow| {
            let window = ("window", window.code().to_owned());
            gauge!(REMAINING, &[labels[0].clone(), labels[1].clone(), window])
        };
        Meters {
            spent: counter!(SPENT, &labels),
            refused: counter!(REFUSED, &labels),
            shadow_refused: counter!(SHADOW_REFUSED, &labels),
            minute: remaining(QuotaWindow::Minute),
            day: remaining(QuotaWindow::Day),
        }
    }

    /// Infinite where there is no limit.
    pub(crate) fn remaining(&self, window: QuotaWindow, left: Option<u64>) {
        let gauge = if window == QuotaWindow::Day { &self.day } else { &self.minute };
        gauge.set(left.map_or(f64::INFINITY, |left| left as f64));
    }
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Meters").finish_non_exhaustive()
    }
}

pub(crate) fn claimed(answered: bool) {
    let outcome = if answered { "answered" } else { "unanswered" };
    counter!(CLAIMS, "outcome" => outcome).increment(1);
}
