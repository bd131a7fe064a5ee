//! The metrics of the quota service; names are stable.

use metrics::{counter, gauge};
use proto::{QuotaMetric, QuotaWindow};

/// What was handed out, by `metric` and `window`.
const GRANTED: &str = "sluice_quota_granted_total";
/// Claims of which a window had less than was waited for, by `metric` and `window`.
const EXHAUSTED: &str = "sluice_quota_exhausted_total";
/// Claims that could not be answered: the counters were away, or the limits not known.
const FAILED: &str = "sluice_quota_claims_failed_total";
/// Live limits that cannot be used.
const BAD_LIMITS: &str = "sluice_quota_bad_limits_total";
/// Live limits.
const LIVE: &str = "sluice_quota_live_limits";

pub(crate) fn granted(metric: QuotaMetric, window: QuotaWindow, granted: u64, short: bool) {
    let labels = [("metric", metric.code()), ("window", window.code())];
    counter!(GRANTED, &labels).increment(granted);
    if short {
        counter!(EXHAUSTED, &labels).increment(1);
    }
}

pub(crate) fn failed() {
    counter!(FAILED).increment(1);
}

pub(crate) fn bad_limit() {
    counter!(BAD_LIMITS).increment(1);
}

pub(crate) fn live_limits(count: usize) {
    gauge!(LIVE).set(count as f64);
}
