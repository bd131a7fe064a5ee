//! Runs WebAssembly components: the one place that knows wasmtime.
//!
//! ```text
//! bytes --component--> checked imports and exports, compiled, linked --call--> a fresh instance, one call, thrown away
//! ```
//!
//! Nothing of a guest outlives its call, so one call cannot disturb another. A guest is bounded in memory, time, stack, output
//! and log lines; it imports a log function and nothing else, so it cannot wait for anything.
//!
//! No compiled code is kept on disk: what is loaded is always compiled here, from the very bytes whose digest was checked. A Rust
//! policy compiles in some milliseconds, and a file that is trusted without a check is native code of somebody else.

mod bindings;
mod call;
mod component;
mod engine;
mod fault;
mod state;
mod threads;
mod world;

#[cfg(test)]
pub(crate) use bindings::known_setting;
pub(crate) use bindings::{About, Facts, Kind, KnownSetting, Problem, Setting, Value, facts, judge, plan};
pub(crate) use call::Spent;
pub(crate) use component::Unusable;
pub(crate) use engine::Host;
pub(crate) use fault::Fault;
pub(crate) use threads::Threads;
pub(crate) use world::{Guest, Judge, Planner, Surface, World};
