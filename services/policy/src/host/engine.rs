//! The engine, its pool and its clock.

use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::Limits;

/// How often guests look whether their time is over; those that run for longer than this give way to others.
pub(super) const TICK: Duration = Duration::from_millis(2);
/// Calls at the same time for each processor, where nothing is set: those that loop leave room for others.
const CALLS_PER_PROCESSOR: usize = 8;
/// And never more than this: each may have a memory of the size that is allowed.
const CALLS_MAX: usize = 64;
/// Places for a set that is being loaded beside all calls, one plugin after the other.
const LOADING: usize = 1;
/// Stack of a guest, in bytes.
const STACK_MAX: usize = 512 * 1024;
/// Of one instance: interpreters are linked of some forty modules, Rust and C guests are one.
const MODULES_MAX: u32 = 64;
const MEMORIES_MAX: u32 = 4;
const TABLES_MAX: u32 = 64;
const TABLE_ELEMENTS_MAX: usize = 100_000;
/// What wasmtime notes of one instance, in bytes.
const INSTANCE_SIZE_MAX: usize = 4 * 1024 * 1024;
/// Places for memories, at the least: a policy is fastest where its own memory was before, so that policies of a set should not
/// take each other's. Each takes address space; those that were used keep what is cleared by hand.
const MEMORIES_MIN: u32 = 100;
/// Of a memory and of a table, what is cleared by hand instead of by the kernel, in bytes: all of a small guest, which
/// then finds no page missing. Never by asking the kernel which pages were written (`pagemap_scan`): wasmtime 48 takes
/// those that are swapped out for clean, and the next call would find in them what this one left.
const MEMORY_KEPT: usize = 256 * 1024;
const TABLE_KEPT: usize = 64 * 1024;

/// What compiles and runs guests. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Host {
    pub(super) engine: Engine,
    pub(super) limits: Arc<Limits>,
    calls_at_once: usize,
    pooled: bool,
}

impl Host {
    /// Instances come from a pool where the machine has the address space for one.
    pub(crate) fn new(limits: Limits) -> anyhow::Result<Host> {
        limits.check()?;
        let calls_at_once = match limits.calls_at_once {
            0 => std::thread::available_parallelism()
                .map_or(1, NonZero::get)
                .saturating_mul(CALLS_PER_PROCESSOR)
                .min(CALLS_MAX),
            calls => calls,
        };
        let (engine, pooled) = match Engine::new(&config(Some(pool(&limits, calls_at_once)))) {
            Ok(engine) => (engine, true),
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "no pool for policy instances: each is mapped and unmapped by itself, which is slower"
                );
                let engine = Engine::new(&config(None)).map_err(|error| anyhow!("{error:#}"));
                (engine.context("starting the WebAssembly engine")?, false)
            }
        };
        start_ticker(&engine)?;
        Ok(Host { engine, limits: Arc::new(limits), calls_at_once, pooled })
    }

    /// How many guests may run at the same time: the pool has room for no more.
    pub(crate) fn calls_at_once(&self) -> usize {
        self.calls_at_once
    }

    pub(crate) fn is_pooled(&self) -> bool {
        self.pooled
    }
}

fn config(pool: Option<PoolingAllocationConfig>) -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .concurrency_support(false)
        .epoch_interruption(true)
        .max_wasm_stack(STACK_MAX)
        // The same facts give the same verdict, on every machine.
        .cranelift_nan_canonicalization(true)
        .wasm_relaxed_simd(false);
    if let Some(pool) = pool {
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    }
    config
}

fn pool(limits: &Limits, calls_at_once: usize) -> PoolingAllocationConfig {
    let calls = u32::try_from(calls_at_once.saturating_add(LOADING)).unwrap_or(u32::MAX);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(calls)
        .total_core_instances(calls.saturating_mul(MODULES_MAX))
        .total_memories(calls.saturating_mul(MEMORIES_MAX).max(MEMORIES_MIN))
        .total_tables(calls.saturating_mul(TABLES_MAX))
        .max_core_instances_per_component(MODULES_MAX)
        .max_memories_per_component(MEMORIES_MAX)
        .max_tables_per_component(TABLES_MAX)
        .max_tables_per_module(2)
        .max_memories_per_module(1)
        .max_component_instance_size(INSTANCE_SIZE_MAX)
        .max_core_instance_size(INSTANCE_SIZE_MAX)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_memory_size(usize::try_from(limits.memory.as_u64()).unwrap_or(usize::MAX))
        .linear_memory_keep_resident(MEMORY_KEPT)
        .table_keep_resident(TABLE_KEPT)
        .pagemap_scan(Enabled::No);
    pool
}

/// The engine's clock: one thread, from the first moment on and for every guest, as without ticks no time would ever be over.
/// It ends with the engine.
fn start_ticker(engine: &Engine) -> anyhow::Result<()> {
    let engine = engine.weak();
    let tick = move || {
        while let Some(engine) = engine.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::sleep(TICK);
        }
    };
    std::thread::Builder::new()
        .name("policy-ticker".to_owned())
        .spawn(tick)
        .context("starting the ticker")?;
    Ok(())
}

impl std::fmt::Debug for Host {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = formatter.debug_struct("Host");
        debug
            .field("calls_at_once", &self.calls_at_once)
            .field("pooled", &self.pooled)
            .finish_non_exhaustive()
    }
}
