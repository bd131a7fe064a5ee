//! What was changed on top of a streamed image leaves it whole: in a diff, and in a snapshot that others stand on; also
//! where the kernel wrote down new attributes and copied no data.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, ensure};
use system_tests::builders::shell;
use system_tests::facts::{self, Tree};
use system_tests::kubernetes::{Node, Options, busybox};
use system_tests::{Scratch, noise};
use testkit::{ImageSpec, Tarball};

const LEN: usize = 1_000_000;

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
fn start(snapshotter: bool) -> anyhow::Result<(Node, String)> {
    // Nothing arrives but what is read: data that the kernel does not copy is nowhere on the disk.
    let settings = vec!["frontend.background=false".to_owned()];
    let node = Node::start(&Options { snapshotter, settings, ..Options::default() })?;
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

/// The changed root, as changed, as a snapshot that another one stands on, and both as diffs.
fn change(node: &Node, parent: &str, began: SystemTime) -> anyhow::Result<[(&'static str, Tree); 5]> {
    node.snapshots(&["prepare", "changed", parent])?;
    let root = node.mount_snapshot("changed")?;
    shell(&root, CHANGES)?;
    let (changed, active) = (facts::changed_since(&root, began)?, diff(node, "changed", began)?);
    unmount(&root)?;
    node.snapshots(&["commit", "committed", "changed"])?;
    node.snapshots(&["prepare", "seen", "committed"])?;
    node.snapshots(&["prepare", "above", "committed"])?;
    let (seen, above) = (node.mount_snapshot("seen")?, node.mount_snapshot("above")?);
    shell(&above, "chmod 600 moved && mv moved data/new-folder/back")?;
    let trees =
        [("seen", facts::changed_since(&seen, began)?), ("above", facts::changed_since(&above, began)?)];
    let [seen, above] = trees;
    Ok([
        ("changed", changed),
        ("diff", active),
        seen,
        above,
        ("diff of the commit", diff(node, "committed", began)?),
    ])
}

fn unmount(root: &Path) -> anyhow::Result<()> {
    Ok(rustix::mount::unmount(root, rustix::mount::UnmountFlags::empty())?)
}

/// What a file that only got new attributes takes on the disk, in bytes.
fn copied(node: &Node) -> anyhow::Result<u64> {
    let mut copies = Vec::new();
    for snapshot in std::fs::read_dir(node.scratch().state().join("snapshots"))? {
        copies.extend(std::fs::symlink_metadata(snapshot?.path().join("fs/data/changed")));
    }
    ensure!(copies.len() == 1, "{} snapshots have the changed file", copies.len());
    Ok(copies[0].blocks() * 512)
}

#[test]
fn diffs_and_commits_of_changed_roots_are_whole() -> anyhow::Result<()> {
    let began = SystemTime::now();
    let ((node, parent), (plain, plain_parent)) = (start(true)?, start(false)?);
    let (streamed, unpacked) = (change(&node, &parent, began)?, change(&plain, &plain_parent, began)?);
    assert!(copied(&node)? < LEN as u64 / 10, "the kernel copied: this tested nothing");
    for ((what, unpacked), (_, streamed)) in unpacked.iter().zip(&streamed) {
        assert!(unpacked.len() > 5, "the reference of {what} has only {} entries", unpacked.len());
        let differences = facts::differences(unpacked, streamed);
        assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
    }
    Ok(())
}
