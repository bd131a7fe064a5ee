//! A claim of tickets: a question to a quota service on a NATS server with identities and TLS, which draws from JetStream.

use std::time::{Duration, Instant};

use bus::Bus;
use proto::{QuotaClaimRequest, QuotaMetric, QuotaWant, QuotaWindow};
use serde_json::{Value, json};

use super::quantiles;
use super::side::until;
use crate::secured::nats_config;
use crate::{Scratch, Secured};

const LIMIT: u64 = 1_000_000_000_000;
const WITHIN: Duration = Duration::from_secs(10);
/// Spenders that claim at the same time.
const AT_ONCE: usize = 8;

/// Milliseconds.
pub(super) async fn measure(claims: usize) -> anyhow::Result<Value> {
    let scratch = Scratch::new()?;
    let mesh = Secured::start(&scratch)?;
    let limits = ["minute", "day"].map(|window| format!("quota.limits.content_requests.{window}={LIMIT}"));
    let _quota = mesh.service(&scratch, "quota", &limits)?;
    let bus = Bus::connect(&nats_config(&mesh.folder("cache"))?).await?;
    until("the quota service answers", async || Ok(bus.call(claim(0), WITHIN).await.is_ok())).await?;
    let alone = times(&bus, 0, claims).await?;
    let together = (1..=AT_ONCE).map(|spender| times(&bus, spender, claims / AT_ONCE));
    let together = futures::future::try_join_all(together).await?.concat();
    Ok(json!({ "alone": quantiles(alone), "eight_at_once": quantiles(together) }))
}

async fn times(bus: &Bus, spender: usize, claims: usize) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::new();
    for _ in 0..claims {
        let begun = Instant::now();
        bus.call(claim(spender), WITHIN).await?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(times)
}

fn claim(spender: usize) -> QuotaClaimRequest {
    let want = |window: QuotaWindow| QuotaWant { window: window.into(), amount: 100, need: 1 };
    QuotaClaimRequest {
        project: "default".to_owned(),
        metric: QuotaMetric::ContentRequests.into(),
        spender: format!("bench-{spender}"),
        wants: [QuotaWindow::Minute, QuotaWindow::Day].map(want).into(),
        ..QuotaClaimRequest::default()
    }
}
