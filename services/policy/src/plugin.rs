//! One policy of the set: a plugin with its settings, its circuit breaker and its figures.

use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use proto::{LoadedPolicy, PlanReply, Verdict};

use crate::breaker::Breaker;
use crate::config::{Mode, PolicyConfig};
use crate::facts;
use crate::foreign::brief;
use crate::host::{About, Facts, Fault, Guest, Host, Judge, Planner, Setting, Spent, Surface, World, plan};
use crate::plan::sensible_plan;
use crate::source::{Source, Sources};
use crate::verdict::{after_failure, sensible};
use crate::{meters, settings};

/// Whoever used so much of a processor's time that one call may take is to blame, too, when the time for all is over.
const LATE_BY_ITSELF: f64 = 0.5;

#[derive(Debug)]
pub(crate) struct Plugin<W> {
    config: PolicyConfig,
    /// Of the plugin's bytes: `sha256:<hex>`.
    digest: String,
    about: About,
    settings: Vec<Setting>,
    guest: Guest<W>,
    /// How long that took: nearly all of it to compile.
    loaded_in: Duration,
    history: Arc<History>,
}

/// What is known of the calls so far.
#[derive(Debug, Default)]
struct History {
    breaker: Mutex<Breaker>,
    /// How often it went to rest.
    rests: Arc<AtomicU32>,
    /// The most memory that a call has used, in bytes.
    high_water: AtomicUsize,
}

/// How a policy failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) policy: String,
    /// As in `docs/policies.md`.
    pub(crate) kind: &'static str,
    pub(crate) message: String,
}

impl<W: World> Plugin<W> {
    /// Verify, compile, ask it about itself, check its settings by what it says and by its own check. `known` are
    /// plugins that are loaded: what has the same bytes is not compiled again.
    pub(crate) fn load(
        host: &Host,
        config: &PolicyConfig,
        sources: &Sources,
        folder: &Path,
        known: &[Plugin<W>],
    ) -> anyhow::Result<Plugin<W>> {
        let began = Instant::now();
        let (digest, guest) = Plugin::guest(host, config, sources, folder, known)?;
        let loaded_in = began.elapsed();
        let about = guest.describe().context("asking it about itself")?;
        let settings = settings::typed(&about, &config.settings)
            .map_err(|problems| anyhow!("its settings are wrong: {}", settings::listed(&problems)))?;
        let problems = guest.check_settings(&settings).context("letting it check its settings")?;
        if !problems.is_empty() {
            bail!("its settings are wrong: {}", settings::listed(&problems));
        }
        // Another policy of the set was changed: this one goes on as it was, at rest if it rests.
        let same = |plugin: &&Plugin<W>| plugin.config == *config && plugin.digest == digest;
        let history = known.iter().find(same).map(|plugin| plugin.history.clone()).unwrap_or_default();
        let guest = guest.ended_by(history.rests.clone());
        Ok(Plugin { config: config.clone(), digest, about, settings, guest, loaded_in, history })
    }

    /// The plugin's digest, and the plugin compiled.
    fn guest(
        host: &Host,
        config: &PolicyConfig,
        sources: &Sources,
        folder: &Path,
        known: &[Plugin<W>],
    ) -> anyhow::Result<(String, Guest<W>)> {
        let source: Source = config.source.parse()?;
        let renamed = |plugin: &Plugin<W>| (plugin.digest.clone(), plugin.guest.renamed(&config.name));
        // A registry's digest means the same plugin for ever: what is in use needs no registry. Its signature is looked at
        // again, though, on this machine's disk: a key may have been taken away.
        let known_for_ever = source.is_remote() && !sources.wants_signatures();
        let same = |plugin: &&Plugin<W>| known_for_ever && plugin.config.source == config.source;
        if let Some(plugin) = known.iter().find(same) {
            return Ok(renamed(plugin));
        }
        let fetched = sources.fetch(&source, folder)?;
        if let Some(plugin) = known.iter().find(|plugin| plugin.digest == fetched.digest) {
            return Ok(renamed(plugin));
        }
        let guest = Guest::load(host, &config.name, &fetched.bytes);
        let guest = guest.with_context(|| format!("{} cannot be used", config.source))?;
        Ok((fetched.digest, guest))
    }

    pub(crate) fn monitored(&self) -> bool {
        self.config.mode == Mode::Monitor
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    pub(crate) fn loaded_in(&self) -> Duration {
        self.loaded_in
    }

    pub(crate) fn surface(&self) -> Surface {
        self.guest.surface()
    }

    /// Of what was known of it before its set was loaded, too.
    pub(crate) fn show_gauges(&self) {
        meters::high_water(self.name(), self.history.high_water.load(Ordering::Relaxed));
        meters::circuit(self.name(), self.breaker().is_open());
    }

    /// From now on it is run also after repeated failures.
    pub(crate) fn never_rest(&self) {
        *self.breaker() = Breaker::tireless();
    }

    /// What an instance costs without any call.
    pub(crate) fn instance(&self) -> Result<Spent, Fault> {
        let (outcome, spent) = self.guest.instantiate();
        outcome.map(|()| spent)
    }

    pub(crate) fn shown(&self) -> LoadedPolicy {
        LoadedPolicy {
            name: self.config.name.clone(),
            world: W::NAME.to_owned(),
            source: self.config.source.clone(),
            digest: self.digest.clone(),
            version: brief(&self.about.version),
            summary: brief(&self.about.summary),
            monitored: self.monitored(),
            open_circuit: self.breaker().is_open(),
            settings: self.about.settings.iter().map(settings::shown).collect(),
        }
    }

    /// Runs the plugin unless it failed too often, or no time is left; notes how that went.
    fn run<T>(
        &self,
        deadline: Instant,
        call: impl FnOnce() -> (Result<T, Fault>, Spent),
    ) -> (Result<T, (&'static str, String)>, Spent) {
        let now = Instant::now();
        if now >= deadline {
            // Others took the time: no fault of this one.
            return (Err(("late", "other policies left it no time".to_owned())), Spent::default());
        }
        if !self.breaker().admits(now) {
            return (Err((Fault::Rests.kind(), Fault::Rests.to_string())), Spent::default());
        }
        let (outcome, spent) = call();
        let high_water = self.history.high_water.fetch_max(spent.memory, Ordering::Relaxed).max(spent.memory);
        meters::spent(self.name(), &spent, high_water);
        match &outcome {
            Ok(_) => self.breaker().succeeded(Instant::now(), spent.share),
            Err(Fault::Rests) => {}
            // On a busy machine a loop ends so, too.
            Err(Fault::Late) if spent.share < LATE_BY_ITSELF => {}
            Err(fault) => self.failed(fault, &spent),
        }
        meters::circuit(self.name(), self.breaker().is_open());
        (outcome.map_err(|fault| (fault.kind(), fault.to_string())), spent)
    }

    fn failed(&self, fault: &Fault, spent: &Spent) {
        let (policy, error) = (self.name(), brief(&fault.to_string()));
        tracing::warn!(policy, digest = self.digest, kind = fault.kind(), error, "a policy failed");
        if self.breaker().failed(Instant::now(), spent.share) {
            // What it is still doing beside ends, too.
            self.history.rests.fetch_add(1, Ordering::Relaxed);
            tracing::error!(policy, digest = self.digest, error, "a policy fails again and again: it rests");
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.history.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plugin<Judge> {
    /// Whether it works at all.
    pub(crate) fn try_out(&self) -> anyhow::Result<()> {
        self.ask(&facts::canned(), crate::far()).0.map(drop).context("trying it on an ordinary image")
    }

    /// One call, whatever calls before it did.
    pub(crate) fn ask(&self, facts: &Facts, deadline: Instant) -> (Result<Verdict, Fault>, Spent) {
        let (outcome, spent) = self.guest.judge(&self.settings, facts, deadline);
        (outcome.and_then(sensible), spent)
    }

    pub(crate) fn judge(&self, facts: &Facts, deadline: Instant) -> Verdict {
        let (outcome, spent) = self.run(deadline, || self.ask(facts, deadline));
        let mut verdict = match outcome {
            Ok(verdict) => verdict,
            Err((kind, error)) => after_failure(self.config.on_failure.unwrap_or_default(), kind, &error),
        };
        verdict.policy = self.config.name.clone();
        verdict.version = brief(&self.about.version);
        verdict.digest = self.digest.clone();
        verdict.monitored = self.monitored();
        verdict.microseconds = u64::try_from(spent.time.as_micros()).unwrap_or(u64::MAX);
        meters::judged(&verdict);
        verdict
    }
}

impl Plugin<Planner> {
    pub(crate) fn try_out(&self) -> anyhow::Result<()> {
        let profile = plan::Profile { starts: 1, chunks: 3 };
        let (outcome, _) = self.ask(&facts::canned(), profile, crate::far());
        outcome.map(drop).context("trying it on an ordinary image")
    }

    /// One call, whatever calls before it did.
    pub(crate) fn ask(
        &self,
        facts: &Facts,
        profile: plan::Profile,
        deadline: Instant,
    ) -> (Result<PlanReply, Fault>, Spent) {
        let (outcome, spent) = self.guest.plan(&self.settings, facts, profile, deadline);
        (outcome.and_then(sensible_plan), spent)
    }

    /// After a failure the next policy plans.
    pub(crate) fn plan(
        &self,
        facts: &Facts,
        profile: plan::Profile,
        deadline: Instant,
    ) -> Result<PlanReply, Failure> {
        let (outcome, _) = self.run(deadline, || self.ask(facts, profile, deadline));
        meters::planned(self.name(), self.monitored(), outcome.as_ref().err().map(|(kind, _)| *kind));
        match outcome {
            Ok(plan) => Ok(PlanReply { policy: self.config.name.clone(), ..plan }),
            Err((kind, error)) => {
                Err(Failure { policy: self.config.name.clone(), kind, message: brief(&error) })
            }
        }
    }
}
