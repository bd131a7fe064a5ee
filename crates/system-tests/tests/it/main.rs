//! The end-to-end tests: one binary, one file per promise.

mod bad_input;
mod detached;
mod equality;
mod faults;
mod healing;
mod journey;
mod kills;
mod mixed;
mod reboot;
mod restarts;
mod snapshotter;
mod surviving;
