//! The policy service from outside: over a bus, with real plugins.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod builtin;
mod evolution;
mod harness;
mod hostile;
mod hostile_planners;
mod recorded;
mod refused;
mod registry;
mod reloads;
mod sets;
mod signed;
mod trial;
