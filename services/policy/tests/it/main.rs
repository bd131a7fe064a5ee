//! The policy service from outside: over a bus, with real plugins.

mod builtin;
mod harness;
mod hostile;
mod load;
mod refused;
mod sets;
