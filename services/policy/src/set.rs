//! One generation of policies, and what they say together.

use std::collections::HashSet;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use proto::{JudgeReply, LoadedPolicy, PlanReply};

use crate::config::{Combine, Mode, PolicyConfig, SetConfig};
use crate::host::{Facts, Host, Judge, Planner, World, plan};
use crate::meters;
use crate::plugin::{Failure, Plugin};
use crate::source::Sources;
use crate::verdict::{combined, decides};

/// Policies of one set: each may take its full time.
const POLICIES_MAX: usize = 32;
/// A policy's name, in bytes.
const NAME_MAX: usize = 64;

#[derive(Debug)]
pub(crate) struct Set {
    generation: u64,
    combine: Combine,
    eligibility: Vec<Plugin<Judge>>,
    prefetch: Vec<Plugin<Planner>>,
}

/// What the prefetch policies say of an image.
#[derive(Debug, Default)]
pub(crate) struct Planned {
    pub(crate) plan: Option<PlanReply>,
    pub(crate) failures: Vec<Failure>,
}

impl Set {
    /// The next generation: every policy verified, compiled and tried, or an error that names the one that cannot be used.
    pub(crate) fn load(
        host: &Host,
        config: &SetConfig,
        sources: &Sources,
        folder: &Path,
        before: Option<&Set>,
    ) -> anyhow::Result<Set> {
        check_names(config)?;
        check_prefetch(config)?;
        let (judges, planners): (&[_], &[_]) = match before {
            Some(set) => (&set.eligibility, &set.prefetch),
            None => (&[], &[]),
        };
        let eligibility =
            load_all(host, &config.eligibility, sources, folder, judges, Plugin::<Judge>::try_out)?;
        let prefetch =
            load_all(host, &config.prefetch, sources, folder, planners, Plugin::<Planner>::try_out)?;
        let generation = before.map_or(1, |set| set.generation + 1);
        Ok(Set { generation, combine: config.combine, eligibility, prefetch })
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// What all policies say of an image, in their order. Those that are only monitored are asked in any case, and last: what has a say
    /// never waits for them.
    pub(crate) fn judge(&self, facts: &Facts, deadline: Instant) -> JudgeReply {
        let (watched, asked): (Vec<_>, Vec<_>) =
            self.eligibility.iter().enumerate().partition(|(_, policy)| policy.monitored());
        let mut placed = Vec::new();
        for (place, policy) in asked {
            let verdict = policy.judge(facts, deadline);
            let decided = decides(self.combine, &verdict);
            placed.push((place, verdict));
            if decided {
                break;
            }
        }
        placed.extend(watched.into_iter().map(|(place, policy)| (place, policy.judge(facts, deadline))));
        placed.sort_by_key(|(place, _)| *place);
        let verdicts: Vec<_> = placed.into_iter().map(|(_, verdict)| verdict).collect();
        let decision = combined(self.combine, &verdicts).into();
        JudgeReply { decision, verdicts, generation: self.generation }
    }

    /// The plan of the first policy that has a say and a plan.
    pub(crate) fn plan(&self, facts: &Facts, profile: plan::Profile, deadline: Instant) -> Planned {
        let mut failures = Vec::new();
        for policy in self.prefetch.iter().filter(|policy| !policy.monitored()) {
            match policy.plan(facts, profile, deadline) {
                Ok(plan) => return Planned { plan: Some(plan), failures },
                Err(failure) => failures.push(failure),
            }
        }
        Planned { plan: None, failures }
    }

    /// What those plan that are only monitored: for the record and the figures.
    pub(crate) fn plans_without_a_say(
        &self,
        facts: &Facts,
        profile: plan::Profile,
        deadline: Instant,
    ) -> Vec<Result<PlanReply, Failure>> {
        let watched = self.prefetch.iter().filter(|policy| policy.monitored());
        watched.map(|policy| policy.plan(facts, profile, deadline)).collect()
    }

    /// From now on every policy is run, also after repeated failures.
    pub(crate) fn never_rest(&self) {
        self.eligibility.iter().for_each(Plugin::never_rest);
        self.prefetch.iter().for_each(Plugin::never_rest);
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.eligibility.iter().map(Plugin::name).chain(self.prefetch.iter().map(Plugin::name))
    }

    /// Gauges show what is in use: no policy that left with `before` rests or has memory.
    pub(crate) fn show_gauges(&self, before: &Set) {
        for gone in before.names().filter(|gone| self.names().all(|name| name != *gone)) {
            meters::high_water(gone, 0);
            meters::circuit(gone, false);
        }
        self.eligibility.iter().for_each(Plugin::show_gauges);
        self.prefetch.iter().for_each(Plugin::show_gauges);
    }

    pub(crate) fn judges(&self) -> &[Plugin<Judge>] {
        &self.eligibility
    }

    pub(crate) fn planners(&self) -> &[Plugin<Planner>] {
        &self.prefetch
    }

    pub(crate) fn shown(&self) -> Vec<LoadedPolicy> {
        self.eligibility.iter().map(Plugin::shown).chain(self.prefetch.iter().map(Plugin::shown)).collect()
    }
}

fn load_all<W: World>(
    host: &Host,
    configs: &[PolicyConfig],
    sources: &Sources,
    folder: &Path,
    known: &[Plugin<W>],
    try_out: fn(&Plugin<W>) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Plugin<W>>> {
    let mut loaded = Vec::new();
    for config in configs {
        let plugin = Plugin::load(host, config, sources, folder, known)
            .and_then(|plugin| try_out(&plugin).map(|()| plugin));
        loaded.push(plugin.with_context(|| format!("loading the {} policy {:?}", W::NAME, config.name))?);
    }
    Ok(loaded)
}

fn check_names(config: &SetConfig) -> anyhow::Result<()> {
    let mut names = HashSet::new();
    let configs = || config.eligibility.iter().chain(&config.prefetch);
    if configs().count() > POLICIES_MAX {
        bail!("there are {} policies; at most {POLICIES_MAX}", configs().count());
    }
    for PolicyConfig { name, .. } in configs() {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(good) {
            bail!("{name:?} is not a policy's name: letters, digits, `-`, `_` and `.`, at most {NAME_MAX}");
        }
        if !names.insert(name) {
            bail!("two policies have the name {name:?}");
        }
    }
    Ok(())
}

fn check_prefetch(config: &SetConfig) -> anyhow::Result<()> {
    // A setting that would be passed over is worse than one that is refused.
    if let Some(PolicyConfig { name, .. }) = config.prefetch.iter().find(|policy| policy.on_failure.is_some())
    {
        bail!(
            "the prefetch policy {name:?} has `on_failure`, which is for eligibility policies: when a prefetch policy fails, the next \
             one plans, or else the node by itself; leave it out"
        );
    }
    let enforced = |config: &PolicyConfig| config.mode == Mode::Enforce;
    if !config.prefetch.is_empty() && !config.prefetch.iter().any(enforced) {
        tracing::info!("all prefetch policies are monitored: nodes plan by themselves");
    }
    Ok(())
}
