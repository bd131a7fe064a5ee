//! What it costs others when a policy misbehaves: well-behaved questions alone, beside as many other well-behaved ones, and beside
//! questions that make a policy of the same set loop, allocate, recurse, trap, hand over megabytes and log without end. Questions
//! about the well-behaved image go through that policy too, and it answers them.

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
/// Between two questions of one of the others.
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

/// What others asked: questions that the first policy was run for, and those that found it at rest or no room.
#[derive(Default)]
struct Others {
    run: AtomicU64,
    unrun: AtomicU64,
}

/// The three take turns.
pub(super) async fn measure() -> anyhow::Result<Value> {
    let service = Service::start(&set()?, Pinned::No).await?;
    let [mut alone, mut busy, mut beside] = <[Times; 3]>::default();
    let [polite, hostile] = <[Arc<Others>; 2]>::default();
    Times::default().ask(&service.bus).await?; // warms up
    let before = service.resident()?;
    for _ in 0..ROUNDS {
        alone.ask(&service.bus).await?;
        busy.ask_beside(&service.bus, [None; MISBEHAVIOURS.len()], &polite).await?;
        beside.ask_beside(&service.bus, MISBEHAVIOURS.map(Some), &hostile).await?;
    }
    Ok(json!({
        "alone": alone.measured(), "beside_polite": busy.measured(), "beside": beside.measured(),
        "polite": polite.counted(), "misbehaved": hostile.counted(),
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

/// Asks again and again, for a policy that misbehaves like this, or for one that does not.
async fn disturb(bus: Bus, how: Option<&str>, count: Arc<Others>) {
    let labels = how.map(|how| Pair { name: "misbehave".to_owned(), value: how.to_owned() });
    let labels = labels.into_iter().collect();
    let facts = Facts { image: Some(proto::ImageFacts { labels, ..image() }), ..Facts::default() };
    loop {
        let reply = bus.call(JudgeRequest { facts: Some(facts.clone()) }, DEADLINE).await;
        let run = reply
            .is_ok_and(|reply| reply.verdicts.first().is_some_and(|verdict| verdict.failure != "bypassed"));
        if run { &count.run } else { &count.unrun }.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(PAUSE).await;
    }
}

impl Others {
    fn counted(&self) -> Value {
        let [run, unrun] = [&self.run, &self.unrun].map(|count| count.load(Ordering::Relaxed));
        json!({ "run": run, "unrun": unrun })
    }
}

impl Times {
    async fn ask_beside(
        &mut self,
        bus: &Bus,
        others: [Option<&'static str>; MISBEHAVIOURS.len()],
        count: &Arc<Others>,
    ) -> anyhow::Result<()> {
        let mut disturbing = JoinSet::new();
        for how in others {
            disturbing.spawn(disturb(bus.clone(), how, count.clone()));
        }
        let asked = self.ask(bus).await;
        disturbing.shutdown().await;
        tokio::time::sleep(SETTLE).await;
        asked
    }

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
