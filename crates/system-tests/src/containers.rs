//! What the containers and snapshots of a node are to the kernel: processes, and what is mounted as their roots.

use std::path::PathBuf;

use anyhow::Context as _;
use rustix::mount::MountFlags;
use rustix::process::Pid;

use crate::builders::shell;
use crate::kubernetes::Node;

const VIEW_ATTEMPTS: usize = 5;

impl Node {
    /// The root file system of a container, as its shim mounted it.
    pub fn root_of(&self, container: &str) -> PathBuf {
        self.containerd.state().join("io.containerd.runtime.v2.task/k8s.io").join(container).join("rootfs")
    }

    /// The first process of a container.
    pub fn process_of(&self, container: &str) -> anyhow::Result<Pid> {
        let found = self.processes()?.into_iter().find(|(id, _)| id == container);
        Ok(found.with_context(|| format!("{container} does not run"))?.1)
    }

    /// What stands below a container's root, from the top, as the kernel says it to the container.
    pub fn lower_of(&self, container: &str) -> anyhow::Result<Vec<PathBuf>> {
        let process = self.process_of(container)?.as_raw_nonzero();
        let table = std::fs::read_to_string(format!("/proc/{process}/mountinfo"))?;
        let line = table.lines().find(|line| line.split(' ').nth(4) == Some("/")).context("no root")?;
        let (_, told) = line.split_once(" - ").with_context(|| line.to_owned())?;
        anyhow::ensure!(told.starts_with("overlay "), "no overlay: {line}");
        let options = told.rsplit(' ').next().unwrap_or_default();
        let lower = options.split(',').find_map(|option| option.strip_prefix("lowerdir="));
        Ok(lower.with_context(|| line.to_owned())?.split(':').map(PathBuf::from).collect())
    }

    /// `ctr snapshots ARGUMENTS`, which must succeed; what it printed.
    pub fn snapshots(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.containerd.ctr(&[["snapshots"].as_slice(), arguments].concat())
    }

    /// A snapshot for reading, which stays. `ctr` gives one to nobody, and containerd collects what is nobody's when it likes.
    pub fn view(&self, key: &str, parent: &str) -> anyhow::Result<()> {
        for _ in 0..VIEW_ATTEMPTS {
            self.snapshots(&["view", key, parent])?;
            if self.snapshots(&["label", key, "containerd.io/gc.root=test"]).is_ok() {
                return Ok(());
            }
        }
        anyhow::bail!("the view {key} was collected {VIEW_ATTEMPTS} times")
    }

    /// Mounts a snapshot as containerd says; unmounted with the node.
    pub fn mount_snapshot(&self, key: &str) -> anyhow::Result<PathBuf> {
        self.mount_snapshot_with(key, "")
    }

    /// The same with more options, each of them with a comma.
    pub fn mount_snapshot_with(&self, key: &str, options: &str) -> anyhow::Result<PathBuf> {
        let target = self.scratch().mount_point(&format!("at-{key}"))?;
        let command = self.snapshots(&["mounts", &target.to_string_lossy(), key])?;
        let more = format!(" -o {options}");
        anyhow::ensure!(options.is_empty() || command.contains(" -o "), "no options: {command}");
        shell(&target, &command.replacen(" -o ", &more, 1))?;
        Ok(target)
    }

    /// Requests to our file system that are not answered yet, as the kernel counts them: it can be asked while nobody serves.
    pub fn requests_waiting(&self) -> anyhow::Result<u64> {
        let remote = self.scratch().state().join("mnt/remote");
        let table = std::fs::read_to_string("/proc/self/mountinfo")?;
        let mut lines = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let line = lines.find(|words| words.get(4) == remote.to_str().as_ref()).context("nothing streams")?;
        let (_, connection) = line[2].split_once(':').context("a device")?;
        // Where a machine has it mounted is its own affair.
        let control = self.scratch().mount_point("fuse-control")?;
        if !control.join(connection).exists() {
            let none = MountFlags::empty();
            rustix::mount::mount("fusectl", &control, "fusectl", none, None).context("mounting fusectl")?;
        }
        Ok(std::fs::read_to_string(control.join(connection).join("waiting"))?.trim().parse()?)
    }

    /// All containers that run, by id, with their first processes.
    pub(crate) fn processes(&self) -> anyhow::Result<Vec<(String, Pid)>> {
        let table = self.containerd.ctr(&["tasks", "list"])?;
        let parse = |line: &str| {
            let mut words = line.split_whitespace();
            Some((words.next()?.to_owned(), Pid::from_raw(words.next()?.parse().ok()?)?))
        };
        Ok(table.lines().filter_map(parse).collect())
    }
}
