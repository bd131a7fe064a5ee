//! Killing the process in the middle of an import or of a download, and starting again, completes
//! without starting over and without a wrong byte.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use system_tests::{Numbered, Scratch, noise};
use testkit::{Compression, ImageSpec, LayoutWriter, Tarball};

const FILES: usize = 40;
const FILE_LEN: usize = 2_000_000;
const POLL: Duration = Duration::from_millis(10);
/// How long a step may take before the test gives up; far more than it needs.
const STEP_MAX: Duration = Duration::from_secs(120);

/// An image of two layers of noise; its reference.
fn image(scratch: &Scratch) -> anyhow::Result<String> {
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    let layer = |numbers: std::ops::Range<usize>| {
        numbers
            .fold(Tarball::new(), |tar, number| {
                tar.file(&format!("file-{number}"), &noise(number as u64, FILE_LEN))
            })
            .finish()
    };
    let layers = [layer(0..FILES / 2), layer(FILES / 2..FILES)];
    let spec = ImageSpec { layers: layers.map(|tar| (tar, Some(Compression::Zstd))).into(), config: None };
    layout.image("app", &spec)?;
    Ok(layout.reference("app"))
}

fn assert_content(root: &Path) -> anyhow::Result<()> {
    for number in 0..FILES {
        let bytes = fs::read(root.join(format!("file-{number}")))?;
        assert!(bytes == noise(number as u64, FILE_LEN), "file-{number} has wrong bytes");
    }
    Ok(())
}

fn count_below(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries.flatten().map(|entry| if entry.path().is_dir() { count_below(&entry.path()) } else { 1 }).sum()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < STEP_MAX, "{what} did not happen");
        sleep(POLL);
    }
}

#[test]
fn an_import_that_is_killed_goes_on() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let reference = image(&scratch)?;
    let chunks = scratch.store().join("default/chunks");
    let mut import = scratch.command(["import", &reference])?.spawn()?;
    wait_until("a first chunk", || count_below(&chunks) > 5);
    import.kill()?;
    import.wait()?;
    assert_eq!(scratch.json(["ls"])?["images"], serde_json::json!([]), "a half-imported image is listed");
    let kept = count_below(&chunks) as u64;

    let result = scratch.json(["import", &reference])?;
    let present = result["images"][0]["chunks_present"].as_u64().unwrap_or_default();
    assert!(present + 4 >= kept, "{kept} chunks were there, only {present} were used: {result}");
    let root = scratch.mount_point("root")?;
    scratch.succeed([Path::new("mount"), Path::new(&reference), &root])?;
    assert_content(&root)
}

#[test]
fn an_import_that_is_interrupted_holds_no_collection_up() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let reference = image(&scratch)?;
    let chunks = scratch.store().join("default/chunks");
    let import = scratch.command(["import", &reference])?.stderr(Stdio::piped()).spawn()?;
    wait_until("a first chunk", || count_below(&chunks) > 5);
    kill_process(Pid::from_child(&import), Signal::INT)?;
    let output = import.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{errors}");
    assert!(errors.contains("goes on from there"), "{errors}");
    scratch.succeed(["gc"])?;
    Ok(())
}

#[test]
fn a_download_that_is_killed_goes_on() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let reference = image(&scratch)?;
    let root = scratch.mount_point("root")?;
    scratch.succeed(["import", &reference])?;
    // Slow enough that the kill comes in the middle.
    let slow = ["--set", "frontend.background_bandwidth=20MB"];
    let mount = [Path::new("mount"), Path::new(&reference), &root];
    scratch.succeed(slow.iter().map(Path::new).chain(mount))?;
    let objects = scratch.state().join("objects");
    wait_until("some objects", || count_below(&objects) > FILES / 4);
    scratch.kill_node()?;
    let kept = count_below(&objects) as u64;
    assert!(kept < FILES as u64, "the download ended before the kill");

    scratch.succeed(["umount", root.to_str().unwrap_or_default()]).ok();
    let status = scratch.json(["mount", "--complete", &reference, root.to_str().unwrap_or_default()]);
    status?;
    assert_content(&root)?;
    let status = scratch.json(["status"])?;
    let received = status["received_bytes"].as_u64().unwrap_or_default();
    let all = (FILES * FILE_LEN) as u64;
    assert!(
        received < all - (kept - 1) * FILE_LEN as u64,
        "{received} of {all} bytes were moved again: {status}"
    );
    Ok(())
}

#[test]
fn a_node_that_is_killed_under_a_run_comes_back_by_itself() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let image = Numbered { files: 30, len: 300_000, seed: 90 };
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    layout.image("app", &image.image()?)?;
    let script = "for list in /sums/*; do sha256sum -c $list; sleep 0.2; done";
    let mut run = scratch.command(["--set", "frontend.background=false", "run"])?;
    run.args([&layout.reference("app"), "--", "/bin/sh", "-euc", script]);
    let run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    for kill in [1, 2] {
        wait_until("a read", || {
            let received = |status: serde_json::Value| status["received_bytes"].as_u64();
            scratch.json(["status"]).ok().and_then(received).is_some_and(|received| received > 300_000)
        });
        let node = scratch.background_node().with_context(|| format!("node {kill} does not run"))?;
        kill_process(node, Signal::KILL)?;
    }
    let output = run.wait_with_output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).matches(": OK").count(), 30);
    Ok(())
}

#[test]
fn a_run_that_is_killed_with_its_cleaner_leaves_nothing_for_ever() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    let busybox = fs::read("/bin/busybox")?;
    let layer = Tarball::new().member(b'0', "bin/busybox", "", 0o755, &busybox).finish();
    layout.image("app", &ImageSpec::new([layer]))?;
    let reference = layout.reference("app");
    let shared = scratch.mount_point("shared")?;
    let run = |script: &str| {
        let volume = format!("{}:/shared", shared.display());
        let shell = ["--", "/bin/busybox", "sh", "-c", script];
        scratch.command([["run", "--volume", &volume, &reference].as_slice(), &shell].concat())
    };
    // It says that it runs, and runs until its file is gone.
    let script =
        "/bin/busybox touch /shared/here; while [ -e /shared/here ]; do /bin/busybox sleep 0.05; done";
    let mut killed = run(script)?.spawn()?;
    wait_until("the container's start", || shared.join("here").exists());
    // What would take the container away is killed before it sees that it is needed.
    kill_process(Pid::from_child(&killed), Signal::STOP)?;
    scratch.kill_processes(&scratch.state().join("run"))?;
    killed.kill()?;
    killed.wait()?;

    let folders = || fs::read_dir(scratch.state().join("run")).map_or(0, Iterator::count);
    assert!(run("exit 0")?.status()?.success());
    assert_eq!(folders(), 1, "a container that runs was taken away");
    fs::remove_file(shared.join("here"))?;
    wait_until("the end of what was left", || {
        assert!(run("exit 0").and_then(|mut run| Ok(run.status()?)).is_ok_and(|status| status.success()));
        folders() == 0
    });
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let state = scratch.state().join("run").display().to_string();
    assert!(!mounts.contains(&state), "still mounted");
    Ok(())
}

/// No kill, but as close: two commands find no node, and one of the nodes that they start is too many.
#[test]
fn two_first_commands_share_one_node() -> anyhow::Result<()> {
    for _ in 0..3 {
        let scratch = Scratch::new()?;
        let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
        layout.image("app", &ImageSpec::new([Tarball::new().file("file", &noise(1, 1000)).finish()]))?;
        let reference = layout.reference("app");
        let roots = [scratch.mount_point("one")?, scratch.mount_point("two")?];
        std::thread::scope(|scope| -> anyhow::Result<()> {
            let mount = |root: &std::path::Path| {
                scratch.succeed(["mount".as_ref(), reference.as_ref(), root.as_os_str()]).map(drop)
            };
            let started: Vec<_> = roots.iter().map(|root| scope.spawn(move || mount(root))).collect();
            started.into_iter().try_for_each(|thread| {
                thread.join().map_err(|_| anyhow::anyhow!("a command panicked")).flatten()
            })
        })?;
        for root in &roots {
            assert_eq!(std::fs::read(root.join("file"))?, noise(1, 1000));
        }
    }
    Ok(())
}
