//! Programs that a comparison needs beside it: found, started, and ended with whoever owns them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::runtime::container::on_path;

/// How long a server may take until it answers, and how often it is tried.
const START: Duration = Duration::from_secs(30);
const START_POLL: Duration = Duration::from_millis(10);
/// How long a server may take to end when it is told to.
const END: Duration = Duration::from_secs(5);

/// A server in the background. Dropped, it is told to end, and killed if it does not.
#[derive(Debug)]
pub struct Server {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts `command` with its output in the file `log`.
    pub fn spawn(name: &str, mut command: Command, log: PathBuf) -> anyhow::Result<Server> {
        let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).kill_on_drop(true);
        // Not in our group: ctrl-c is ours to handle, in order.
        let child = command.process_group(0).spawn().with_context(|| format!("start {name}"))?;
        Ok(Server { name: name.to_owned(), child, log })
    }

    /// Waits until `answers` says so.
    pub async fn wait_until(&mut self, answers: impl AsyncFn() -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + START;
        while !answers().await {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}): {}", self.name, tail(&self.log));
            }
            if Instant::now() > deadline {
                bail!("{} does not answer: {}", self.name, tail(&self.log));
            }
            tokio::time::sleep(START_POLL).await;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(pid) = self.child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()))
        else {
            return;
        };
        let _gone_already = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let deadline = std::time::Instant::now() + END;
        while let Ok(None) = self.child.try_wait() {
            if std::time::Instant::now() > deadline {
                // The handle's own drop kills it.
                tracing::warn!(name = self.name, "does not end when told to; killed");
                return;
            }
            std::thread::sleep(START_POLL);
        }
    }
}

/// The program's path, or an error that says how to get it.
pub fn find(program: &str, package: &str) -> anyhow::Result<PathBuf> {
    on_path(Path::new(program))
        .with_context(|| format!("compare needs {program}: install it (apt-get install {package})"))
}

/// Runs a command to its end; what it printed to standard output, or an error with what it complained of.
pub async fn output(what: &str, command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output = output.with_context(|| format!("{what}: start {:?}", command.as_std().get_program()))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{what}: {}", last_lines(&errors));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn tail(log: &Path) -> String {
    last_lines(&String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()))
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(5)..].join("; ")
}
