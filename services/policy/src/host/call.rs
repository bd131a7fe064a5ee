//! One call: a fresh instance, within its limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use wasmtime::{Store, UpdateDeadline};

use super::engine::{Host, TICK};
use super::fault::Fault;
use super::state::State;
use super::threads;

/// Resources that a guest may hold; the contract has none.
const HANDLES_MAX: usize = 16;

/// What a call used.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    pub(crate) time: Duration,
    /// Of a processor.
    pub(crate) cpu: Duration,
    /// The same as a part of what a call may use.
    pub(crate) share: f64,
    /// In bytes, at the most.
    pub(crate) memory: usize,
}

impl Host {
    /// Runs `work` in a store of its own until `deadline` at the latest, or, once it has taken a tick's time, until `ended` changes.
    /// Blocks the thread.
    ///
    /// Both clocks are looked at on every tick, from the instantiation on, as guests run code there too. What a guest may
    /// take is counted in processor time: a machine that is busy with something else is no failure of the guest. One that hands
    /// over too much is stopped by the fuel of host calls, before the host has allocated it.
    pub(super) fn run<T>(
        &self,
        policy: &Arc<str>,
        deadline: Instant,
        ended: Arc<AtomicU32>,
        work: impl FnOnce(&mut Store<State>) -> wasmtime::Result<T>,
    ) -> (Result<T, Fault>, Spent) {
        let mut store = Store::new(&self.engine, State::new(policy.clone(), self.limits.clone()));
        store.limiter(|state| &mut state.memory);
        store.set_hostcall_fuel(usize::try_from(self.limits.output.as_u64()).unwrap_or(usize::MAX));
        store.set_max_component_handles(HANDLES_MAX);
        let (began, cpu) = (Instant::now(), cpu_time());
        let (limit, at_first) = (self.limits.time, ended.load(Ordering::Relaxed));
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(move |mut store| {
            let used = cpu_time().saturating_sub(cpu);
            // Whoever merely runs when a tick comes is as quick as others.
            if used >= TICK {
                threads::slow_down();
            }
            // What took all that it may is to blame, however late it is.
            let fault = if used >= limit {
                Fault::Time(limit)
            } else if Instant::now() >= deadline {
                Fault::Late
            } else if used >= TICK && ended.load(Ordering::Relaxed) != at_first {
                Fault::Rests
            } else {
                return Ok(UpdateDeadline::Continue(1));
            };
            store.data_mut().ended = Some(fault);
            Ok(UpdateDeadline::Interrupt)
        });
        let outcome = work(&mut store).map_err(|error| Fault::of(&error, store.data()));
        let (time, cpu) = (began.elapsed(), cpu_time().saturating_sub(cpu));
        let share = cpu.as_secs_f64() / limit.as_secs_f64();
        (outcome, Spent { time, cpu, share, memory: store.data().memory.used() })
    }
}

/// Of this thread: a guest runs on one.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}
