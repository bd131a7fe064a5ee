//! A real systemd, for one test: as a user's service manager it is the same program with the same units, and needs no boot.
//!
//! It believes that it may run where `/run/systemd/system` is, so it gets a mount namespace in which that is so. What its services
//! mount is there and nowhere else: look at it by [`Systemd::inside`].

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use testkit::Server;

const SCRIPT: &str =
    "mount -t tmpfs none /run/systemd && mkdir /run/systemd/system && exec /lib/systemd/systemd --user";
/// How long a unit may take to become what it should be.
const SETTLE_MAX: Duration = Duration::from_secs(60);
const SETTLE_POLL: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub struct Systemd {
    server: Server,
    runtime: PathBuf,
}

impl Systemd {
    /// One that knows the units in `units`. `folder` is for its own files.
    pub fn start(folder: &Path, units: &Path) -> anyhow::Result<Systemd> {
        std::fs::create_dir_all("/run/systemd")?;
        let (runtime, own) = (folder.join("runtime"), folder.join("units"));
        std::fs::create_dir_all(&runtime)?;
        std::fs::create_dir_all(&own)?;
        // Nothing of what a user's login would start.
        std::fs::write(own.join("default.target"), "[Unit]\nDescription=nothing\n")?;
        // At the empty place stand systemd's own units.
        let path = format!("{}:{}:", units.display(), own.display());
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "slave", "sh", "-euc", SCRIPT]);
        command.env("XDG_RUNTIME_DIR", &runtime).env("SYSTEMD_UNIT_PATH", path);
        let mut server = Server::spawn(command, &folder.join("systemd.log"), "Debian's package `systemd`")?;
        let socket = runtime.join("systemd/private");
        server.wait_until("systemd", || std::os::unix::net::UnixStream::connect(&socket).is_ok())?;
        Ok(Systemd { server, runtime })
    }

    /// `systemctl WORDS`; what it printed.
    pub fn systemctl(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("systemctl");
        command.arg("--user").args(words).env("XDG_RUNTIME_DIR", &self.runtime);
        let output = command.output().context("running systemctl")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "systemctl {words:?}: {errors}{}", self.server.log());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What systemd says of a unit.
    pub fn property(&self, unit: &str, name: &str) -> anyhow::Result<String> {
        Ok(self.systemctl(&["show", "--property", name, "--value", unit])?.trim().to_owned())
    }

    /// Waits, bounded, until a property of a unit is as wanted.
    pub fn settle(&self, unit: &str, name: &str, wanted: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        let asked = Instant::now();
        loop {
            let value = self.property(unit, name)?;
            if wanted(&value) {
                return Ok(value);
            }
            ensure!(asked.elapsed() < SETTLE_MAX, "{name} of {unit} is {value:?}");
            sleep(SETTLE_POLL);
        }
    }

    /// The same command, where the services and their mounts are.
    pub fn inside(&self, command: &Command) -> Command {
        let mut entered = Command::new("nsenter");
        entered.arg(format!("--mount=/proc/{}/ns/mnt", self.server.id())).arg("--");
        entered.arg(command.get_program()).args(command.get_args());
        entered
    }
}

impl Drop for Systemd {
    /// Asked to end, it ends its services; their cgroups go with it.
    fn drop(&mut self) {
        let _ = self.systemctl(&["exit"]);
        let _ = self.server.end();
    }
}
