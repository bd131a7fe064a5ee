//! What spending an allowance costs who has tickets.

use std::time::{Duration, Instant};

use allowance::{Allowances, Class, Unanswered};
use anyhow::ensure;
use bus::Bus;
use proto::QuotaMetric;
use quota::{Amount, Config, MetricLimits, ProjectLimits, Quota};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::side::until;

const LIMIT: u64 = 1_000_000_000_000;
const SPENT: u32 = 1_000_000;
const LATEST: Duration = Duration::from_secs(10);

/// Nanoseconds of one, claims that were made meanwhile included.
pub(super) async fn measure(rounds: usize) -> anyhow::Result<Value> {
    let bus = Bus::in_process();
    let amount = Some(Amount::Limit(LIMIT));
    let content_requests = MetricLimits { minute: amount, day: amount, ..MetricLimits::default() };
    let limits = ProjectLimits { content_requests, ..ProjectLimits::default() };
    let config = Config { limits, ..Config::default() };
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let quota = Quota::start(config, bus.clone(), &tasks, shutdown.clone()).await?;
    until("the limits are read", async || Ok(quota.probe()().await.is_ok())).await?;
    let config = allowance::Config { unanswered: Unanswered::Closed, ..allowance::Config::default() };
    let spender = Allowances::new(bus.clone(), config).of("default", QuotaMetric::ContentRequests);
    tokio::time::timeout(LATEST, spender.take(1, Class::Demand)).await??;
    let mut each = Vec::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        for _ in 0..SPENT {
            spender.take(1, Class::Demand).await?;
        }
        each.push(begun.elapsed().as_secs_f64() * 1e9 / f64::from(SPENT));
    }
    shutdown.cancel();
    ensure!(!each.is_empty(), "nothing was measured");
    Ok(json!({ "nanoseconds": super::median(each.clone()), "rounds": each }))
}
