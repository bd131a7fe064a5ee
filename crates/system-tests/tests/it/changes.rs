//! What was changed on top of a streamed image leaves it whole: in a diff, and in a snapshot that others stand on; also
//! where the kernel wrote down new attributes and copied no data.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use system_tests::facts::{self, Tree};
use system_tests::kubernetes::{Node, Options, busybox};
use system_tests::{Scratch, noise};
use testkit::{ImageSpec, Tarball};

const LEN: usize = 1_000_000;

const CHANGES: &str = r#"
cd $ROOT/data
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
    let info: serde_json::Value = serde_json::from_str(&ctr(&node, &["info", &container])?)?;
    let parent = info["Parent"].as_str().context("a parent")?.to_owned();
    Ok((node, parent))
}

fn ctr(node: &Node, arguments: &[&str]) -> anyhow::Result<String> {
    node.containerd.ctr(&[["snapshots"].as_slice(), arguments].concat())
}

/// Mounts a snapshot as containerd says; unmounted with the node.
fn mount(node: &Node, key: &str) -> anyhow::Result<PathBuf> {
    let target = node.scratch().mount_point(&format!("at-{key}"))?;
    let command = ctr(node, &["mounts", &target.to_string_lossy(), key])?;
    shell(&command)?;
    Ok(target)
}

fn shell(script: &str) -> anyhow::Result<()> {
    let output = Command::new("sh").args(["-euc", script]).output()?;
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What a diff of the snapshot holds.
fn diff(node: &Node, key: &str) -> anyhow::Result<Tree> {
    let output = node.containerd.command().args(["snapshots", "diff", key]).output()?;
    ensure!(output.status.success(), "diff of {key}: {}", String::from_utf8_lossy(&output.stderr));
    let scratch = Scratch::new()?;
    let (file, folder) = (scratch.path("diff"), scratch.mount_point("unpacked")?);
    std::fs::write(&file, output.stdout)?;
    shell(&format!("tar --same-owner -xpzf {} -C {}", file.display(), folder.display()))?;
    facts::container(&folder)
}

/// The changed root, as changed, as a snapshot that another one stands on, and both as diffs.
fn change(node: &Node, parent: &str) -> anyhow::Result<[(&'static str, Tree); 5]> {
    ctr(node, &["prepare", "changed", parent])?;
    let root = mount(node, "changed")?;
    shell(&format!("ROOT={}\n{CHANGES}", root.display()))?;
    let (changed, active) = (facts::container(&root)?, diff(node, "changed")?);
    unmount(&root)?;
    ctr(node, &["commit", "committed", "changed"])?;
    ctr(node, &["prepare", "seen", "committed"])?;
    ctr(node, &["prepare", "above", "committed"])?;
    let (seen, above) = (mount(node, "seen")?, mount(node, "above")?);
    shell(&format!("chmod 600 {0}/moved && mv {0}/moved {0}/data/new-folder/back", above.display()))?;
    let trees = [("seen", facts::container(&seen)?), ("above", facts::container(&above)?)];
    let [seen, above] = trees;
    Ok([
        ("changed", changed),
        ("diff", active),
        seen,
        above,
        ("diff of the commit", diff(node, "committed")?),
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
    let ((node, parent), (plain, plain_parent)) = (start(true)?, start(false)?);
    let (streamed, unpacked) = (change(&node, &parent)?, change(&plain, &plain_parent)?);
    assert!(copied(&node)? < LEN as u64 / 10, "the kernel copied: this tested nothing");
    for ((what, unpacked), (_, streamed)) in unpacked.iter().zip(&streamed) {
        assert!(unpacked.len() > 5, "the reference of {what} has only {} entries", unpacked.len());
        let differences = facts::differences(unpacked, streamed);
        assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
    }
    Ok(())
}
