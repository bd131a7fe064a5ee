//! What it costs others when a policy misbehaves: well-behaved questions alone, and beside questions that make a policy of the same
//! set loop, allocate, recurse, trap, hand over megabytes and log without end. Questions about the well-behaved
//! image go through that policy too, and it answers them: so it hardly ever fails often enough in a row to rest.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bus::Bus;
use proto::{Facts, JudgeRequest, Pair, PlanRequest};
use serde_json::{Value, json};
use testkit::layout::sha256;
use tokio::task::JoinSet;

use super::policies::{DEADLINE, Pinned, Service, image, quantiles};
use crate::binaries;

const ROUNDS: usize = 3;
/// Of each kind, in each round, alone and beside.
const CALLS: usize = 1_000;
const MISBEHAVIOURS: [&str; 6] = ["loop", "allocate", "recurse", "trap", "megabytes", "log"];
/// Between two misbehaving questions of a kind.
const PAUSE: Duration = Duration::from_millis(10);
/// Longer than any guest runs.
const SETTLE: Duration = Duration::from_millis(500);

/// Times of well-behaved questions, in microseconds.
#[derive(Default)]
struct Times {
    guest: Vec<f64>,
    judge: Vec<f64>,
    plan: Vec<f64>,
}

/// Misbehaving questions: those that the policy was run for, and those that found it at rest or no room.
#[derive(Default)]
struct Misbehaved {
    run: AtomicU64,
    unrun: AtomicU64,
}

/// The two take turns.
pub(super) async fn measure() -> anyhow::Result<Value> {
    let service = Service::start(&set()?, Pinned::No).await?;
    let (mut alone, mut beside, misbehaved) =
        (Times::default(), Times::default(), Arc::<Misbehaved>::default());
    Times::default().ask(&service.bus).await?; // warms up
    let before = service.resident()?;
    for _ in 0..ROUNDS {
        alone.ask(&service.bus).await?;
        let mut hostile = JoinSet::new();
        for how in MISBEHAVIOURS {
            hostile.spawn(misbehave(service.bus.clone(), how, misbehaved.clone()));
        }
        beside.ask(&service.bus).await?;
        hostile.shutdown().await;
        tokio::time::sleep(SETTLE).await;
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Ok(json!({
        "alone": alone.measured(), "beside": beside.measured(),
        "misbehaved": { "run": count(&misbehaved.run), "unrun": count(&misbehaved.unrun) },
        "resident_bytes": { "before": before, "after": service.resident()? },
    }))
}

/// The well-behaved policy stands behind the one that misbehaves.
fn set() -> anyhow::Result<String> {
    let plugin = binaries::plugin("tests/hostile.wasm")?;
    let digest = sha256(&fs::read(&plugin)?);
    Ok(format!(
        "[[eligibility]]\nname = 'bad'\nsource = 'file:{}@{digest}'\non_failure = 'abstain'\n\
         [[eligibility]]\nname = 'good'\nsource = 'builtin:size-limits'\n\
         [[prefetch]]\nname = 'learned'\nsource = 'builtin:learned'\n",
        plugin.display()
    ))
}

async fn misbehave(bus: Bus, how: &str, count: Arc<Misbehaved>) {
    let labels = vec![Pair { name: "misbehave".to_owned(), value: how.to_owned() }];
    let facts = Facts { image: Some(proto::ImageFacts { labels, ..image() }), ..Facts::default() };
    loop {
        let reply = bus.call(JudgeRequest { facts: Some(facts.clone()) }, DEADLINE).await;
        let run = reply
            .is_ok_and(|reply| reply.verdicts.first().is_some_and(|verdict| verdict.failure != "bypassed"));
        if run { &count.run } else { &count.unrun }.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(PAUSE).await;
    }
}

impl Times {
    async fn ask(&mut self, bus: &Bus) -> anyhow::Result<()> {
        let facts = Some(Facts { image: Some(image()), ..Facts::default() });
        for _ in 0..CALLS {
            let asked = Instant::now();
            let reply = bus.call(JudgeRequest { facts: facts.clone() }, DEADLINE).await?;
            self.judge.push(asked.elapsed().as_secs_f64() * 1e6);
            let good = reply.verdicts.iter().find(|verdict| verdict.policy == "good");
            let good = good.context("the well-behaved policy was not asked")?;
            ensure!(good.failure.is_empty(), "the well-behaved policy failed: {}", good.message);
            self.guest.push(good.microseconds as f64);
            let asked = Instant::now();
            bus.call(PlanRequest { facts: facts.clone(), starts: 1, chunks: 3 }, DEADLINE).await?;
            self.plan.push(asked.elapsed().as_secs_f64() * 1e6);
        }
        Ok(())
    }

    fn measured(self) -> Value {
        json!({ "guest": quantiles(self.guest), "judge": quantiles(self.judge), "plan": quantiles(self.plan) })
    }
}
