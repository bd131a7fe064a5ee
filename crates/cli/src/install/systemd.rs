//! systemctl, when the operator asked for it.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::process::Command;

/// A restart of containerd waits for its plugins, one of sluice for its state to be read.
const COMMAND_MAX: Duration = Duration::from_secs(180);

/// The services that are restarted.
pub const CONTAINERD: &str = "containerd";
pub const DOCKER: &str = "docker";

/// A command line, as it would be typed.
pub fn line(words: &[&str]) -> String {
    format!("systemctl {}", words.join(" "))
}

/// Runs it; what went wrong is in systemd's own words.
pub async fn run(words: &[&str]) -> anyhow::Result<()> {
    let line = line(words);
    let mut command = Command::new("systemctl");
    command.args(words).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(COMMAND_MAX, command.output()).await;
    let output = output.with_context(|| format!("{line}: not done after {COMMAND_MAX:?}"))?;
    let output = output.with_context(|| format!("start {line}"))?;
    if !output.status.success() {
        bail!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
