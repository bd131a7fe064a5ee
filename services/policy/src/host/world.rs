//! The two worlds, and a guest of one.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Instant;

use wasmtime::Store;
use wasmtime::component::{Component, HasSelf, InstancePre, Linker};

use super::bindings::eligibility::{Eligibility, EligibilityPre};
use super::bindings::prefetch::{Prefetch, PrefetchPre};
use super::bindings::{About, Facts, Problem, Setting, judge, plan};
use super::call::Spent;
use super::component::{self, Unusable};
use super::engine::Host;
use super::fault::Fault;
use super::state::State;

/// What the two worlds have in common.
pub(crate) trait World: Clone + Send + Sync + Sized + 'static {
    const NAME: &'static str;
    /// The interface that a guest exports, without its version.
    const EXPORT: &'static str;
    fn link(linker: &mut Linker<State>) -> wasmtime::Result<()>;
    fn of(linked: InstancePre<State>) -> wasmtime::Result<Self>;
    fn instantiate(&self, store: &mut Store<State>) -> wasmtime::Result<()>;
    fn component(&self) -> &Component;
    fn describe(&self, store: &mut Store<State>) -> wasmtime::Result<About>;
    fn check_settings(
        &self,
        store: &mut Store<State>,
        settings: &[Setting],
    ) -> wasmtime::Result<Result<(), Vec<Problem>>>;
}

#[derive(Clone)]
pub(crate) struct Judge(EligibilityPre<State>);

#[derive(Clone)]
pub(crate) struct Planner(PrefetchPre<State>);

impl World for Judge {
    const NAME: &'static str = "eligibility";
    const EXPORT: &'static str = "sluice:policy/judge";

    fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
        Eligibility::add_to_linker::<_, HasSelf<_>>(linker, |state| state)
    }

    fn of(linked: InstancePre<State>) -> wasmtime::Result<Judge> {
        EligibilityPre::new(linked).map(Judge)
    }

    fn instantiate(&self, store: &mut Store<State>) -> wasmtime::Result<()> {
        self.0.instantiate(store).map(drop)
    }

    fn component(&self) -> &Component {
        self.0.instance_pre().component()
    }

    fn describe(&self, store: &mut Store<State>) -> wasmtime::Result<About> {
        self.0.instantiate(&mut *store)?.sluice_policy_judge().call_describe(store)
    }

    fn check_settings(
        &self,
        store: &mut Store<State>,
        settings: &[Setting],
    ) -> wasmtime::Result<Result<(), Vec<Problem>>> {
        self.0.instantiate(&mut *store)?.sluice_policy_judge().call_check_settings(store, settings)
    }
}

impl World for Planner {
    const NAME: &'static str = "prefetch";
    const EXPORT: &'static str = "sluice:policy/plan";

    fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
        Prefetch::add_to_linker::<_, HasSelf<_>>(linker, |state| state)
    }

    fn of(linked: InstancePre<State>) -> wasmtime::Result<Planner> {
        PrefetchPre::new(linked).map(Planner)
    }

    fn instantiate(&self, store: &mut Store<State>) -> wasmtime::Result<()> {
        self.0.instantiate(store).map(drop)
    }

    fn component(&self) -> &Component {
        self.0.instance_pre().component()
    }

    fn describe(&self, store: &mut Store<State>) -> wasmtime::Result<About> {
        self.0.instantiate(&mut *store)?.sluice_policy_plan().call_describe(store)
    }

    fn check_settings(
        &self,
        store: &mut Store<State>,
        settings: &[Setting],
    ) -> wasmtime::Result<Result<(), Vec<Problem>>> {
        self.0.instantiate(&mut *store)?.sluice_policy_plan().call_check_settings(store, settings)
    }
}

/// A compiled plugin of one world. Cheap to clone; every call blocks its thread.
#[derive(Clone)]
pub(crate) struct Guest<W> {
    host: Host,
    /// By which logs name it.
    policy: Arc<str>,
    world: W,
    /// Of the component, in bytes.
    size: u64,
    ended: Arc<AtomicU32>,
}

/// What can be seen of a plugin from outside.
#[derive(Debug)]
pub(crate) struct Surface {
    /// The names of what it imports, and of what it exports.
    pub(crate) imports: Vec<String>,
    pub(crate) exports: Vec<String>,
    /// In bytes.
    pub(crate) size: u64,
}

impl<W: World> Guest<W> {
    pub(crate) fn load(host: &Host, policy: &str, bytes: &[u8]) -> Result<Guest<W>, Unusable> {
        let linked = component::load::<W>(&host.engine, bytes)?;
        let shape = |error: wasmtime::Error| Unusable::Shape { world: W::NAME, found: format!("{error:#}") };
        let world = W::of(linked).map_err(shape)?;
        Ok(Guest {
            host: host.clone(),
            policy: policy.into(),
            world,
            size: bytes.len() as u64,
            ended: Arc::default(),
        })
    }

    pub(crate) fn surface(&self) -> Surface {
        let (engine, shape) = (&self.host.engine, self.world.component().component_type());
        let imports = shape.imports(engine).map(|(name, _)| name.to_owned()).collect();
        let exports = shape.exports(engine).map(|(name, _)| name.to_owned()).collect();
        Surface { imports, exports, size: self.size }
    }

    /// The same plugin under another name.
    pub(crate) fn renamed(&self, policy: &str) -> Guest<W> {
        Guest { policy: policy.into(), ..self.clone() }
    }

    /// Calls that take long end when this number changes.
    pub(crate) fn ended_by(self, ended: Arc<AtomicU32>) -> Guest<W> {
        Guest { ended, ..self }
    }

    /// An instance, and no call: what every call pays first.
    pub(crate) fn instantiate(&self) -> (Result<(), Fault>, Spent) {
        self.run(crate::far(), |world, store| world.instantiate(store))
    }

    pub(crate) fn describe(&self) -> Result<About, Fault> {
        self.run(crate::far(), |world, store| world.describe(store)).0
    }

    pub(crate) fn check_settings(&self, settings: &[Setting]) -> Result<Vec<Problem>, Fault> {
        let outcome = self.run(crate::far(), |world, store| world.check_settings(store, settings)).0?;
        Ok(outcome.err().unwrap_or_default())
    }

    fn run<T>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&W, &mut Store<State>) -> wasmtime::Result<T>,
    ) -> (Result<T, Fault>, Spent) {
        self.host.run(&self.policy, deadline, self.ended.clone(), |store| work(&self.world, store))
    }
}

impl Guest<Judge> {
    pub(crate) fn judge(
        &self,
        settings: &[Setting],
        facts: &Facts,
        deadline: Instant,
    ) -> (Result<judge::Verdict, Fault>, Spent) {
        let (outcome, spent) = self.run(deadline, |world, store| {
            world.0.instantiate(&mut *store)?.sluice_policy_judge().call_judge(store, settings, facts)
        });
        (outcome.and_then(|own| own.map_err(Fault::Own)), spent)
    }
}

impl Guest<Planner> {
    pub(crate) fn plan(
        &self,
        settings: &[Setting],
        facts: &Facts,
        profile: plan::Profile,
        deadline: Instant,
    ) -> (Result<plan::PrefetchPlan, Fault>, Spent) {
        let (outcome, spent) = self.run(deadline, |world, store| {
            world.0.instantiate(&mut *store)?.sluice_policy_plan().call_plan(store, settings, facts, profile)
        });
        (outcome.and_then(|own| own.map_err(Fault::Own)), spent)
    }
}

impl std::fmt::Debug for Judge {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Judge")
    }
}

impl std::fmt::Debug for Planner {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Planner")
    }
}

impl<W> std::fmt::Debug for Guest<W> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Guest").field("policy", &self.policy).finish_non_exhaustive()
    }
}
