//! Attends to a container from its start to its end: signals go in, and the end comes at last.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;

use super::detached;
use crate::progress::Progress;
use crate::runtime::signals::Caught;
use crate::runtime::stopping::{Step, Stopping};
use crate::runtime::{Container, Runtime};

/// How long the runtime may take to notice that its container was killed.
const KILLED_MAX: Duration = Duration::from_secs(5);
/// How often is looked whether a container has started.
const STARTED_POLL: Duration = Duration::from_millis(5);

/// How a container ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub status: ExitStatus,
    /// By us, because it did not end when it was told to.
    pub killed: bool,
}

/// What differs when nobody listens.
#[derive(Debug)]
pub(super) struct Detached {
    /// SIGTERM is the wish to end the container, and this its own signal for that.
    pub stop_signal: i32,
    /// What there is to say goes here, once the container runs.
    pub log: PathBuf,
}

/// A container and those who have to do with it.
#[derive(Debug)]
pub(super) struct Attended<'a> {
    pub runtime: &'a Runtime,
    pub id: &'a str,
    pub progress: &'a Progress,
    /// It has a terminal, which tells it of its size.
    pub terminal: bool,
    pub detached: Option<Detached>,
    pub grace: Duration,
    /// Standard input was a terminal when this began.
    pub reads_terminal: bool,
    /// The runtime is in our process group: keys of the terminal reach it without us.
    pub shares_group: bool,
}

impl Attended<'_> {
    /// Until the end of `process`, the runtime in the foreground.
    pub(super) async fn until_end(
        &self,
        container: &Container,
        process: &mut Child,
        caught: &mut Caught,
    ) -> anyhow::Result<Ended> {
        let runtime = process.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let mut stopping = Stopping::new(self.grace);
        let mut told = self.detached.is_none();
        loop {
            tokio::select! {
                status = process.wait() => {
                    let status = status.context("wait for the container")?;
                    return Ok(Ended { status, killed: false });
                }
                signal = caught.next() => match stopping.on(signal) {
                    Step::Kill => return self.kill(process).await,
                    Step::PassOnAndWarn => {
                        self.progress.note("the container goes on; once more kills it");
                        self.pass_on(signal, runtime, &mut stopping).await;
                    }
                    Step::PassOn => self.pass_on(signal, runtime, &mut stopping).await,
                },
                () = stopping.overdue() => {
                    self.progress.note(&format!("the container has not ended within {:?}: killed", self.grace));
                    return self.kill(process).await;
                }
                () = started(container), if !told => {
                    told = true;
                    if let Some(detached) = &self.detached {
                        detached::report(self.id, &detached.log)?;
                    }
                }
            }
        }
    }

    async fn pass_on(&self, signal: i32, runtime: Option<Pid>, stopping: &mut Stopping) {
        let mut signal = signal;
        if signal == Signal::HUP.as_raw() && self.hung_up() {
            // Nobody is there any more who could end it.
            stopping.end();
        }
        if let (Some(detached), true) = (&self.detached, signal == Signal::TERM.as_raw()) {
            signal = detached.stop_signal;
        }
        let key = signal == Signal::INT.as_raw() || signal == Signal::QUIT.as_raw();
        if key && self.shares_group && !self.terminal {
            return;
        }
        let resizes = signal == Signal::WINCH.as_raw();
        if resizes && (self.terminal || self.shares_group) {
            // Of our terminal. A service may take it for the wish to end: Apache does.
            return;
        }
        // The runtime passes on what it gets, but the size of a terminal is its own affair, and few know real-time signals.
        let passed = match (Signal::from_named_raw(signal), runtime) {
            (Some(named), Some(runtime)) if !resizes => kill_process(runtime, named).map_err(Into::into),
            _ => self.runtime.signal(self.id, signal).await,
        };
        if let Err(error) = passed {
            tracing::debug!(error = %format!("{error:#}"), signal, "pass a signal on");
        }
    }

    fn hung_up(&self) -> bool {
        self.reads_terminal && rustix::termios::tcgetattr(rustix::stdio::stdin()).is_err()
    }

    async fn kill(&self, process: &mut Child) -> anyhow::Result<Ended> {
        if let Err(error) = self.runtime.signal(self.id, Signal::KILL.as_raw()).await {
            tracing::debug!(error = %format!("{error:#}"), "kill the container");
        }
        let ended = tokio::time::timeout(KILLED_MAX, process.wait()).await;
        let status = match ended {
            Ok(status) => status,
            // It had not come to the container's start. What it left is deleted with the container.
            Err(_) => {
                process.start_kill().context("kill the runtime")?;
                process.wait().await
            }
        };
        Ok(Ended { status: status.context("wait for the container")?, killed: true })
    }
}

async fn started(container: &Container) {
    while !container.pid_file().exists() {
        tokio::time::sleep(STARTED_POLL).await;
    }
}
