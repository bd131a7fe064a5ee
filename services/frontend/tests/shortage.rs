//! A node whose disk is full, out of inodes or read-only, with the log elsewhere: not a wrong byte is read, what is here is opened,
//! and room is used again once there is some. Needs root and /dev/fuse, as the frontend does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]
#![allow(dead_code, reason = "the mesh is that of other tests, too")]

mod mesh;

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::NodeImage;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount};
use testkit::Tarball;
use tonic::Code;

use mesh::{Mesh, Node, noise, read};

const FILES: usize = 40;
const FILE_LEN: usize = 150_000;

/// A node's disk: a file system of its own, taken away at the end of the test.
struct Disk {
    at: PathBuf,
}

impl Disk {
    fn mount(at: PathBuf, options: &str) -> Disk {
        fs::create_dir_all(&at).unwrap();
        let options = CString::new(options).unwrap();
        rustix::mount::mount("sluice-test", &at, "tmpfs", MountFlags::empty(), &*options).unwrap();
        Disk { at }
    }

    /// Until nothing more can be written.
    fn fill(&self) {
        let mut filler = File::options().create(true).append(true).open(self.at.join("filler")).unwrap();
        let block = [7; 4096];
        let error = loop {
            if let Err(error) = filler.write_all(&block) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    }

    fn remount(&self, flags: MountFlags, options: &str) {
        mount_remount(&self.at, flags, options).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.at, UnmountFlags::DETACH).ok();
    }
}

fn name(number: usize) -> String {
    format!("file-{number}")
}

fn content(number: usize) -> Vec<u8> {
    noise(&name(number), FILE_LEN)
}

/// 6 MB of files that do not compress.
fn tar() -> Vec<u8> {
    (0..FILES).fold(Tarball::new(), |tar, number| tar.file(&name(number), &content(number))).finish()
}

async fn assert_whole(root: &Path) {
    for number in 0..FILES {
        assert!(read(root.join(name(number))).await.unwrap() == content(number), "{}", name(number));
    }
}

fn is_complete(image: &NodeImage) -> bool {
    image.progress.as_ref().is_some_and(|progress| progress.complete)
}

async fn complete(node: &mut Node, manifest: &str) -> bool {
    is_complete(&node.image(manifest).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_read_on_and_used_again_once_it_has_room() {
    let mut mesh = Mesh::start().await;
    let manifest = mesh.image("one", tar());
    let target = mesh.target("root");
    let disk = Disk::mount(mesh.path("node"), "size=4m");
    // Room for tree and map, as an image needs, but not for its files.
    let mut node = mesh.node("node", |config| config.background = false).await.unwrap();
    disk.remount(MountFlags::empty(), "size=6m");
    node.mount(mesh.request("one", &target)).await.unwrap();
    disk.fill();
    assert_whole(&target).await;
    assert!(!complete(&mut node, &manifest).await, "it had room for all: this tested nothing");
    node.stop().await;

    // The next process finds the disk as full: what is here it opens, and mounts again, with the mesh and without it.
    let mut node = mesh.node("node", |_| {}).await.unwrap();
    node.until(&manifest, |image| image.progress.is_some()).await;
    let second = mesh.target("second");
    node.mount(mesh.request("one", &second)).await.unwrap();
    assert_whole(&second).await;
    node.unmount(&second).await.unwrap();
    assert!(!complete(&mut node, &manifest).await);

    fs::remove_file(disk.at.join("filler")).unwrap();
    disk.remount(MountFlags::empty(), "size=20m");
    node.until(&manifest, is_complete).await;
    assert_whole(&target).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_here_is_opened_without_a_write_and_without_a_mesh() {
    let mut mesh = Mesh::start().await;
    let manifest = mesh.image("one", tar());
    let disk = Disk::mount(mesh.path("node"), "size=20m");
    let (first, second) = (mesh.target("first"), mesh.target("second"));
    let mut node = mesh.node("node", |_| {}).await.unwrap();
    node.mount(mesh.request("one", &first)).await.unwrap();
    node.complete(&manifest).await;
    node.stop().await;
    disk.fill();
    mesh.go_away().await;
    let before = written(&disk.at);
    let mut node = mesh.node("node", |config| config.resolve_timeout = Duration::from_secs(1)).await.unwrap();
    assert_eq!(node.image(&manifest).await.unwrap().mounts, [first.to_str().unwrap()]);
    node.mount(mesh.request("one", &second)).await.unwrap();
    assert_whole(&first).await;
    assert_whole(&second).await;
    assert_eq!(written(&disk.at), before);
    node.stop().await;
}

/// Every file of a state folder, and how long it is; without what is mounted there.
fn written(state: &Path) -> Vec<(PathBuf, u64)> {
    let (mut found, mut open) = (Vec::new(), vec![state.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() && entry.file_name() != "mnt" {
                open.push(entry.path());
            } else if meta.is_file() {
                found.push((entry.path(), meta.len()));
            }
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_image_is_not_even_imported_when_there_is_no_room_for_it() {
    let mut mesh = Mesh::start().await;
    let one = mesh.image("one", tar());
    mesh.image("two", Tarball::new().file("a", b"another").finish());
    let disk = Disk::mount(mesh.path("node"), "size=20m");
    let target = mesh.target("root");
    let mut node = mesh.node("node", |_| {}).await.unwrap();
    node.mount(mesh.request("one", &target)).await.unwrap();
    node.complete(&one).await;
    disk.fill();
    let imported = || written(&mesh.path("store")).len();
    let before = imported();
    let refused = |status: tonic::Status, words: &[&str]| {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        words.iter().for_each(|word| assert!(status.message().contains(word), "{word}: {status}"));
    };
    let two = mesh.path("second");
    fs::create_dir(&two).unwrap();
    let status = node.mount(mesh.request("two", &two)).await.unwrap_err();
    refused(
        status,
        &["no room on the disk of", "two: its tree and map need", "free", "no image here could be evicted"],
    );
    assert_eq!(imported(), before, "it was imported all the same");
    // What nothing uses is named.
    node.unmount(&target).await.unwrap();
    let status = node.mount(mesh.request("two", &two)).await.unwrap_err();
    refused(status, &["images that nothing uses (1) take up to 5.7 MiB", "sluice evict"]);
    node.client.evict(proto::EvictRequest { image: one }).await.unwrap();
    node.mount(mesh.request("two", &two)).await.unwrap();
    assert_eq!(read(two.join("a")).await.unwrap(), b"another");
    node.unmount(&two).await.unwrap();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_tree_needs_is_said_before_it_is_fetched() {
    let mut mesh = Mesh::start().await;
    // Files that small stand in the tree.
    let tar = (0..11_000)
        .fold(Tarball::new(), |tar, number| tar.file(&format!("d/{number}"), &noise(&name(number), 500)));
    let manifest = mesh.image("many", tar.finish());
    let disk = Disk::mount(mesh.path("node"), "size=4500k");
    let target = mesh.target("root");
    let mut node = mesh.node("node", |_| {}).await.unwrap();
    let status = node.mount(mesh.request("many", &target)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(
        status.message().contains("its tree and map need") && status.message().contains("MiB are free"),
        "{status}"
    );
    assert!(node.image(&manifest).await.is_none());
    for folder in ["incoming", "trees", "maps", "records"] {
        assert_eq!(fs::read_dir(disk.at.join(folder)).unwrap().count(), 0, "{folder}");
    }
    disk.remount(MountFlags::empty(), "size=20m");
    node.mount(mesh.request("many", &target)).await.unwrap();
    assert!(read(target.join("d/10999")).await.unwrap() == noise(&name(10_999), 500));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_out_of_inodes_is_read_on_and_used_again_once_it_has_some() {
    let mut mesh = Mesh::start().await;
    let manifest = mesh.image("one", tar());
    let (target, second) = (mesh.target("root"), mesh.target("second"));
    let disk = Disk::mount(mesh.path("node"), "size=20m,nr_inodes=310");
    let mut node = mesh.node("node", |config| config.background = false).await.unwrap();
    node.mount(mesh.request("one", &target)).await.unwrap();
    let taken =
        (0..).take_while(|number| File::create(disk.at.join(format!("taken-{number}"))).is_ok()).count();
    assert!(taken > 0);
    assert_whole(&target).await;
    assert!(!complete(&mut node, &manifest).await, "it had inodes for all: this tested nothing");
    node.stop().await;
    let mut node = mesh.node("node", |_| {}).await.unwrap();
    node.mount(mesh.request("one", &second)).await.unwrap();
    assert_whole(&second).await;
    (0..taken).for_each(|number| fs::remove_file(disk.at.join(format!("taken-{number}"))).unwrap());
    disk.remount(MountFlags::empty(), "nr_inodes=2000");
    node.until(&manifest, is_complete).await;
    assert_whole(&target).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_became_read_only_is_read_on_and_used_again_once_it_can_be_written() {
    let mut mesh = Mesh::start().await;
    let manifest = mesh.image("one", tar());
    let (target, second) = (mesh.target("root"), mesh.target("second"));
    let disk = Disk::mount(mesh.path("node"), "size=20m");
    let mut node = mesh.node("node", |config| config.background = false).await.unwrap();
    node.mount(mesh.request("one", &target)).await.unwrap();
    assert!(read(target.join(name(0))).await.unwrap() == content(0));
    disk.remount(MountFlags::RDONLY, "");
    assert_whole(&target).await;
    assert!(!complete(&mut node, &manifest).await);
    // What is here is mounted all the same; also by a process that finds the disk so.
    node.mount(mesh.request("one", &second)).await.unwrap();
    node.unmount(&second).await.unwrap();
    node.stop().await;
    let mut node = mesh.node("node", |_| {}).await.unwrap();
    node.mount(mesh.request("one", &second)).await.unwrap();
    assert_whole(&second).await;
    disk.remount(MountFlags::empty(), "");
    node.until(&manifest, is_complete).await;
    assert_whole(&target).await;
    node.stop().await;
}
