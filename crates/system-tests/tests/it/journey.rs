//! The same journey embedded and with each service as a process on a real NATS server: a registry's
//! image is inspected, imported, mounted, read, listed, removed and collected.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use serde_json::Value;
use system_tests::mesh::Mesh;
use system_tests::{Scratch, noise};
use testkit::{Bucket, ImageSpec, LayoutWriter, Registry, Tarball};

/// A registry with two images that share a layer.
struct Served {
    registry: Registry,
    _folder: tempfile::TempDir,
}

impl Served {
    fn new() -> anyhow::Result<Served> {
        let folder = tempfile::tempdir()?;
        let registry = Registry::start()?;
        let mut layout = LayoutWriter::create(folder.path())?;
        let base = Tarball::new()
            .directory("etc")
            .file("etc/os-release", b"ID=test\n")
            .file("base", &noise(1, 900_000));
        let base = base.finish();
        for (number, name) in [(2, "one"), (3, "two")] {
            let top = Tarball::new().file("top", &noise(number, 300_000)).finish();
            layout.image(name, &ImageSpec::new([base.clone(), top]))?;
            registry.push(&layout.reference(name), &format!("{name}:latest"))?;
        }
        Ok(Served { registry, _folder: folder })
    }

    fn reference(&self, name: &str) -> String {
        self.registry.reference(&format!("{name}:latest"))
    }

    /// How often the registry sent a blob.
    fn blobs_sent(&self) -> usize {
        self.registry
            .log()
            .lines()
            .filter(|line| line.contains("GET /v2/") && line.contains("/blobs/"))
            .count()
    }
}

/// What the journey needs of the two ways to run sluice.
trait Runs {
    fn sluice(&self, arguments: &[&str]) -> anyhow::Result<String>;
    fn folder(&self, name: &str) -> anyhow::Result<PathBuf>;

    fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.sluice(&[&["--json"], arguments].concat())?)?)
    }
}

impl Runs for Scratch {
    fn sluice(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.succeed(arguments)
    }

    fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.mount_point(name)
    }
}

impl Runs for Mesh {
    fn sluice(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.succeed(arguments)
    }

    fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.scratch().mount_point(name)
    }
}

/// Embedded, with the store in a bucket; settings and credentials as the clouds' tools take them.
struct OnBucket {
    scratch: Scratch,
    bucket: Bucket,
}

impl OnBucket {
    fn new(bucket: Bucket) -> anyhow::Result<OnBucket> {
        Ok(OnBucket { scratch: Scratch::new()?, bucket })
    }
}

impl Runs for OnBucket {
    fn sluice(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.scratch.command(["--store", self.bucket.url()])?;
        let variables = self.bucket.options().iter();
        command.envs(variables.map(|(name, value)| (name.to_ascii_uppercase(), value)));
        let output = command.args(arguments).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "sluice {arguments:?}: {errors}\n{}", self.scratch.node_log());
        assert!(!self.scratch.store().exists(), "a folder was used as the store");
        Ok(String::from_utf8(output.stdout)?)
    }

    fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.scratch.mount_point(name)
    }
}

#[test]
fn embedded() -> anyhow::Result<()> {
    journey(&Scratch::new()?)
}

#[test]
fn as_processes_on_nats() -> anyhow::Result<()> {
    journey(&Mesh::start(&["--rtt", "2ms"])?)
}

#[test]
fn with_the_store_in_a_bucket_of_s3() -> anyhow::Result<()> {
    journey(&OnBucket::new(Bucket::s3()?)?)
}

#[test]
fn with_the_store_in_a_container_of_azure() -> anyhow::Result<()> {
    journey(&OnBucket::new(Bucket::azure()?)?)
}

fn journey(sluice: &impl Runs) -> anyhow::Result<()> {
    let served = Served::new()?;
    let (one, two) = (served.reference("one"), served.reference("two"));

    let facts = sluice.json(&["--plain-http", "inspect", &one])?;
    assert_eq!(facts["layers"].as_array().map(Vec::len), Some(2), "{facts}");
    assert!(facts["image"].is_null(), "imported already: {facts}");

    sluice.sluice(&["--plain-http", "import", &one])?;
    let sent = served.blobs_sent();
    let second = sluice.json(&["--plain-http", "import", &two])?;
    assert_eq!(second["images"][0]["layers_known"], 1, "the shared layer was read again: {second}");
    assert_eq!(served.blobs_sent(), sent + 2, "one config and one layer are new");

    mounts_and_reads(sluice, &one, 2)?;
    mounts_and_reads(sluice, &two, 3)?;

    assert_eq!(sluice.json(&["ls"])?["images"].as_array().map(Vec::len), Some(2));
    sluice.sluice(&["rm", &two])?;
    let collected = sluice.json(&["gc", "--grace", "0s"])?;
    assert!(collected["deleted"].as_u64() > Some(0), "{collected}");
    assert_eq!(sluice.json(&["ls"])?["images"].as_array().map(Vec::len), Some(1));
    let verified = sluice.json(&["--plain-http", "import", "--verify", &one])?;
    assert_eq!(verified["images"][0]["layers_read"], 0, "the collection took what is needed: {verified}");
    Ok(())
}

fn mounts_and_reads(sluice: &impl Runs, reference: &str, top: u64) -> anyhow::Result<()> {
    let root = sluice.folder(&format!("root-{top}"))?;
    let target = root.to_str().unwrap_or_default();
    sluice.sluice(&["--plain-http", "mount", reference, target])?;
    reads(&root, top)?;
    sluice.sluice(&["umount", target])?;
    assert!(fs::read_dir(&root)?.next().is_none(), "still mounted");
    // Once more, from what is here.
    sluice.sluice(&["--plain-http", "mount", "--complete", reference, target])?;
    reads(&root, top)
}

fn reads(root: &Path, top: u64) -> anyhow::Result<()> {
    assert_eq!(fs::read(root.join("etc/os-release"))?, b"ID=test\n");
    assert!(fs::read(root.join("base"))? == noise(1, 900_000), "wrong bytes in base");
    assert!(fs::read(root.join("top"))? == noise(top, 300_000), "wrong bytes in top");
    Ok(())
}
