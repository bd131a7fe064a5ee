//! The umask, which a process has one of: a process of its own.

#![allow(clippy::unwrap_used, reason = "a test")]

use rustix::fs::Mode;

#[tokio::test]
async fn a_service_makes_nothing_for_everybody_and_a_stricter_umask_stays() {
    let started = || async { lifecycle::start("test", &lifecycle::Config::default()).await.unwrap() };
    rustix::process::umask(Mode::from_raw_mode(0o022));
    started().await;
    assert_eq!(rustix::process::umask(Mode::from_raw_mode(0o070)), Mode::from_raw_mode(0o027));
    started().await;
    assert_eq!(rustix::process::umask(Mode::empty()), Mode::from_raw_mode(0o077));
}
