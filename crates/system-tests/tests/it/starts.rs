//! How a frontend starts and ends under containers: what hinders neither, and what is waited for.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};

use system_tests::Numbered;
use system_tests::cri::Cri;
use system_tests::kubernetes::{Node, Options};

const FILES: u64 = 8;

/// A node on which nothing arrives but what is read, and a container that has read nothing yet.
struct Running {
    node: Node,
    options: Options,
    numbered: Numbered,
    container: String,
}

impl Running {
    fn start(seed: u64) -> anyhow::Result<Running> {
        // A pull waits for a fetcher that does not answer for longer than a test may take.
        let settings =
            ["frontend.background=false", "frontend.resolve_timeout=10m"].map(str::to_owned).into();
        let options = Options { services: true, settings, ..Options::default() };
        let node = Node::start(&options)?;
        let numbered = Numbered { files: FILES, len: 600_000, seed };
        let image = numbered.pull(&node, "app")?;
        let pod = node.cri.pod("one")?;
        let container = node.cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;
        Ok(Running { node, options, numbered, container })
    }

    fn state(&self, name: &str) -> PathBuf {
        self.node.scratch().path("state").join(name)
    }

    fn reads_on(&self, numbers: std::ops::Range<u64>) -> anyhow::Result<()> {
        self.numbered.read_inside(&self.node, &self.container, numbers)
    }
}

#[test]
fn a_pull_that_waits_does_not_hold_up_the_end() -> anyhow::Result<()> {
    let mut running = Running::start(40)?;
    let other = Numbered { files: 1, len: 1000, seed: 41 };
    let image = running.node.push("other", &other.image()?)?;
    let fetcher = running.node.backend()?.fetcher.server.id();
    let fetcher = Pid::from_raw(fetcher as i32).context("the fetcher's process id")?;
    kill_process(fetcher, Signal::STOP)?;
    let cri = Cri::connect(&running.node.containerd.socket())?;
    let asked = image.clone();
    let pulling = thread::spawn(move || cri.pull(&asked));
    // Long enough for the pull to wait for the fetcher; not so long that it is given up.
    thread::sleep(Duration::from_secs(1));
    running.node.sluice.end()?;
    let log = running.node.sluice.log();
    assert!(!log.contains("not drained"), "{log}");
    kill_process(fetcher, Signal::CONT)?;
    running.node.restart_sluice(&running.options)?;
    running.reads_on(0..FILES)?;
    // Cut off, or answered by the next frontend; never an ordinary pull for want of one.
    pulling.join().map_err(|_| anyhow::anyhow!("the pull panicked"))?.ok();
    running.node.cri.pull(&image)?;
    let status = running.node.status()?;
    let streams = |name: &str| status["images"].to_string().contains(name);
    assert!(streams("/other"), "{status}");
    Ok(())
}

#[test]
fn an_image_that_cannot_be_opened_at_the_start_is_waited_for() -> anyhow::Result<()> {
    let mut running = Running::start(42)?;
    running.reads_on(0..1)?;
    running.node.sluice.kill()?;
    running.node.backend()?.kill()?;
    // Only the mesh has it now, and that is away.
    fs::remove_dir_all(running.state("maps"))?;
    running.node.restart_sluice(&running.options)?;
    assert!(running.node.sluice.log().contains("was not opened in time"), "{}", running.node.sluice.log());
    let (root, numbered) = (running.node.root_of(&running.container), running.numbered.clone());
    let reading = thread::spawn(move || numbered.read(&root, 1..FILES));
    let node = &mut running.node;
    thread::sleep(Duration::from_millis(500));
    assert!(!reading.is_finished(), "a read ended that nobody can serve");
    // The end of this frontend tells it nothing, either.
    node.sluice.end()?;
    node.restart_sluice(&running.options)?;
    let node = &mut running.node;
    assert!(!reading.is_finished(), "a read ended with a frontend that waited itself");
    node.backend()?.restart()?;
    reading.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    Ok(())
}

#[test]
fn nothing_in_the_state_folder_stops_a_start() -> anyhow::Result<()> {
    let mut running = Running::start(43)?;
    running.node.sluice.kill()?;
    for stray in [
        "records/stray",
        "objects/stray",
        "trees/stray",
        "maps/stray",
        "incoming/stray/file",
        "partial/a.have",
    ] {
        let path = running.state(stray);
        fs::create_dir_all(path.parent().context("a parent")?)?;
        fs::write(path, b"stray")?;
    }
    fs::write(running.state(&format!("records/{}", "a".repeat(64))), b"no record")?;
    // What a forgotten snapshot left, and cannot be removed.
    let stuck = running.state("snapshots/900/fs");
    fs::create_dir_all(&stuck)?;
    fs::create_dir_all(running.state("snapshots/901/fs"))?;
    mount("tmpfs", &stuck, "tmpfs", MountFlags::empty(), None)?;
    let started = running.node.restart_sluice(&running.options).and_then(|()| running.reads_on(0..FILES / 2));
    unmount(&stuck, UnmountFlags::DETACH)?;
    started?;
    let log = running.node.sluice.log();
    assert!(log.contains("the folder of a forgotten snapshot stays"), "{log}");
    assert!(!running.state("snapshots/901").exists(), "one that stays keeps the others");
    // As after a loss of power: everything is checked again.
    running.node.sluice.kill()?;
    fs::write(running.state("synced"), "another boot\n0\n")?;
    running.node.restart_sluice(&running.options)?;
    running.reads_on(FILES / 2..FILES)
}

#[test]
fn a_damaged_ledger_takes_nothing_from_a_container_that_runs() -> anyhow::Result<()> {
    let mut running = Running::start(44)?;
    let upper = running.state("snapshots");
    let folders = fs::read_dir(&upper)?.count();
    for _ in 0..2 {
        running.node.sluice.kill()?;
        fs::write(running.state("snapshots.redb"), vec![7; 10_000])?;
        running.node.restart_sluice(&running.options)?;
        assert!(running.state("snapshots.redb.damaged").exists());
    }
    running.reads_on(0..FILES)?;
    running
        .node
        .cri
        .exec(&running.container, &["/bin/sh", "-euc", "echo more >> /data/1; sha256sum /data/1"])?;
    assert_eq!(fs::read_dir(&upper)?.count(), folders, "folders of the container are gone");
    // And what is pulled from now on streams as ever.
    let spec = testkit::ImageSpec::new([testkit::Tarball::new().file("only", b"here").finish()]);
    let image = running.node.push("other", &spec)?;
    running.node.cri.pull(&image)?;
    assert!(running.node.status()?["images"].to_string().contains("/other"));
    Ok(())
}
