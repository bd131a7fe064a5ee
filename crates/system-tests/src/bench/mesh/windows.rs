//! Eight that spend, as caches do, and a limit of 100,000 a minute, while they, the quota services and NATS are killed and come back: what is
//! spent in each minute. `crates/../quota/tests/servers.rs` has a run of twelve minutes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use allowance::{Allowances, Class, Unanswered, calendar};
use bus::{Bus, NatsConfig};
use proto::{QuotaMetric, QuotaWindow};
use serde_json::{Value, json};
use testkit::Nats;
use tokio::task::JoinHandle;

use super::side::until;
use crate::Scratch;
use crate::services::{self, Service};

const LIMIT: u64 = 100_000;
const SPENDERS: usize = 8;
const SERVICES: usize = 3;
/// Tickets at a time, and how often, of each: some 190,000 a minute, if they were let.
const AT_A_TIME: u64 = 20;
const EVERY: Duration = Duration::from_millis(50);
/// Something is killed this often: in turns a spender and a quota service, and NATS each twelfth time.
const KILLED_EVERY: Duration = Duration::from_secs(4);

type Spent = Arc<Mutex<BTreeMap<u64, u64>>>;

/// Tickets in each whole minute.
pub(super) async fn measure(minutes: u64) -> anyhow::Result<Value> {
    let (scratch, mut nats, spent) = (Scratch::new()?, Nats::start()?, Spent::default());
    let limit = [format!("quota.limits.content_requests.minute={LIMIT}"), "quota.spenders=8".to_owned()];
    let mut quotas = (0..SERVICES)
        .map(|_| services::service(&nats, &scratch, "quota", &limit))
        .collect::<Result<Vec<_>, _>>()?;
    let mut spenders = Vec::new();
    for _ in 0..SPENDERS {
        spenders.push(spender(&nats, &spent).await?);
    }
    until("something is spent", async || Ok(!lock(&spent).is_empty())).await?;
    let (first, mut kills) = (minute() + 1, 0);
    while minute() < first + minutes {
        tokio::time::sleep(KILLED_EVERY).await;
        kills += 1;
        match kills % 12 {
            0 => {
                nats.kill()?;
                nats.restart()?;
            }
            number if number % 2 == 0 => restart(&mut quotas[number % SERVICES])?,
            number => {
                // With all tickets that it had.
                let at = number % SPENDERS;
                spenders[at].abort();
                spenders[at] = spender(&nats, &spent).await?;
            }
        }
    }
    spenders.iter().for_each(JoinHandle::abort);
    let whole: Vec<u64> = lock(&spent).range(first..first + minutes).map(|(_, spent)| *spent).collect();
    let over = whole.iter().filter(|spent| **spent > LIMIT).count();
    Ok(json!({ "limit": LIMIT, "spent": whole, "over": over, "killed": kills }))
}

fn restart(service: &mut Service) -> anyhow::Result<()> {
    service.kill()?;
    service.restart()
}

async fn spender(nats: &Nats, spent: &Spent) -> anyhow::Result<JoinHandle<()>> {
    let bus = Bus::connect(&NatsConfig { url: nats.url(), ..NatsConfig::default() }).await?;
    let config = allowance::Config { unanswered: Unanswered::Closed, ..allowance::Config::default() };
    let spender = Allowances::new(bus, config).of("default", QuotaMetric::ContentRequests);
    let spent = spent.clone();
    Ok(tokio::spawn(async move {
        loop {
            for _ in 0..AT_A_TIME {
                let before = minute();
                if spender.take(1, Class::Demand).await.is_err() {
                    break;
                }
                // What was spent on the border belongs to either.
                if minute() == before {
                    *lock(&spent).entry(before).or_default() += 1;
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }))
}

fn minute() -> u64 {
    calendar::window(QuotaWindow::Minute, calendar::unix_ms()).number
}

fn lock(spent: &Spent) -> std::sync::MutexGuard<'_, BTreeMap<u64, u64>> {
    spent.lock().unwrap_or_else(PoisonError::into_inner)
}
