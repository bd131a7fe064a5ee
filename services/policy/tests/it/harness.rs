//! Policies that answer on a bus of their own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bus::Bus;
use policy::{Config, Limits, Policies, PolicyConfig, SetConfig};
use proto::{
    Decision, Facts, ImageFacts, JudgeReply, JudgeRequest, LayerFacts, Pair, PlanReply, PlanRequest,
    PoliciesReply, PoliciesRequest, Verdict,
};
use sha2::{Digest, Sha256};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::Status;

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
const TIME: Duration = Duration::from_secs(1);

/// What policies of both worlds do wrong, by the image's label: the kind of failure, and what its message says.
pub(crate) const MISBEHAVIOURS: [(&str, &str, &str); 10] = [
    ("loop", "time", "it used more than 1s of a processor"),
    ("allocate", "memory", "it needs more than 64.0 MiB of memory"),
    ("refused-loop", "time", "it used more than 1s of a processor"),
    ("recurse", "stack", "the stack is full"),
    ("panic", "trap", "nobody expects this"),
    ("trap", "trap", "it gave up"),
    ("outside", "trap", "out of bounds"),
    ("megabytes", "output", "it hands over more than 1.0 MiB at once"),
    ("log-megabytes", "output", "it hands over more than 1.0 MiB at once"),
    ("not-text", "nonsense", "utf-8"),
];

/// And those that judge.
pub(crate) const OWN_MISBEHAVIOURS: [(&str, &str, &str); 3] = [
    ("no-reason", "nonsense", "it refuses without a reason code and a message"),
    ("control", "nonsense", "its message is not one line"),
    ("error", "error", "it reports an error: no table for this registry"),
];

pub(crate) struct Harness {
    pub(crate) bus: Bus,
    _policies: Policies,
    _shutdown: DropGuard,
}

impl Harness {
    /// With these eligibility policies, as TOML writes them.
    pub(crate) async fn with(eligibility: &str) -> Harness {
        Harness::start(config(eligibility)).await.unwrap()
    }

    pub(crate) async fn start(config: Config) -> anyhow::Result<Harness> {
        Harness::start_on(Bus::in_process(), config).await
    }

    pub(crate) async fn start_on(bus: Bus, config: Config) -> anyhow::Result<Harness> {
        let shutdown = CancellationToken::new();
        let policies = Policies::start(config, bus.clone(), &TaskTracker::new(), shutdown.clone()).await?;
        Ok(Harness { bus, _policies: policies, _shutdown: shutdown.drop_guard() })
    }

    pub(crate) async fn judge(&self, facts: Facts) -> JudgeReply {
        self.bus.call(JudgeRequest { facts: Some(facts) }, DEADLINE).await.unwrap()
    }

    /// What one policy says of an image that has the label `misbehave`.
    pub(crate) async fn misbehave(&self, policy: &str, how: &str) -> Verdict {
        let verdicts = self.judge(misbehaving(how)).await.verdicts;
        verdicts.into_iter().find(|verdict| verdict.policy == policy).unwrap()
    }

    pub(crate) async fn plan(&self, starts: u32, chunks: u32) -> Result<PlanReply, Status> {
        self.plan_of(facts(), starts, chunks).await
    }

    pub(crate) async fn plan_of(&self, facts: Facts, starts: u32, chunks: u32) -> Result<PlanReply, Status> {
        self.bus.call(PlanRequest { facts: Some(facts), starts, chunks }, DEADLINE).await
    }

    pub(crate) async fn policies(&self) -> PoliciesReply {
        self.bus.call(PoliciesRequest {}, DEADLINE).await.unwrap()
    }
}

/// A configuration of these eligibility policies.
pub(crate) fn config(eligibility: &str) -> Config {
    // A busy machine is no part of what is tested; 64 MiB of memory alone may take a tenth of a second there.
    let limits = Limits { time: TIME, total_time: DEADLINE, ..Limits::default() };
    Config { set: set(eligibility), limits, ..Config::default() }
}

pub(crate) fn set(eligibility: &str) -> SetConfig {
    toml::from_str(eligibility).unwrap()
}

/// Why a set of one policy cannot be used.
pub(crate) async fn refusal(policy: PolicyConfig) -> String {
    let set = SetConfig { eligibility: vec![policy], prefetch: Vec::new(), ..SetConfig::default() };
    let started = Harness::start(Config { set, ..Config::default() }).await;
    format!("{:#}", started.err().expect("it was loaded"))
}

/// A plugin of the tests, pinned.
pub(crate) fn hostile() -> String {
    pinned(&built("tests/hostile.wasm"))
}

/// The same that plans.
pub(crate) fn hostile_planner() -> String {
    pinned(&built("tests/hostile-planner.wasm"))
}

pub(crate) fn built(name: &str) -> PathBuf {
    Path::new(env!("SLUICE_PLUGINS_BUILT")).join(name).canonicalize().unwrap()
}

pub(crate) fn pinned(file: &Path) -> String {
    let digest = hex::encode(Sha256::digest(std::fs::read(file).unwrap()));
    format!("file:{}@sha256:{digest}", file.display())
}

/// An ordinary image of two layers.
pub(crate) fn facts() -> Facts {
    let layer = |digest: &str, size| LayerFacts {
        digest: digest.to_owned(),
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        size,
        ..LayerFacts::default()
    };
    let image = ImageFacts {
        reference: "registry.example/team/app:1".to_owned(),
        registry: "registry.example".to_owned(),
        repository: "team/app".to_owned(),
        tag: Some("1".to_owned()),
        schema_version: 2,
        layers: vec![layer("sha256:one", 1_000), layer("sha256:two", 500)],
        compressed_bytes: 1_500,
        ..ImageFacts::default()
    };
    Facts { image: Some(image), ..Facts::default() }
}

/// An image that makes the hostile plugins misbehave.
pub(crate) fn misbehaving(how: &str) -> Facts {
    image(|image| image.labels.push(Pair { name: "misbehave".to_owned(), value: how.to_owned() }))
}

pub(crate) fn image(change: impl FnOnce(&mut ImageFacts)) -> Facts {
    let mut facts = facts();
    change(facts.image.as_mut().unwrap());
    facts
}

pub(crate) fn decisions(reply: &JudgeReply) -> Vec<Decision> {
    reply.verdicts.iter().map(Verdict::decision).collect()
}

/// As the service's own admin server renders it; 0: nothing was counted.
pub(crate) fn counted(metric: &str) -> u64 {
    let rendered = lifecycle::telemetry::install().unwrap().render();
    let line = rendered.lines().find_map(|line| line.strip_prefix(metric));
    line.map_or(0, |value| value.trim().parse().unwrap())
}
