//! The events service with everything real but those who receive: HTTP servers of these tests, which answer as receivers do on bad
//! days.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod cluster;
mod files;
mod harness;
mod kubernetes;
mod moody;
mod nats;
mod webhook;
