//! A server process that ends with the value that stands for it.

use std::fs::File;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// How long a server may take until it answers; generous, as two cores may be busy with a build.
const START_MAX: Duration = Duration::from_secs(30);
/// How long one may take to end when it is asked to.
const END_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A running server and its log file.
#[derive(Debug)]
pub struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts `command` with its output in `log`. Name the Debian package that has it in `hint`.
    pub fn spawn(mut command: Command, log: &Path, hint: &str) -> anyhow::Result<Server> {
        let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {:?} ({hint})", command.get_program()))?;
        Ok(Server { child, log: log.to_owned() })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `ready` says so; fails when the process ended or took too long, with its log.
    pub fn wait_until(&mut self, what: &str, mut ready: impl FnMut() -> bool) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            // Asked before its end is looked for: what answers for one that ended is another's.
            let ready = ready();
            if let Some(status) = self.child.try_wait()? {
                bail!("{what}: ended with {status}; its log:\n{}", self.log());
            }
            if ready {
                return Ok(());
            }
            if started.elapsed() > START_MAX {
                bail!("{what}: not ready after {START_MAX:?}; its log:\n{}", self.log());
            }
            sleep(POLL);
        }
    }

    /// Waits until the process listens on the loopback `port`.
    pub fn wait_for_port(&mut self, what: &str, port: u16) -> anyhow::Result<()> {
        self.wait_until(what, || TcpStream::connect(("127.0.0.1", port)).is_ok())
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGTERM, and waits, bounded, until the process ended by itself.
    pub fn end(&mut self) -> anyhow::Result<()> {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM)?;
        let asked = Instant::now();
        while self.child.try_wait()?.is_none() {
            if asked.elapsed() > END_MAX {
                bail!("not ended {END_MAX:?} after SIGTERM; its log:\n{}", self.log());
            }
            sleep(POLL);
        }
        Ok(())
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
