//! What was changed on top of a streamed image leaves it whole: in a diff, and in a snapshot that others stand on; in containers, where the
//! kernel writes down new attributes and copies no data, and with the options that `BuildKit` mounts with.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, ensure};
use system_tests::builders::shell;
use system_tests::facts::{self, Tree};
use system_tests::kubernetes::{Node, Options, busybox};
use system_tests::{Scratch, noise};
use testkit::containerd::Version;
use testkit::{ImageSpec, Tarball};

const LEN: usize = 1_000_000;

/// How containers are named, and others.
const CONTAINER: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const OTHER: &str = "pqv1k0z2m4c8x7w6t5y9a1b2c";
/// What `BuildKit` adds to the options that it is given.
const OF_BUILDKIT: &str = "index=off,redirect_dir=off,";

const CHANGES: &str = r#"
cd data
chmod 600 changed
chown 12:34 owned
chmod 640 renamed && mv renamed new-name
chmod 604 moved && mv moved ../moved
mv folder new-folder && chmod 611 new-folder/inside
ln linked second-name
echo more >> written
rm gone
"#;

fn image() -> anyhow::Result<ImageSpec> {
    let names =
        ["changed", "owned", "renamed", "moved", "folder/inside", "linked", "written", "gone", "kept"];
    let empty = Tarball::new().directory("data").directory("data/folder");
    let data = names
        .iter()
        .zip(1..)
        .fold(empty, |tar, (name, seed)| tar.file(&format!("data/{name}"), &noise(seed, LEN)));
    Ok(ImageSpec::new([busybox()?.finish(), data.finish()]))
}

/// A node with the image; the name of its highest snapshot.
fn start(snapshotter: bool, containerd: Version) -> anyhow::Result<(Node, String)> {
    // Nothing arrives but what is read: data that the kernel does not copy is nowhere on the disk.
    let settings = vec!["frontend.background=false".to_owned()];
    let node = Node::start(&Options { snapshotter, settings, containerd, ..Options::default() })?;
    let image = node.push("app", &image()?)?;
    node.cri.pull(&image)?;
    let pod = node.cri.pod("one")?;
    let container = node.cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;
    let info: serde_json::Value = serde_json::from_str(&node.snapshots(&["info", &container])?)?;
    let parent = info["Parent"].as_str().context("a parent")?.to_owned();
    Ok((node, parent))
}

/// What a diff of the snapshot holds.
fn diff(node: &Node, key: &str, began: SystemTime) -> anyhow::Result<Tree> {
    let output = node.containerd.command().args(["snapshots", "diff", key]).output()?;
    ensure!(output.status.success(), "diff of {key}: {}", String::from_utf8_lossy(&output.stderr));
    let scratch = Scratch::new()?;
    let (file, folder) = (scratch.path("diff"), scratch.mount_point("unpacked")?);
    std::fs::write(&file, output.stdout)?;
    shell(&folder, &format!("tar --same-owner -xpzf {}", file.display()))?;
    facts::changed_since(&folder, began)
}

/// The changed root, as changed, as a snapshot that another one stands on, and both as diffs. `options`: added to those of the mounts.
fn change(
    node: &Node,
    parent: &str,
    began: SystemTime,
    (key, options): (&str, &str),
) -> anyhow::Result<[(&'static str, Tree); 5]> {
    node.snapshots(&["prepare", key, parent])?;
    let root = node.mount_snapshot_with(key, options)?;
    shell(&root, CHANGES)?;
    unmount(&root)?;
    // Anew: over another overlay the kernel gives a file and its new name two numbers until it looks them up again.
    let root = node.mount_snapshot_with(key, options)?;
    let (changed, active) = (facts::changed_since(&root, began)?, diff(node, key, began)?);
    unmount(&root)?;
    let [committed, seen, above] = ["committed", "seen", "above"].map(|what| format!("{what}-{key}"));
    node.snapshots(&["commit", &committed, key])?;
    node.snapshots(&["prepare", &seen, &committed])?;
    node.snapshots(&["prepare", &above, &committed])?;
    let seen = node.mount_snapshot_with(&seen, options)?;
    let above = node.mount_snapshot_with(&above, options)?;
    shell(&above, "chmod 600 moved && mv moved data/new-folder/back")?;
    let trees =
        [("seen", facts::changed_since(&seen, began)?), ("above", facts::changed_since(&above, began)?)];
    let [seen, above] = trees;
    Ok([
        ("changed", changed),
        ("diff", active),
        seen,
        above,
        ("diff of the commit", diff(node, &committed, began)?),
    ])
}

fn unmount(root: &Path) -> anyhow::Result<()> {
    Ok(rustix::mount::unmount(root, rustix::mount::UnmountFlags::empty())?)
}

/// What the file that only got new attributes takes on the disk, in bytes, in the snapshot that has it: the newest.
fn copied(node: &Node) -> anyhow::Result<u64> {
    let mut copies = Vec::new();
    for snapshot in std::fs::read_dir(node.scratch().state().join("snapshots"))? {
        let snapshot = snapshot?;
        let id: u64 = snapshot.file_name().to_str().context("a number")?.parse()?;
        let found = std::fs::symlink_metadata(snapshot.path().join("fs/data/changed"));
        copies.extend(found.ok().map(|found| (id, found.blocks() * 512)));
    }
    Ok(copies.iter().max().context("no snapshot has the changed file")?.1)
}

#[test]
fn diffs_and_commits_of_changed_roots_are_whole() -> anyhow::Result<()> {
    are_whole(Version::chosen())
}

#[test]
fn with_containerd_2_4_diffs_and_commits_of_changed_roots_are_whole() -> anyhow::Result<()> {
    if !Version::V2_4.is_here() {
        return Ok(());
    }
    are_whole(Version::V2_4)
}

fn are_whole(containerd: Version) -> anyhow::Result<()> {
    let began = SystemTime::now();
    let (node, parent) = start(true, containerd)?;
    let (plain, plain_parent) = start(false, containerd)?;
    for (key, options, copies) in [(CONTAINER, "", false), (OTHER, OF_BUILDKIT, true)] {
        let streamed = change(&node, &parent, began, (key, options))?;
        assert_eq!(copied(&node)? > LEN as u64 / 10, copies, "what the kernel copies, with {options:?}");
        let unpacked = change(&plain, &plain_parent, began, (key, options))?;
        for ((what, unpacked), (_, streamed)) in unpacked.iter().zip(&streamed) {
            assert!(unpacked.len() > 5, "the reference of {what} has only {} entries", unpacked.len());
            let differences = facts::differences(unpacked, streamed);
            assert!(differences.is_empty(), "{what} of {key}:\n{}", differences.join("\n"));
        }
    }
    Ok(())
}
