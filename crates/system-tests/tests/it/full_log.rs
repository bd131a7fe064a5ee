//! A log that cannot be written, and output that nobody takes: no process ends of it, and no command does half its work.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::mount::{MountFlags, mount, mount_remount};
use system_tests::{Numbered, Scratch};
use testkit::{ImageSpec, LayoutWriter, Tarball};

const NUMBERED: Numbered = Numbered { files: 30, len: 500_000, seed: 81 };

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// A node's state on a small disk, and an image that is larger, whose chunks are elsewhere.
struct Small {
    scratch: Scratch,
    layout: LayoutWriter,
    store: String,
}

impl Small {
    fn new() -> anyhow::Result<Small> {
        let scratch = Scratch::new()?;
        fs::create_dir_all(scratch.state())?;
        mount("sluice-test", scratch.state(), "tmpfs", MountFlags::empty(), Some(c"size=12m"))?;
        let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
        layout.image("app", &NUMBERED.image()?)?;
        let store = format!("store.url={}", scratch.path("store").display());
        Ok(Small { scratch, layout, store })
    }

    fn mount(&self, name: &str) -> anyhow::Result<PathBuf> {
        let target = self.scratch.mount_point(name)?;
        let reference = self.layout.reference("app");
        let words = ["-v", "--set", &self.store, "mount", &reference, target.to_str().context("UTF-8")?];
        self.scratch.succeed(words)?;
        Ok(target)
    }

    /// Until not one more line has room.
    fn fill(&self) -> anyhow::Result<()> {
        let mut filler = File::options().create(true).append(true).open(self.filler())?;
        while filler.write_all(&[7; 4096]).is_ok() {}
        // The last page of the log has room of its own.
        let mut log = File::options().append(true).open(self.scratch.state().join("serve.log"))?;
        while log.write_all(&[b'\n'; 1]).is_ok() {}
        Ok(())
    }

    fn filler(&self) -> PathBuf {
        self.scratch.state().join("filler")
    }
}

#[test]
fn a_node_whose_log_is_on_a_full_disk_lives_and_the_next_one_starts() -> anyhow::Result<()> {
    let small = Small::new()?;
    let root = small.mount("root")?;
    let node = small.scratch.background_node().context("no node runs")?;
    NUMBERED.read(&root, 0..20)?;
    small.fill()?;
    NUMBERED.read(&root, 0..NUMBERED.files)?;
    assert_eq!(small.scratch.background_node(), Some(node), "{}", small.scratch.node_log());
    let status = small.scratch.json(["status"])?;
    assert_eq!(status["images"][0]["complete"], false, "it had room for all: this tested nothing");

    small.scratch.kill_node()?;
    let second = small.mount("second")?;
    NUMBERED.read(&second, 0..NUMBERED.files)?;
    assert_ne!(small.scratch.background_node(), Some(node));

    // With room again the log goes on, and says that it did not.
    fs::remove_file(small.filler())?;
    mount_remount(small.scratch.state(), MountFlags::empty(), "size=40m")?;
    let log = || fs::read_to_string(small.scratch.state().join("serve.log")).unwrap_or_default();
    let goes_on =
        || log().contains("lines of this log could not be written") && log().contains("image is complete");
    let begun = Instant::now();
    while !goes_on() {
        ensure!(begun.elapsed() < PATIENCE, "the log does not go on:\n{}", log());
        sleep(Duration::from_millis(200));
    }
    NUMBERED.read(&second, 0..NUMBERED.files)
}

#[test]
fn a_log_is_kept_within_its_bound() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    layout.image("app", &ImageSpec::new([Tarball::new().file("a", b"content").finish()]))?;
    let target = scratch.mount_point("root")?;
    let target = target.to_str().context("UTF-8")?;
    let reference = layout.reference("app");
    let bound = ["--set", "lifecycle.log.file_size=2KiB", "--set", "lifecycle.log.files=3", "-vv"];
    scratch.succeed(bound.iter().chain(&["mount", &reference, target]))?;
    for _ in 0..10 {
        scratch.succeed(["umount", target])?;
        scratch.succeed(["mount", &reference, target])?;
    }
    let mut logs = Vec::new();
    for entry in fs::read_dir(scratch.state())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("serve.log") {
            logs.push((entry.file_name(), entry.metadata()?.len()));
        }
    }
    logs.sort();
    let names: Vec<_> = logs.iter().map(|(name, _)| name.to_string_lossy()).collect();
    assert_eq!(names, ["serve.log", "serve.log.1", "serve.log.2"]);
    // A line that is longer than a file stands in one of its own.
    assert!(logs.iter().all(|(_, len)| *len < 16 * 1024), "{logs:?}");
    Ok(())
}

/// A command whose standard error takes nothing.
fn with_full_errors(scratch: &Scratch, words: &[&str], stdout: Stdio) -> anyhow::Result<Output> {
    let mut command = scratch.command(words)?;
    command.stderr(File::options().write(true).open("/dev/full")?).stdout(stdout);
    Ok(command.output()?)
}

/// A pipe that nobody reads.
fn unread() -> anyhow::Result<Stdio> {
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    Ok(writer.into())
}

#[test]
fn commands_do_their_work_whoever_listens() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    for tag in ["one", "two"] {
        layout.image(tag, &ImageSpec::new([Tarball::new().file(tag, tag.as_bytes()).finish()]))?;
    }
    let (one, two) = (layout.reference("one"), layout.reference("two"));
    let code = |output: &Output| output.status.code();
    // Each tells of itself as it goes.
    assert_eq!(code(&with_full_errors(&scratch, &["-vv", "import", &one, &two], unread()?)?), Some(0));
    let listed = with_full_errors(&scratch, &["ls"], Stdio::piped())?;
    let text = String::from_utf8(listed.stdout)?;
    assert!(text.contains("one") && text.contains("two"), "{text}");
    for words in [&["ls"][..], &["ls", "--json"], &["config", "show"], &["completions", "bash"]] {
        let mut command = scratch.command(words)?;
        let output = command.stdout(unread()?).stderr(Stdio::piped()).output()?;
        ensure!(output.status.success(), "{words:?}: {}", output.status);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words:?}");
    }
    // A failure is one, said or not; so is a result that has no room.
    let refused = with_full_errors(&scratch, &["import", &layout.reference("none")], Stdio::piped())?;
    assert!(code(&refused).is_some_and(|code| code != 0 && code != 101), "{}", refused.status);
    let full = File::options().write(true).open("/dev/full")?;
    let output = scratch.command(["ls"])?.stdout(full).stderr(Stdio::piped()).output()?;
    assert_eq!(code(&output), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("No space left on device"));
    closed(&scratch, Path::new("/bin/sh"))
}

/// With standard error closed, as by `2>&-`.
fn closed(scratch: &Scratch, shell: &Path) -> anyhow::Result<()> {
    let command = scratch.command(["-vv", "ls"])?;
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let mut closing = std::process::Command::new(shell);
    let output = closing.args(["-c", r#"exec "$@" 2>&-"#, "sh"]).args(words).output()?;
    ensure!(output.status.success(), "{}", output.status);
    Ok(())
}
