//! The policy service from outside: over a bus, with real plugins.

mod builtin;
mod evolution;
mod harness;
mod hostile;
mod load;
mod refused;
mod sets;
