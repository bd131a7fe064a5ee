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
use system_tests::kubernetes::Options;

use crate::reading::{BATCH, Reading};

/// In the state folder.
fn state(reading: &Reading, name: &str) -> PathBuf {
    reading.node.scratch().path("state").join(name)
}

#[test]
fn a_pull_that_waits_does_not_hold_up_the_end() -> anyhow::Result<()> {
    // A pull waits for a fetcher that does not answer for longer than a test may take.
    let settings = vec!["frontend.resolve_timeout=10m".to_owned()];
    let mut reading = Reading::start_on(1, Options { settings, ..Options::default() })?;
    let other = Numbered { files: 1, len: 1000, seed: 41 };
    let image = reading.node.push("other", &other.image()?)?;
    let fetcher = reading.node.backend()?.fetcher.server.id();
    let fetcher = Pid::from_raw(fetcher as i32).context("the fetcher's process id")?;
    kill_process(fetcher, Signal::STOP)?;
    let cri = Cri::connect(&reading.node.containerd.socket())?;
    let asked = image.clone();
    let pulling = thread::spawn(move || cri.pull(&asked));
    // Long enough for the pull to wait for the fetcher; not so long that it is given up.
    thread::sleep(Duration::from_secs(1));
    reading.node.sluice.end()?;
    let log = reading.node.sluice.log();
    assert!(!log.contains("not drained"), "{log}");
    kill_process(fetcher, Signal::CONT)?;
    reading.node.restart_sluice(&reading.options)?;
    reading.reads_on(0..BATCH)?;
    // Cut off, or answered by the next frontend; never an ordinary pull for want of one.
    pulling.join().map_err(|_| anyhow::anyhow!("the pull panicked"))?.ok();
    reading.node.cri.pull(&image)?;
    let status = reading.node.status()?;
    let streams = |name: &str| status["images"].to_string().contains(name);
    assert!(streams("/other"), "{status}");
    Ok(())
}

#[test]
fn an_image_that_cannot_be_opened_at_the_start_is_waited_for() -> anyhow::Result<()> {
    let mut reading = Reading::start(1)?;
    reading.reads_on(0..1)?;
    reading.node.sluice.kill()?;
    reading.node.backend()?.kill()?;
    // Only the mesh has it now, and that is away.
    fs::remove_dir_all(state(&reading, "maps"))?;
    reading.node.restart_sluice(&reading.options)?;
    assert!(reading.node.sluice.log().contains("was not opened in time"), "{}", reading.node.sluice.log());
    let (root, numbered) = (reading.node.root_of(&reading.container), reading.numbered.clone());
    let reader = thread::spawn(move || numbered.read(&root, 1..BATCH));
    let node = &mut reading.node;
    thread::sleep(Duration::from_millis(500));
    assert!(!reader.is_finished(), "a read ended that nobody can serve");
    // The end of this frontend tells it nothing, either.
    node.sluice.end()?;
    node.restart_sluice(&reading.options)?;
    let node = &mut reading.node;
    assert!(!reader.is_finished(), "a read ended with a frontend that waited itself");
    node.backend()?.restart()?;
    reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    Ok(())
}

#[test]
fn nothing_in_the_state_folder_stops_a_start() -> anyhow::Result<()> {
    let mut reading = Reading::start(1)?;
    reading.node.sluice.kill()?;
    for stray in [
        "records/stray",
        "objects/stray",
        "trees/stray",
        "maps/stray",
        "incoming/stray/file",
        "partial/a.have",
    ] {
        let path = state(&reading, stray);
        fs::create_dir_all(path.parent().context("a parent")?)?;
        fs::write(path, b"stray")?;
    }
    fs::write(state(&reading, &format!("records/{}", "a".repeat(64))), b"no record")?;
    // What a forgotten snapshot left, and cannot be removed.
    let stuck = state(&reading, "snapshots/900/fs");
    fs::create_dir_all(&stuck)?;
    fs::create_dir_all(state(&reading, "snapshots/901/fs"))?;
    mount("tmpfs", &stuck, "tmpfs", MountFlags::empty(), None)?;
    let started = reading.node.restart_sluice(&reading.options).and_then(|()| reading.reads_on(0..BATCH / 2));
    unmount(&stuck, UnmountFlags::DETACH)?;
    started?;
    let log = reading.node.sluice.log();
    assert!(log.contains("the folder of a forgotten snapshot stays"), "{log}");
    assert!(!state(&reading, "snapshots/901").exists(), "one that stays keeps the others");
    // As after a loss of power: everything is checked again.
    reading.node.sluice.kill()?;
    fs::write(state(&reading, "synced"), "another boot\n0\n")?;
    reading.node.restart_sluice(&reading.options)?;
    reading.reads_on(BATCH / 2..BATCH)
}

#[test]
fn a_damaged_ledger_takes_nothing_from_a_container_that_runs() -> anyhow::Result<()> {
    let mut reading = Reading::start(1)?;
    let upper = state(&reading, "snapshots");
    let folders = fs::read_dir(&upper)?.count();
    for _ in 0..2 {
        reading.node.sluice.kill()?;
        fs::write(state(&reading, "snapshots.redb"), vec![7; 10_000])?;
        reading.node.restart_sluice(&reading.options)?;
        assert!(state(&reading, "snapshots.redb.damaged").exists());
    }
    reading.reads_on(0..BATCH)?;
    reading
        .node
        .cri
        .exec(&reading.container, &["/bin/sh", "-euc", "echo more >> /data/1; sha256sum /data/1"])?;
    assert_eq!(fs::read_dir(&upper)?.count(), folders, "folders of the container are gone");
    // And what is pulled from now on streams as ever.
    let spec = testkit::ImageSpec::new([testkit::Tarball::new().file("only", b"here").finish()]);
    let image = reading.node.push("other", &spec)?;
    reading.node.cri.pull(&image)?;
    assert!(reading.node.status()?["images"].to_string().contains("/other"));
    Ok(())
}
