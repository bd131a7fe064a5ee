//! A user's machine in a folder: state, store and mount points, all gone at the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::binaries;

/// A folder in which `sluice` is run; dropping it unmounts and stops everything that it started.
#[derive(Debug)]
pub struct Scratch {
    folder: tempfile::TempDir,
}

impl Scratch {
    pub fn new() -> anyhow::Result<Scratch> {
        Ok(Scratch { folder: tempfile::Builder::new().prefix("sluice-test.").tempdir()? })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub fn store(&self) -> PathBuf {
        self.state().join("store")
    }

    /// An empty folder to mount at.
    pub fn mount_point(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// `sluice` with this folder's state.
    pub fn command<S: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<Command> {
        let mut command = binaries::command("sluice")?;
        command.arg("--state").arg(self.state()).args(arguments);
        Ok(command)
    }

    /// Runs `sluice ARGUMENTS`, whatever its end.
    pub fn run<S: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<Output> {
        self.command(arguments)?.output().context("running sluice")
    }

    /// Runs `sluice ARGUMENTS`, which must succeed; what it printed.
    pub fn succeed<S: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<String> {
        let output = self.run(arguments)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "sluice ended with {}: {errors}\n{}",
            output.status,
            self.node_log()
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs `sluice --json ARGUMENTS`, which must succeed; the parsed output.
    pub fn json<S: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<Value> {
        let mut command = self.command(["--json"])?;
        let output = command.args(arguments).output().context("running sluice --json")?;
        ensure!(output.status.success(), "sluice --json: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Runs `sluice ARGUMENTS`, which must fail with a message; the message.
    pub fn refuse<S: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<String> {
        let output = self.run(arguments)?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "sluice succeeded where it must refuse");
        ensure!(output.status.code().is_some(), "sluice was killed by a signal: {errors}");
        ensure!(!errors.contains("panicked"), "sluice panicked: {errors}");
        Ok(errors)
    }

    /// What the node's background process logged.
    pub fn node_log(&self) -> String {
        fs::read_to_string(self.state().join("serve.log")).unwrap_or_default()
    }

    /// SIGKILL to the node's background process.
    pub fn kill_node(&self) -> anyhow::Result<()> {
        ensure!(stop_processes_of(self.folder.path()) > 0, "no node runs");
        Ok(())
    }

    /// SIGKILL to all processes that name `path`, which is below this folder, on their command line.
    pub fn kill_processes(&self, path: &Path) -> anyhow::Result<()> {
        ensure!(path.starts_with(self.folder.path()), "{} is not ours", path.display());
        stop_processes_of(path);
        Ok(())
    }

    /// The process that holds the node's connection to the kernel.
    pub fn holder(&self) -> Option<Pid> {
        self.process("hold-fuse-connection")
    }

    /// The node that a command started in the background.
    pub fn background_node(&self) -> Option<Pid> {
        self.process("--detached")
    }

    /// One with this word, and this folder's state, on its command line.
    fn process(&self, word: &str) -> Option<Pid> {
        let state = self.state();
        let is_it = |id: &i32| {
            let line = fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
            line.contains(word) && line.contains(&*state.to_string_lossy())
        };
        let all = fs::read_dir("/proc").ok()?.flatten();
        let mut ids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        ids.find(is_it).and_then(Pid::from_raw)
    }

    /// Mounts below this folder, innermost last.
    pub fn mounts(&self) -> anyhow::Result<Vec<PathBuf>> {
        mounts_below(self.folder.path())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for mount in self.mounts().unwrap_or_default().into_iter().rev() {
            let _ = rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH);
        }
        stop_processes_of(self.folder.path());
        for mount in self.mounts().unwrap_or_default().into_iter().rev() {
            let _ = rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn mounts_below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(folder)).collect())
}

/// Kills the background processes that were started with this folder on their command line; how many.
fn stop_processes_of(folder: &Path) -> usize {
    let Ok(processes) = fs::read_dir("/proc") else { return 0 };
    let mut stopped = 0;
    let folder = folder.to_string_lossy();
    for process in processes.flatten() {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let is_ours = String::from_utf8_lossy(&line).contains(folder.as_ref());
        if let (true, Some(id)) = (is_ours && id != std::process::id() as i32, Pid::from_raw(id)) {
            stopped += usize::from(kill_process(id, Signal::KILL).is_ok());
        }
    }
    stopped
}
