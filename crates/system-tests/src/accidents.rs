//! What happens to whole nodes.

use std::thread::sleep;
use std::time::Instant;

use anyhow::Context as _;
use rustix::process::{Signal, kill_process};

use crate::kubernetes::{Node, Options, SETTLE_MAX, SETTLE_POLL, connect};

impl Node {
    /// SIGKILL to the process that holds the connection to the kernel; returns when another one took its place.
    pub fn kill_holder(&self) -> anyhow::Result<()> {
        let before = self.scratch().holder().context("no holder runs")?;
        kill_process(before, Signal::KILL)?;
        let killed = Instant::now();
        while self.scratch().holder().is_none_or(|now| now == before) {
            anyhow::ensure!(killed.elapsed() < SETTLE_MAX, "no other holder was started");
            sleep(SETTLE_POLL);
        }
        Ok(())
    }

    /// SIGKILL to the frontend and to the holder: nothing of ours runs on the node.
    pub fn kill_all(&mut self) -> anyhow::Result<()> {
        self.sluice.kill()?;
        let holder = self.scratch().holder().context("no holder runs")?;
        kill_process(holder, Signal::KILL)?;
        let killed = Instant::now();
        while self.scratch().holder().is_some() {
            anyhow::ensure!(killed.elapsed() < SETTLE_MAX, "the holder does not end");
            sleep(SETTLE_POLL);
        }
        Ok(())
    }

    /// Everything on the node ends at once, its mounts and what stood in `/run` go, and the disk stays: what a machine that
    /// was switched off finds. The services behind it go on.
    pub fn reboot(&mut self, options: &Options) -> anyhow::Result<()> {
        let containers = self.processes()?;
        self.containerd.kill()?;
        self.scratch().kill_processes(&self.containerd.state())?;
        self.scratch().kill_processes(&self.containerd.socket())?;
        for (_, process) in containers {
            // The first of a container: the kernel ends the others with it.
            kill_process(process, Signal::KILL).ok();
        }
        self.kill_all()?;
        for mount in self.scratch().mounts()?.into_iter().rev() {
            rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH)?;
        }
        std::fs::remove_dir_all(self.containerd.state())?;
        for socket in [self.scratch().path("snapshotter.sock"), self.scratch().state().join("node.sock")] {
            std::fs::remove_file(socket)?;
        }
        self.sluice = self.serve(options)?;
        self.containerd.restart()?;
        self.cri = connect(self.scratch(), &self.containerd, options)?;
        Ok(())
    }
}
