//! Real mounts: these tests need root, as the frontend does.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use image::merge::merge;
use image::record::{Device, EntryKind};
use image::scan::{LayerScanner, ScanError, ScanLimits};
use image::{Digest, erofs};
use tempfile::TempDir;
use testkit::Tarball;

use super::*;

/// Says who runs it: set-user-id in the image.
const PROGRAM: &str = "/usr/bin/id";
const NOBODY: u32 = 65534;

/// A state folder with one tree in it, whose one large file is a local object.
struct Scratch {
    folder: TempDir,
    mounts: Mounts,
    tree: Digest,
    content: Vec<u8>,
}

impl Scratch {
    fn new() -> Scratch {
        Scratch::named("state")
    }

    fn named(state: &str) -> Scratch {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join(state);
        let content: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let tar = Tarball::new()
            .file("etc/name", b"small")
            .file("big", &content)
            .file("null", b"")
            .file("lib/b/last", &content[3..])
            .file("lib/a/z", &content[1..])
            .file("lib/a/y", &content)
            .file("lib/b-first", &content[2..])
            .symlink("lib/a/out", "../../big")
            .symlink("lib/up", "..")
            .symlink("etc/lib", "/../lib")
            .executable("script", b"#!/bin/sh\necho from the tree\n")
            .member(b'0', "id", "", 0o4755, &fs::read(PROGRAM).unwrap())
            .finish();
        let mut scanner = LayerScanner::new(ScanLimits::default());
        scanner.push::<ScanError>(&tar, &mut |_| Ok(())).unwrap();
        let mut layer = scanner.finish::<ScanError>(&mut |_| Ok(())).unwrap();
        let null = layer.entries.iter_mut().find(|entry| entry.path == b"null").unwrap();
        null.kind = EntryKind::CharDevice(Device { major: 1, minor: 3 });
        let plain = erofs::write(&merge(&[&layer]).unwrap()).unwrap();
        let tree = Digest::of(&plain);
        let objects = state.join("objects");
        let object = objects.join(Digest::of(&content).path());
        let program = objects.join(Digest::of(&fs::read(PROGRAM).unwrap()).path());
        for file in [&object, &program] {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
        }
        fs::write(&object, &content).unwrap();
        fs::copy(PROGRAM, &program).unwrap();
        fs::write(folder.path().join("tree.erofs"), plain).unwrap();
        let mounts = Mounts::prepare(&state, &objects, false).unwrap();
        Scratch { folder, mounts, tree, content }
    }

    fn folder(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("tree.erofs")
    }

    /// Takes the local object away: it is remote only, where this writes it.
    fn make_remote(&self) -> PathBuf {
        let object = Digest::of(&self.content).path();
        let (local, remote) = (self.mounts.objects.join(&object), self.mounts.remote_point().join(&object));
        // As the file system of remote objects is one of its own.
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("sluice-test", self.mounts.remote_point(), "tmpfs", flags, None).unwrap();
        fs::create_dir_all(remote.parent().unwrap()).unwrap();
        fs::copy(&local, &remote).unwrap();
        fs::remove_file(&local).unwrap();
        local
    }

    /// A container's root, as containerd mounts it over the merged image.
    fn mount_over(&self, merged: &Path, name: &str, options: &str) -> PathBuf {
        let (root, upper, work) =
            (self.folder(name), self.folder(&format!("{name}-upper")), self.folder(&format!("{name}-work")));
        let [lower, upper, work] = [merged, &upper, &work].map(|path| path.display());
        let options = format!("{options}lowerdir={lower},upperdir={upper},workdir={work}");
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("overlay", &root, "overlay", rustix::mount::MountFlags::empty(), &*options)
            .unwrap();
        root
    }

    fn mount(&self, target: &Path, upper: &str, work: &str) -> Result<(), MountError> {
        let target = Target::check(target.to_str().unwrap(), upper, work)?;
        self.mounts.add_tree(&self.tree, &self.file())?;
        self.mounts.add_root(&self.tree, &target)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for root in self.mounts.roots().unwrap() {
            detach(&root.point);
        }
        self.mounts.detach_all().unwrap();
    }
}

#[test]
fn a_root_reads_tree_and_local_objects() {
    let scratch = Scratch::new();
    let target = scratch.folder("root");
    scratch.mount(&target, "", "").unwrap();
    assert_eq!(fs::read(target.join("etc/name")).unwrap(), b"small");
    assert_eq!(fs::read(target.join("big")).unwrap(), scratch.content);
    assert!(fs::metadata(target.join("null")).unwrap().file_type().is_char_device());
    assert_eq!(fs::read(target.join("null")).unwrap(), b"");
    assert_eq!(fs::metadata(target.join("big")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(fs::write(target.join("new"), b"").unwrap_err().raw_os_error(), Some(30));
    assert_eq!(scratch.mounts.roots().unwrap(), [Root { point: target.clone(), tree: scratch.tree }]);
    scratch.mounts.remove_root(&target).unwrap();
    assert_eq!(scratch.mounts.roots().unwrap(), []);
}

/// What a command that is run as nobody prints.
fn as_nobody(program: &Path) -> std::io::Result<String> {
    let output = Command::new(program).uid(NOBODY).gid(NOBODY).current_dir("/").output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn programs_and_devices_of_an_image_are_live_in_its_roots_alone() {
    let scratch = Scratch::new();
    // Whoever may not pass here can try nothing.
    fs::set_permissions(scratch.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (bare, written) = (scratch.folder("bare"), scratch.folder("written"));
    let (upper, work) = (scratch.folder("upper"), scratch.folder("work"));
    scratch.mount(&bare, "", "").unwrap();
    scratch.mount(&written, upper.to_str().unwrap(), work.to_str().unwrap()).unwrap();
    for root in [&bare, &written] {
        let identity = as_nobody(&root.join("id")).unwrap();
        assert!(identity.contains("uid=65534") && identity.contains("euid=0"), "{identity}");
        // Small enough to stand in the tree itself.
        assert_eq!(as_nobody(&root.join("script")).unwrap(), "from the tree\n");
        assert_eq!(fs::read(root.join("null")).unwrap(), b"");
    }
    let tree = scratch.mounts.tree_point(&scratch.tree);
    let denied =
        |result: std::io::Result<Vec<u8>>| result.unwrap_err().kind() == std::io::ErrorKind::PermissionDenied;
    assert!(denied(fs::read(tree.join("null"))), "a device of an image can be opened below mnt");
    assert!(denied(Command::new(tree.join("script")).output().map(|output| output.stdout)));
    assert!(as_nobody(&tree.join("script")).is_err());
    let flags = rustix::fs::statvfs(&tree).unwrap().f_flag;
    let wanted = rustix::fs::StatVfsMountFlags::NOSUID | rustix::fs::StatVfsMountFlags::NODEV;
    assert!(flags.contains(wanted), "{flags:?}");
}

#[test]
fn trees_that_an_earlier_version_mounted_get_the_flags_of_today() {
    let scratch = Scratch::new();
    scratch.mounts.add_tree(&scratch.tree, &scratch.folder.path().join("tree.erofs")).unwrap();
    let tree = scratch.mounts.tree_point(&scratch.tree);
    let before = rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::RDONLY;
    rustix::mount::mount_remount(&tree, before, "").unwrap();
    assert_eq!(fs::read(tree.join("null")).unwrap(), b"");
    tree::restrict(&tree).unwrap();
    assert!(fs::read(tree.join("null")).is_err());
}

#[test]
fn a_file_that_was_opened_while_its_object_was_missing_becomes_local() {
    let scratch = Scratch::new();
    let local = scratch.make_remote();
    let roots = [scratch.folder("one"), scratch.folder("two")];
    for root in &roots {
        scratch.mount(root, "", "").unwrap();
        assert_eq!(fs::read(root.join("big")).unwrap(), scratch.content);
    }
    // Of the same length, so that it shows which of the two is read.
    let marked = vec![7; scratch.content.len()];
    fs::write(&local, &marked).unwrap();
    assert_eq!(fs::read(roots[0].join("big")).unwrap(), scratch.content);
    scratch.mounts.renew_lookups(&Digest::of(b"another tree")).unwrap();
    assert_eq!(fs::read(roots[1].join("big")).unwrap(), scratch.content);
    let open = fs::File::open(roots[1].join("big")).unwrap();
    scratch.mounts.renew_lookups(&scratch.tree).unwrap();
    assert_eq!(fs::read(roots[0].join("big")).unwrap(), marked);
    // What a process has open stays what it was.
    assert_eq!(fs::read(roots[1].join("big")).unwrap(), scratch.content);
    drop(open);
}

/// Options that clients of containerd add, or that we give.
const OVER_MERGED: [&str; 4] =
    ["", "metacopy=on,redirect_dir=on,", "index=off,redirect_dir=off,", "index=off,redirect_dir=on,"];

#[test]
fn roots_of_others_stand_on_the_merged_image_whatever_their_options() {
    let scratch = Scratch::new();
    let merged = scratch.mounts.add_merged(&scratch.tree, &scratch.file(), None).unwrap();
    assert_eq!(fs::read(merged.join("big")).unwrap(), scratch.content);
    assert_eq!(fs::metadata(merged.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
    assert_eq!(scratch.mounts.roots().unwrap(), []);
    for (number, options) in OVER_MERGED.iter().enumerate() {
        let root = scratch.mount_over(&merged, &number.to_string(), options);
        std::os::unix::fs::chown(root.join("big"), Some(7), None).unwrap();
        assert_eq!(fs::read(root.join("big")).unwrap(), scratch.content, "{options}");
        fs::write(root.join("lib/a/z"), b"changed").unwrap();
        fs::remove_file(root.join("lib/b-first")).unwrap();
        assert!(fs::metadata(root.join("null")).unwrap().file_type().is_char_device());
        let copied =
            fs::metadata(scratch.folder(&format!("{number}-upper")).join("big")).unwrap().blocks() * 512;
        assert_eq!(copied <= 4096, options.contains("metacopy"), "{options}: {copied} bytes");
    }
    let roots = scratch.mounts.roots().unwrap();
    assert!(
        roots.iter().all(|root| root.tree == scratch.tree) && roots.len() == OVER_MERGED.len(),
        "{roots:?}"
    );
    // A second question finds the same, and its end takes nothing from who stands on it.
    assert_eq!(scratch.mounts.add_merged(&scratch.tree, &scratch.file(), None).unwrap(), merged);
    scratch.mounts.remove_tree(&scratch.tree);
    assert!(!merged.exists());
    assert_eq!(fs::read(roots[0].point.join("big")).unwrap(), scratch.content);
}

#[test]
fn over_the_merged_image_a_file_becomes_local_too() {
    let scratch = Scratch::new();
    let local = scratch.make_remote();
    let merged = scratch.mounts.add_merged(&scratch.tree, &scratch.file(), None).unwrap();
    let roots = ["one", "two"].map(|name| scratch.mount_over(&merged, name, ""));
    roots.iter().for_each(|root| assert_eq!(fs::read(root.join("big")).unwrap(), scratch.content));
    let marked = vec![7; scratch.content.len()];
    fs::write(&local, &marked).unwrap();
    assert_eq!(fs::read(roots[1].join("big")).unwrap(), scratch.content);
    scratch.mounts.renew_lookups(&scratch.tree).unwrap();
    roots.iter().for_each(|root| assert_eq!(fs::read(root.join("big")).unwrap(), marked));
}

#[test]
fn what_one_container_holds_open_is_local_to_those_that_come_later() {
    let scratch = Scratch::new();
    let local = scratch.make_remote();
    let merged = scratch.mounts.add_merged(&scratch.tree, &scratch.file(), None).unwrap();
    let early = scratch.mount_over(&merged, "early", "");
    let open = fs::File::open(early.join("big")).unwrap();
    assert_eq!(fs::read(early.join("big")).unwrap(), scratch.content);
    let marked = vec![7; scratch.content.len()];
    fs::write(&local, &marked).unwrap();
    scratch.mounts.renew_lookups(&scratch.tree).unwrap();
    // To whoever has it open it stays what it was.
    assert_eq!(fs::read(early.join("big")).unwrap(), scratch.content);
    let late = scratch.mount_over(&merged, "late", "");
    assert_eq!(fs::read(late.join("big")).unwrap(), marked);
    drop(open);
    scratch.mounts.remove_tree(&scratch.tree);
    assert!(!merged.exists(), "one stays mounted under the other");
}

#[test]
fn containers_whose_connection_was_lost_become_local_with_the_next_process() {
    let scratch = Scratch::new();
    let local = scratch.make_remote();
    let merged = scratch.mounts.add_merged(&scratch.tree, &scratch.file(), None).unwrap();
    let root = scratch.mount_over(&merged, "root", "");
    assert_eq!(fs::read(root.join("big")).unwrap(), scratch.content);
    let marked = vec![7; scratch.content.len()];
    fs::write(&local, &marked).unwrap();
    let state = scratch.folder.path().join("state");
    // Twice, since the first may die too.
    for _ in 0..2 {
        let next = Mounts::prepare(&state, &state.join("objects"), false).unwrap();
        assert_eq!(next.roots().unwrap(), [Root { point: root.clone(), tree: scratch.tree }]);
        assert_eq!(next.add_merged(&scratch.tree, &scratch.file(), None).unwrap(), merged);
    }
    assert_eq!(fs::read(root.join("big")).unwrap(), scratch.content);
    scratch.mounts.renew_lookups(&scratch.tree).unwrap();
    assert_eq!(fs::read(root.join("big")).unwrap(), marked);
    let aside = |entry: &table::Entry| entry.point.starts_with(scratch.mounts.former());
    assert!(!table::read().unwrap().iter().any(aside), "what nobody needs any more stays mounted");
}

#[test]
fn without_a_container_nothing_of_a_lost_connection_stays() {
    let scratch = Scratch::new();
    scratch.mounts.add_merged(&scratch.tree, &scratch.file(), None).unwrap();
    let state = scratch.folder.path().join("state");
    let next = Mounts::prepare(&state, &state.join("objects"), false).unwrap();
    let table = table::read().unwrap();
    let below: Vec<_> = table.iter().filter(|entry| entry.point.starts_with(&next.base)).collect();
    assert_eq!(below.len(), 1, "{below:?}");
}

#[test]
fn layers_whose_files_lack_data_are_merged_with_the_image() {
    let scratch = Scratch::new();
    let merged = scratch.mounts.add_merged(&scratch.tree, &scratch.file(), None).unwrap();
    let root = scratch.mount_over(&merged, "lower", OVER_MERGED[1]);
    std::os::unix::fs::chown(root.join("big"), Some(7), None).unwrap();
    fs::rename(root.join("lib"), root.join("moved")).unwrap();
    rustix::mount::unmount(&root, UnmountFlags::empty()).unwrap();
    let above = Above { id: 3, layers: vec![scratch.folder("lower-upper")] };
    let both = scratch.mounts.add_merged(&scratch.tree, &scratch.file(), Some(above)).unwrap();
    assert_ne!(both, merged);
    // By whatever is above it.
    for (number, options) in OVER_MERGED.iter().enumerate() {
        let root = scratch.mount_over(&both, &number.to_string(), options);
        assert_eq!(fs::metadata(root.join("big")).unwrap().uid(), 7);
        assert_eq!(fs::read(root.join("big")).unwrap(), scratch.content);
        assert_eq!(fs::read(root.join("moved/a/y")).unwrap().len(), scratch.content.len());
    }
    assert_eq!(scratch.mounts.roots().unwrap().len(), OVER_MERGED.len());
    scratch.mounts.renew_lookups(&scratch.tree).unwrap();
    assert_eq!(fs::metadata(both.join("big")).unwrap().uid(), 7, "it was replaced by the image alone");
    scratch.mounts.remove_merged_below(4).unwrap();
    assert!(both.exists());
    scratch.mounts.remove_merged_below(3).unwrap();
    assert!(!both.exists() && merged.exists());
}

#[test]
fn paths_name_files_and_all_that_is_below_a_folder() {
    let scratch = Scratch::new();
    scratch.mounts.add_tree(&scratch.tree, &scratch.file()).unwrap();
    let named = |paths: &[&str]| {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        scratch.mounts.objects_named(&scratch.tree, &paths).unwrap()
    };
    let object = |from: usize| Digest::of(&scratch.content[from..]);
    // In the order of their names, links left out.
    let lib = [0, 1, 3, 2].map(object).to_vec();
    assert_eq!(named(&["big", "lib", "lib/", "etc/lib"]), [vec![object(0)], lib.clone(), lib.clone(), lib]);
    // Small, a device, not there, not a folder, outside, and a link to nowhere but the root.
    let nothing = named(&["etc/name", "etc", "null", "none", "big/", "../../../../etc/passwd", "lib/a\0"]);
    assert!(nothing.iter().all(Vec::is_empty), "{nothing:?}");
    let mut root = [0, 0, 1, 3, 2].map(object).to_vec();
    root.insert(1, Digest::of(&fs::read(PROGRAM).unwrap()));
    assert_eq!(named(&["/", "..", "lib/up"]), [root.clone(), root.clone(), root]);
}

#[test]
fn of_folders_no_more_is_looked_at_than_a_bound() {
    let scratch = Scratch::new();
    scratch.mounts.add_tree(&scratch.tree, &scratch.file()).unwrap();
    let point = scratch.mounts.tree_point(&scratch.tree);
    let paths = ["lib", "lib", "big"].map(str::to_owned);
    let count =
        |bound| named::objects(&point, &paths, bound).unwrap().iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(count(named::ENTRIES_MAX), [4, 4, 1]);
    // The first folder and those in it have eight entries; files by themselves cost none.
    assert_eq!(count(8), [4, 0, 1]);
    assert_eq!(count(0), [0, 0, 1]);
}

#[test]
fn a_root_outlives_the_mounts_it_is_made_of() {
    let scratch = Scratch::new();
    let target = scratch.folder("root");
    scratch.mount(&target, "", "").unwrap();
    scratch.mounts.detach_all().unwrap();
    assert_eq!(fs::read(target.join("big")).unwrap(), scratch.content);
    // The next process finds it.
    let state = scratch.folder.path().join("state");
    let next = Mounts::prepare(&state, &state.join("objects"), false).unwrap();
    assert_eq!(next.roots().unwrap(), [Root { point: target, tree: scratch.tree }]);
}

#[test]
fn an_upper_layer_takes_the_writes() {
    let scratch = Scratch::new();
    let (target, upper, work) =
        (scratch.folder("root"), scratch.folder("up,pe:r\\x"), scratch.folder("wo,rk:\\y"));
    scratch.mount(&target, upper.to_str().unwrap(), work.to_str().unwrap()).unwrap();
    fs::write(target.join("etc/name"), b"changed").unwrap();
    assert_eq!(fs::read(upper.join("etc/name")).unwrap(), b"changed");
    // Only its metadata is copied up; its content stays where it was.
    std::os::unix::fs::chown(target.join("big"), Some(7), None).unwrap();
    let copied = fs::metadata(upper.join("big")).unwrap().blocks() * 512;
    assert!(copied <= 4096, "{copied} bytes: more than attributes");
    assert_eq!(fs::read(target.join("big")).unwrap(), scratch.content);
}

#[test]
fn odd_characters_in_the_state_folder_do_no_harm() {
    let scratch = Scratch::named("st,a:t\\e é");
    let target = scratch.folder("ro,o:t\\");
    scratch.mount(&target, "", "").unwrap();
    assert_eq!(fs::read(target.join("big")).unwrap(), scratch.content);
    assert_eq!(scratch.mounts.roots().unwrap(), [Root { point: target, tree: scratch.tree }]);
}

#[test]
fn a_tree_can_be_mounted_through_a_loop_device() {
    let scratch = Scratch::new();
    let point = scratch.folder("loop");
    tree::mount_by_loop(&scratch.folder.path().join("tree.erofs"), &point).unwrap();
    assert_eq!(fs::read(point.join("etc/name")).unwrap(), b"small");
    rustix::mount::unmount(&point, UnmountFlags::empty()).unwrap();
}

#[test]
fn a_busy_root_stays() {
    let scratch = Scratch::new();
    let target = scratch.folder("root");
    scratch.mount(&target, "", "").unwrap();
    let open = fs::File::open(target.join("etc/name")).unwrap();
    assert!(matches!(scratch.mounts.remove_root(&target), Err(MountError::Busy(_))));
    drop(open);
    scratch.mounts.remove_root(&target).unwrap();
}

#[test]
fn targets_that_cannot_be_used_are_refused() {
    let scratch = Scratch::new();
    let (empty, used) = (scratch.folder("empty"), scratch.folder("used"));
    scratch.mount(&used, "", "").unwrap();
    scratch.folder("full/inner");
    let path = |name: &str| scratch.folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("file"), b"").unwrap();
    let refusal = |point: &str| Target::check(point, "", "").unwrap_err();
    assert!(matches!(refusal("relative"), MountError::Relative { .. }));
    assert!(matches!(refusal(""), MountError::Relative { .. }));
    assert!(matches!(refusal(&path("absent")), MountError::Missing { .. }));
    assert!(matches!(refusal(&path("file")), MountError::NotADirectory { .. }));
    assert!(matches!(refusal(&path("full")), MountError::NotEmpty(_)));
    assert!(matches!(refusal(used.to_str().unwrap()), MountError::InUse(_)));
    let upper = |upper: &str, work: &str| Target::check(empty.to_str().unwrap(), upper, work);
    assert!(matches!(upper(&path("full"), ""), Err(MountError::Upper(_))));
    assert!(matches!(upper(&path("full"), &path("full/inner")), Err(MountError::Upper(_))));
    assert!(matches!(upper(&path("full"), "/proc"), Err(MountError::Upper(_))));
    assert!(matches!(upper(&path("full"), &path("absent")), Err(MountError::Missing { .. })));
}

#[test]
fn a_damaged_tree_is_refused_with_its_path() {
    let scratch = Scratch::new();
    let file = scratch.folder.path().join("damaged");
    fs::write(&file, [0; 8192]).unwrap();
    let error = scratch.mounts.add_tree(&Digest::of(b"damaged"), &file).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
}

#[tokio::test]
async fn a_change_of_the_table_wakes() {
    let watch = watch::Watch::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    rustix::mount::mount_bind(folder.path(), folder.path()).unwrap();
    watch.changed().await;
    rustix::mount::unmount(folder.path(), UnmountFlags::DETACH).unwrap();
    watch.changed().await;
}
