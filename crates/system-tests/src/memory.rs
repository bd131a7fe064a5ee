//! A bound on the memory of a process, as systemd or Kubernetes sets one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context as _;

/// Where the controller stands: of version 1 by itself, of version 2 with all others.
const V1: &str = "/sys/fs/cgroup/memory";
const V2: &str = "/sys/fs/cgroup";

/// A control group; gone when dropped, if nothing runs in it any more.
#[derive(Debug)]
pub struct MemoryLimit {
    folder: PathBuf,
    v2: bool,
}

impl MemoryLimit {
    pub fn new(bytes: u64) -> anyhow::Result<MemoryLimit> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let v2 = !Path::new(V1).join("memory.limit_in_bytes").exists();
        let name = format!("sluice-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = Path::new(if v2 { V2 } else { V1 }).join(name);
        fs::create_dir(&folder).with_context(|| format!("making the control group {}", folder.display()))?;
        let limit = MemoryLimit { folder, v2 };
        let file = if v2 { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(limit.folder.join(file), bytes.to_string()).context("limiting memory")?;
        Ok(limit)
    }

    /// The same command, within the limit from its first moment.
    pub fn wrap(&self, command: &Command) -> Command {
        let mut wrapped = Command::new("/bin/sh");
        wrapped.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(self.folder.join("cgroup.procs"));
        wrapped.arg(command.get_program()).args(command.get_args());
        wrapped
    }

    /// Processes that the kernel ended because of the limit.
    pub fn killed(&self) -> anyhow::Result<u64> {
        let file = if self.v2 { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.folder.join(file))?;
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(line.with_context(|| format!("{file} says nothing of kills: {text}"))?.trim().parse()?)
    }

    /// Bytes that cannot be given back at will: of processes, not of files. Of now.
    pub fn anonymous(&self) -> anyhow::Result<u64> {
        let text = fs::read_to_string(self.folder.join("memory.stat"))?;
        let name = if self.v2 { "anon " } else { "total_rss " };
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.context("memory.stat says nothing of processes")?.trim().parse()?)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // Refused while a process is left in it: then it stays, and says so by its name.
        let _ = fs::remove_dir(&self.folder);
    }
}
