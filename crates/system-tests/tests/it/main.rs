//! The end-to-end tests: one binary, one file per promise.

mod authors;
mod bad_input;
mod budget;
mod changes;
mod cosign;
mod credentials;
mod detached;
mod equality;
mod events;
mod faults;
mod healing;
mod install;
mod journey;
mod kills;
mod many;
mod mixed;
mod policies;
mod policy_registry;
mod reboot;
mod recording;
mod restarts;
mod snapshotter;
mod surviving;
mod systemd;
mod versions;
