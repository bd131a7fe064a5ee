//! The metrics recorder of the process, rendered for Prometheus.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

/// Bounds of all histograms whose name ends in `_seconds`: from a read of memory to a slow import.
const SECONDS: [f64; 14] =
    [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 300.0];
/// How often samples are folded into their histograms when nobody scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

static INSTALLED: Mutex<Option<PrometheusHandle>> = Mutex::new(None);

/// The recorder of this process, installed by the first call.
pub fn install() -> anyhow::Result<PrometheusHandle> {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*installed {
        return Ok(handle.clone());
    }
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(PrometheusBuilder::install_recorder)
        .context("installing the metrics recorder")?;
    *installed = Some(handle.clone());
    crate::logs::publish_dropped();
    Ok(handle)
}

/// Keeps the recorder's memory bounded until `shutdown`, and tells of log lines that were lost.
pub async fn upkeep(handle: PrometheusHandle, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(UPKEEP_INTERVAL)).await.is_some() {
        handle.run_upkeep();
        crate::logs::tell_dropped();
    }
}
