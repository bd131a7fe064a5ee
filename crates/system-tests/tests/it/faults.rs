//! Reading while the link stalls, drops and comes back, and while services are killed and come
//! back, gives the right bytes.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use system_tests::mesh::Mesh;
use system_tests::{Scratch, noise};
use testkit::{ImageSpec, LayoutWriter, Tarball};

const FILES: u64 = 30;
const FILE_LEN: usize = 1_000_000;

/// A mesh behind a slow link, with an image mounted whose reading takes some seconds.
struct Slow {
    mesh: Mesh,
    root: PathBuf,
}

impl Slow {
    fn new() -> anyhow::Result<Slow> {
        let mesh = Mesh::start(&["--rtt", "5ms", "--bandwidth", "60Mbit"])?;
        let mut layout = LayoutWriter::create(&mesh.scratch().path("layout"))?;
        let tar = (0..FILES).fold(Tarball::new(), |tar, number| {
            tar.file(&format!("file-{number}"), &noise(number, FILE_LEN))
        });
        layout.image("app", &ImageSpec::new([tar.finish()]))?;
        let root = mesh.mount(&layout.reference("app"), "root")?;
        Ok(Slow { mesh, root })
    }

    /// Reads every file and compares; runs beside the faults.
    fn reader(&self) -> JoinHandle<anyhow::Result<()>> {
        let root = self.root.clone();
        thread::spawn(move || {
            for number in 0..FILES {
                let bytes = fs::read(root.join(format!("file-{number}")))?;
                ensure!(bytes == noise(number, FILE_LEN), "file-{number} has wrong bytes");
            }
            Ok(())
        })
    }
}

fn joined(reader: JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?
}

#[test]
fn a_link_that_stalls_drops_and_comes_back() -> anyhow::Result<()> {
    let mut slow = Slow::new()?;
    let reader = slow.reader();
    for word in ["stall", "resume", "cut", "stall", "cut", "resume", "cut"] {
        sleep(Duration::from_millis(400));
        assert_eq!(slow.mesh.link.tell(word)?, "ok");
    }
    joined(reader)
}

#[test]
fn a_nats_server_that_is_away_while_content_is_read() -> anyhow::Result<()> {
    let mut slow = Slow::new()?;
    let reader = slow.reader();
    slow.mesh.backend.nats.kill()?;
    sleep(Duration::from_secs(1));
    slow.mesh.link.tell("cut")?;
    sleep(Duration::from_secs(1));
    slow.mesh.backend.nats.restart()?;
    joined(reader)
}

#[test]
fn what_an_earlier_process_left_counts_against_the_disk_budget() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    let root = scratch.mount_point("root")?;
    let root = root.to_str().context("a UTF-8 path")?;
    for (name, seed, len) in [("large", 1, 8 * FILE_LEN), ("small", 2, 10_000)] {
        layout.image(name, &ImageSpec::new([Tarball::new().file("file", &noise(seed, len)).finish()]))?;
    }
    let here = || -> anyhow::Result<Vec<(String, bool)>> {
        let status = scratch.json(["status"])?;
        let all = status["images"].as_array().context("images")?;
        let shown = |image: &Value| (image["reference"].to_string(), image["complete"] == true);
        Ok(all.iter().map(shown).collect())
    };
    let until = |wanted: fn(&[(String, bool)]) -> bool| -> anyhow::Result<()> {
        for _ in 0..600 {
            if wanted(&here()?) {
                return Ok(());
            }
            sleep(Duration::from_millis(100));
        }
        anyhow::bail!("it stays so: {:?}\n{}", here()?, scratch.node_log())
    };
    scratch.succeed(["mount", &layout.reference("large"), root])?;
    until(|images| images.len() == 1 && images[0].1)?;
    scratch.succeed(["umount", root])?;
    scratch.kill_node()?;
    let budget = ["--set", "frontend.disk_budget=1MiB", "mount", &layout.reference("small"), root];
    scratch.succeed(budget)?;
    until(|images| images.len() == 1 && images[0].0.contains("small"))?;
    scratch.succeed(["umount", root])?;
    Ok(())
}

#[test]
fn a_node_whose_disk_is_full_reads_on_and_says_so() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let (disk, state) = (scratch.path("disk"), scratch.mount_point("state")?);
    fs::File::create(&disk)?.set_len(24 << 20)?;
    let disk = disk.to_str().context("a UTF-8 path")?;
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output()?;
        ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    run("mkfs.ext4", &["-q", disk])?;
    run("mount", &["-o", "loop", disk, state.to_str().context("a UTF-8 path")?])?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    let tar = (0..FILES)
        .fold(Tarball::new(), |tar, number| tar.file(&format!("file-{number}"), &noise(number, FILE_LEN)));
    layout.image("app", &ImageSpec::new([tar.finish()]))?;
    let root = scratch.mount_point("root")?;
    let store = format!("store.url={}", scratch.path("store").display());
    let root_text = root.to_str().context("a UTF-8 path")?;
    scratch.succeed(["--set", &store, "mount", &layout.reference("app"), root_text])?;
    for number in 0..FILES {
        let bytes = fs::read(root.join(format!("file-{number}")))?;
        ensure!(bytes == noise(number, FILE_LEN), "file-{number} has wrong bytes");
    }
    let told = scratch.succeed(["events", "--kind", "degraded"])?;
    assert!(told.contains("disk-full"), "{told}");
    let status = scratch.json(["status"])?;
    assert_eq!(status["images"][0]["complete"], false, "it had room for all: this tested nothing");
    scratch.succeed(["umount", root_text])?;
    Ok(())
}
