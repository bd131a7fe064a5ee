//! A process that gets signals: alone in its binary, as signals reach the whole process.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::Command;
use std::time::Duration;

use lifecycle::Config;

fn signal_self(signal: &str) {
    // The shell's own: the program is not on every machine.
    let kill = format!("kill {signal} {}", std::process::id());
    let status = Command::new("sh").args(["-c", &kill]).status().unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn the_first_signal_drains_and_the_second_ends() {
    let service = lifecycle::start("test", &Config::default()).await.unwrap();
    service.spawn("stuck", std::future::pending());
    let (shutdown, ready) = (service.shutdown.clone(), service.ready.clone());
    let running = tokio::spawn(service.run());

    while ready.check().is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    signal_self("-TERM");
    shutdown.cancelled().await;
    assert_eq!(ready.check(), Err("shutting down".to_owned()));
    assert!(!running.is_finished());

    signal_self("-INT");
    let error = running.await.unwrap().unwrap_err().to_string();
    assert_eq!(error, "ended by a second SIGINT; still running: stuck");
}
