//! Measures the policy service as a process of its own, asked over a real NATS server on loopback. Latencies are those of a service
//! that may use the whole machine, as its asker and NATS do: on one processor with them it is they that interrupt a
//! guest. Verdicts a second, and memory, are those of a service on one processor.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bus::{Bus, NatsConfig};
use proto::{Facts, ImageFacts, JudgeReply, JudgeRequest, LayerFacts, PoliciesReply, PoliciesRequest};
use serde_json::{Value, json};
use testkit::{Nats, Server};

use super::beside;
use crate::{Scratch, binaries};

const CALLS: usize = 20_000;
/// Questions that are open at the same time where throughput is measured.
const AT_ONCE: usize = 16;
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// How long a service may take to start, and to take up another set.
const SETTLE_MAX: Duration = Duration::from_secs(30);
/// The eligibility policies that come with sluice.
const BUILTIN: [&str; 5] =
    ["schema-version", "encrypted-layers", "layer-shape", "size-limits", "registry-region"];
/// So that each of them has to look at the image, and none refuses it.
const SETTINGS: &str = "settings = { region = 'eu-1', registries = { eu-1 = ['registry.example'] } }";

/// Whether the service has one processor, or all.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pinned {
    Yes,
    No,
}

/// A policy service.
pub(super) struct Service {
    pub(super) bus: Bus,
    server: Server,
    set: PathBuf,
    _nats: Nats,
    _scratch: Scratch,
}

/// Times are in microseconds, of guests by the service's own clock, of the bus by the asker's.
pub fn measure() -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let one = Service::start(&set(1), Pinned::No).await?.latencies().await?;
        let five = Service::start(&set(5), Pinned::No).await?.latencies().await?;
        let ten = Service::start(&set(10), Pinned::No).await?.latencies().await?;
        let pinned = Service::start(&set(10), Pinned::Yes).await?;
        let loaded = pinned.resident()?;
        pinned.rate().await?;
        let memory = json!({ "loaded": loaded, "after_calls": pinned.resident()? });
        let rate = Service::start(&set(1), Pinned::Yes).await?.rate().await?;
        let reload = Service::start(&set(1), Pinned::Yes).await?.reload().await?;
        anyhow::Ok(json!({
            "one": one, "five": five, "ten": ten, "ten_resident_bytes": memory,
            "per_second_on_one_core": rate, "reload": reload, "beside_hostile": beside::measure().await?,
        }))
    })
}

/// A set of so many policies: the builtin ones, over and over.
fn set(policies: usize) -> String {
    let each = (0..policies).map(|number| {
        let builtin = BUILTIN[number % BUILTIN.len()];
        let settings = if builtin == "registry-region" { SETTINGS } else { "" };
        format!("[[eligibility]]\nname = '{builtin}-{number}'\nsource = 'builtin:{builtin}'\n{settings}\n")
    });
    each.collect()
}

impl Service {
    pub(super) async fn start(set: &str, pinned: Pinned) -> anyhow::Result<Service> {
        let (nats, scratch) = (Nats::start()?, Scratch::new()?);
        let set_file = scratch.path("policies.toml");
        fs::write(&set_file, set)?;
        let mut command = match pinned {
            Pinned::Yes => Command::new("taskset"),
            Pinned::No => binaries::command("policy")?,
        };
        if pinned == Pinned::Yes {
            command.args(["--cpu-list", "0"]).arg(binaries::path("policy")?);
        }
        for setting in [format!("nats.url={}", nats.url()), format!("policy.file={}", set_file.display())] {
            command.args(["--set", &setting]);
        }
        let server = Server::spawn(command, &scratch.path("policy.log"), "Debian's package `util-linux`")?;
        let bus = Bus::connect(&NatsConfig { url: nats.url(), ..NatsConfig::default() }).await?;
        bus.call(PoliciesRequest {}, SETTLE_MAX).await.with_context(|| server.log())?;
        Ok(Service { bus, server, set: set_file, _nats: nats, _scratch: scratch })
    }

    async fn judge(&self) -> anyhow::Result<JudgeReply> {
        judge(&self.bus).await
    }

    /// One question after the other.
    async fn latencies(&self) -> anyhow::Result<Value> {
        let (mut guest, mut bus) = (Vec::new(), Vec::new());
        for _ in 0..CALLS {
            let asked = Instant::now();
            let reply = self.judge().await?;
            bus.push(asked.elapsed().as_secs_f64() * 1e6);
            guest.push(reply.verdicts.iter().map(|verdict| verdict.microseconds as f64).sum());
        }
        Ok(json!({ "guest": quantiles(guest), "bus": quantiles(bus) }))
    }

    /// Verdicts a second of a service that has one processor.
    async fn rate(&self) -> anyhow::Result<f64> {
        let began = Instant::now();
        let ask = || async {
            for _ in 0..CALLS / AT_ONCE {
                self.judge().await?;
            }
            anyhow::Ok(())
        };
        futures::future::try_join_all((0..AT_ONCE).map(|_| ask())).await?;
        Ok((CALLS / AT_ONCE * AT_ONCE) as f64 / began.elapsed().as_secs_f64())
    }

    /// Another set is taken up while questions come: how many were answered, and how many of them wrongly or not at all.
    async fn reload(&self) -> anyhow::Result<Value> {
        let (before, started) = (self.generation().await?, Instant::now());
        fs::write(&self.set, set(5))?;
        let (mut answered, mut dropped) = (0u64, 0u64);
        while self.generation().await? == before {
            ensure!(started.elapsed() < SETTLE_MAX, "the new set is not taken up: {}", self.server.log());
            let asked = (0..AT_ONCE).map(|_| self.judge());
            for reply in futures::future::join_all(asked).await {
                let whole = reply.is_ok_and(|reply| {
                    let all = reply.verdicts.iter().all(|verdict| verdict.failure.is_empty());
                    all && matches!(reply.verdicts.len(), 1 | 5)
                });
                (answered, dropped) = (answered + 1, dropped + u64::from(!whole));
            }
        }
        Ok(json!({ "asked": answered, "dropped": dropped }))
    }

    async fn generation(&self) -> anyhow::Result<u64> {
        let reply: PoliciesReply = self.bus.call(PoliciesRequest {}, DEADLINE).await?;
        Ok(reply.generation)
    }

    pub(super) fn resident(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.server.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kilobytes * 1024)
    }
}

pub(super) fn quantiles(mut times: Vec<f64>) -> Value {
    times.sort_by(f64::total_cmp);
    let quantile = |percent: usize| times[(times.len() - 1) * percent / 100];
    json!({ "p50": quantile(50), "p99": quantile(99) })
}

async fn judge(bus: &Bus) -> anyhow::Result<JudgeReply> {
    let request = JudgeRequest { facts: Some(Facts { image: Some(image()), ..Facts::default() }) };
    Ok(bus.call(request, DEADLINE).await?)
}

/// Of twelve layers.
pub(super) fn image() -> ImageFacts {
    let layer = |number: u64| LayerFacts {
        digest: format!("sha256:{number:064}"),
        diff_id: format!("sha256:{number:064}"),
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        size: 1_000_000 * number,
        ..LayerFacts::default()
    };
    ImageFacts {
        reference: "registry.example/team/app:1".to_owned(),
        registry: "registry.example".to_owned(),
        repository: "team/app".to_owned(),
        tag: Some("1".to_owned()),
        schema_version: 2,
        layers: (1..=12).map(layer).collect(),
        ..ImageFacts::default()
    }
}
