//! The fetcher over an in-process bus, with real layouts, a real registry and a real folder store.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod access;
mod bad;
mod collection;
mod good;
mod harness;
mod judged;
mod push;
mod rechecks;
mod records;
