//! The unit that `sluice install` writes, run by a real systemd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};
use system_tests::systemd::Systemd;
use system_tests::{Numbered, Scratch};
use testkit::LayoutWriter;

const UNIT: &str = "sluice.service";
const IMAGE: Numbered = Numbered { files: 40, len: 600_000, seed: 70 };
const KILLS: u64 = 3;
/// The connection to the kernel, and the sockets of the node and of its snapshotter.
const STORED: &str = "3";

/// An installed node, and an image mounted on it.
struct Installed {
    systemd: Systemd,
    root: PathBuf,
    scratch: Scratch,
}

impl Installed {
    fn new() -> anyhow::Result<Installed> {
        let scratch = Scratch::new()?;
        let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
        layout.image("app", &IMAGE.image()?)?;
        let units = scratch.mount_point("units")?;
        install(&scratch, &units)?;
        let systemd = Systemd::start(&scratch.mount_point("systemd")?, &units)?;
        // Returns when the node says that it is ready.
        systemd.systemctl(&["start", UNIT])?;
        let root = scratch.mount_point("root")?;
        let mut mount = scratch.command(["mount", &layout.reference("app")])?;
        let output = systemd.inside(mount.arg(&root)).output()?;
        ensure!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr));
        Ok(Installed { systemd, root, scratch })
    }

    /// A process that goes through some of the files, checking each.
    fn read(&self, numbers: std::ops::Range<u64>) -> anyhow::Result<Child> {
        let lists: Vec<String> = numbers.map(|number| format!("/sums/{number}")).collect();
        let script = format!("for list in {}; do sha256sum -c $list; sleep 0.1; done", lists.join(" "));
        let mut command = std::process::Command::new("chroot");
        command.arg(&self.root).args(["/bin/sh", "-euc", &script]);
        let mut reading = self.systemd.inside(&command);
        Ok(reading.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?)
    }

    /// SIGKILL to the node and to the process that holds its connection to the kernel.
    fn kill_all(&self) -> anyhow::Result<()> {
        let node = self.systemd.property(UNIT, "MainPID")?.parse().ok().and_then(Pid::from_raw);
        kill_process(node.context("no node runs")?, Signal::KILL)?;
        Ok(kill_process(self.scratch.holder().context("no holder runs")?, Signal::KILL)?)
    }

    fn stored(&self) -> anyhow::Result<String> {
        self.systemd.property(UNIT, "NFileDescriptorStore")
    }
}

/// Nothing arrives but what is read, so that all of it is read through our process.
fn install(scratch: &Scratch, units: &Path) -> anyhow::Result<()> {
    let containerd = scratch.path("containerd.toml");
    fs::write(&containerd, "version = 2\n")?;
    let mut install = scratch.command(["--set", "frontend.background=false", "--config"])?;
    install.arg(scratch.path("sluice.toml")).args(["install", "--containerd-config"]).arg(containerd);
    install.arg("--socket").arg(scratch.path("snapshotter.sock")).arg("--unit").arg(units.join(UNIT));
    let output = install.output()?;
    ensure!(output.status.success(), "install: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn end_well(reading: Child) -> anyhow::Result<()> {
    let output = reading.wait_with_output()?;
    ensure!(output.status.success(), "the reader failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn a_real_systemd_keeps_what_a_killed_node_needs() -> anyhow::Result<()> {
    let node = Installed::new()?;
    assert_eq!(node.stored()?, STORED);
    let reading = node.read(0..IMAGE.files / 2)?;
    for kill in 1..=KILLS {
        node.kill_all()?;
        node.systemd.settle(UNIT, "NRestarts", |restarts| restarts == kill.to_string())?;
        node.systemd.settle(UNIT, "ActiveState", |state| state == "active")?;
        assert_eq!(node.stored()?, STORED);
    }
    end_well(reading)?;
    // As `sluice install --restart` and an upgrade do it, and as an operator may.
    let reading = node.read(IMAGE.files / 2..IMAGE.files)?;
    node.systemd.systemctl(&["restart", UNIT])?;
    node.systemd.systemctl(&["stop", UNIT])?;
    node.systemd.systemctl(&["start", UNIT])?;
    end_well(reading)
}
