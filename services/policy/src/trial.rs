//! Policies outside of any service, for who writes them: what the service would answer, and what a call costs. No policy rests
//! after failures, and only its own limits end a call: each answer stands for itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use proto::{Facts, JudgeReply, LoadedPolicy, PlanReply};
use tokio_util::sync::CancellationToken;

use crate::config::{Combine, Config, Limits, PolicyConfig, SetConfig};
use crate::facts;
use crate::host::{Fault, Host, Spent, Surface, Unusable, plan};
use crate::plugin::{Failure, Plugin};
use crate::remote::PulledPlugin;
use crate::set::{Planned, Set};
use crate::source::{Given, Sources};
use crate::watch::SetFile;

/// A policy set that was loaded as the service would.
#[derive(Debug)]
pub struct Trial {
    set: Set,
}

/// What a plugin is from outside, and what one call of it took.
#[derive(Clone, Debug)]
pub struct Examined {
    /// The names of interfaces.
    pub imports: Vec<String>,
    pub exports: Vec<String>,
    /// In bytes.
    pub size: u64,
    pub call: Cost,
}

/// Of one call.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Of an instance alone.
    pub instance: Duration,
    /// Of an instance and its answer: what the service waits for.
    pub answer: Duration,
    /// Of a processor, for the same: what [`Limits::time`] is about.
    pub processor: Duration,
    /// In bytes, at the most.
    pub memory: usize,
}

impl Trial {
    /// One plugin from a file, whichever its world; its author need not pin it. Blocks.
    pub fn of_plugin(file: &Path, settings: toml::Table, limits: Limits) -> anyhow::Result<Trial> {
        Trial::of_given(Given::file(file, &limits)?, settings, limits)
    }

    /// The same of one that was pulled.
    pub fn of_pulled(plugin: PulledPlugin, settings: toml::Table, limits: Limits) -> anyhow::Result<Trial> {
        let given = Given { source: plugin.name.to_string(), bytes: plugin.bytes };
        Trial::of_given(given, settings, limits)
    }

    fn of_given(given: Given, settings: toml::Table, limits: Limits) -> anyhow::Result<Trial> {
        let policy =
            PolicyConfig { settings, source: given.source.clone(), ..PolicyConfig::builtin("plugin") };
        let host = Host::new(limits)?;
        let sources = Sources::new(&Config::default(), CancellationToken::new())?.with(given);
        let load = |eligibility, prefetch| {
            let set = SetConfig { combine: Combine::All, eligibility, prefetch };
            Trial::load(&host, &set, &sources, &PathBuf::new())
        };
        match load(vec![policy.clone()], Vec::new()) {
            Err(error) if error.downcast_ref().is_some_and(Unusable::is_other_world) => {
                load(Vec::new(), vec![policy])
            }
            loaded => loaded,
        }
    }

    /// The set of a configuration. Blocks.
    pub fn of_config(config: &Config) -> anyhow::Result<Trial> {
        let host = Host::new(config.limits.clone())?;
        let sources = Sources::new(config, CancellationToken::new())?;
        match &config.file {
            Some(path) => {
                let file = SetFile { path: path.clone() };
                Trial::load(&host, &file.parse(&file.read()?)?, &sources, &file.folder())
            }
            None => Trial::load(&host, &config.set, &sources, &PathBuf::new()),
        }
    }

    fn load(host: &Host, set: &SetConfig, sources: &Sources, folder: &Path) -> anyhow::Result<Trial> {
        let set = Set::load(host, set, sources, folder, None)?;
        set.never_rest();
        Ok(Trial { set })
    }

    pub fn policies(&self) -> Vec<LoadedPolicy> {
        self.set.shown()
    }

    /// What all eligibility policies say. Blocks.
    pub fn judge(&self, facts: Facts) -> JudgeReply {
        self.set.judge(&facts::from_proto(facts), crate::far())
    }

    /// The plan of the first prefetch policy that has one; where none has, the error says how they failed. Blocks.
    pub fn plan(&self, facts: Facts, starts: u32, chunks: u32) -> anyhow::Result<PlanReply> {
        let profile = plan::Profile { starts, chunks };
        let Planned { plan, failures } = self.set.plan(&facts::from_proto(facts), profile, crate::far());
        let failed = |Failure { kind, message, .. }: &Failure| format!("{message} ({kind})");
        plan.with_context(|| match &failures[..] {
            [] => "there is no prefetch policy to ask".to_owned(),
            failures => failures.iter().map(failed).collect::<Vec<_>>().join("; "),
        })
    }

    /// How long the first policy took to read and compile.
    pub fn loaded_in(&self) -> Duration {
        let judge = self.set.judges().first().map(|plugin| plugin.loaded_in());
        judge.or_else(|| self.set.planners().first().map(|plugin| plugin.loaded_in())).unwrap_or_default()
    }

    /// The first policy from outside, asked about an ordinary image. Blocks.
    pub fn examine(&self) -> anyhow::Result<Examined> {
        let call = self.measure(None, 1)?.into_iter().next().context("it was not asked")?;
        let (judge, planner) = (self.set.judges().first(), self.set.planners().first());
        let surface = judge.map(Plugin::surface).or_else(|| planner.map(Plugin::surface));
        let Surface { imports, exports, size } = surface.context("there is no policy to look at")?;
        Ok(Examined { imports, exports, size, call })
    }

    /// Asks the first policy `calls` times; what each call cost. Without facts it is asked about an ordinary image. Blocks.
    pub fn measure(&self, asked: Option<Facts>, calls: u32) -> anyhow::Result<Vec<Cost>> {
        let facts = asked.map_or_else(facts::canned, facts::from_proto);
        let profile = plan::Profile { starts: 1, chunks: 3 };
        let one = || match (self.set.judges(), self.set.planners()) {
            ([judge, ..], _) => cost(judge.instance(), judge.ask(&facts, crate::far())),
            ([], [planner, ..]) => cost(planner.instance(), planner.ask(&facts, profile, crate::far())),
            ([], []) => anyhow::bail!("there is no policy to ask"),
        };
        (0..calls).map(|_| one()).collect()
    }
}

fn cost<T>(
    instance: Result<Spent, Fault>,
    (answered, spent): (Result<T, Fault>, Spent),
) -> anyhow::Result<Cost> {
    let instance = instance.context("making an instance")?;
    answered.context("asking it")?;
    Ok(Cost { instance: instance.time, answer: spent.time, processor: spent.cpu, memory: spent.memory })
}
