//! What streams is what containerd's own overlayfs would show, entry by entry, and changes like it.

use std::path::Path;
use std::time::SystemTime;

use anyhow::Context as _;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use system_tests::facts::{self, DURING};
use system_tests::kubernetes::{Node, Options, busybox};
use system_tests::{everything, noise};
use testkit::layout::sha256;
use testkit::{ImageSpec, Tarball};

const LEN: usize = 2_000_000;

/// What containerd calls the snapshot of all layers.
fn chain_id(spec: &ImageSpec) -> Option<String> {
    let diff_ids = spec.layers.iter().map(|(tar, _)| sha256(tar));
    diff_ids.reduce(|below, layer| sha256(format!("{below} {layer}").as_bytes()))
}

#[test]
fn a_streamed_snapshot_of_everything_equals_an_unpacked_one() -> anyhow::Result<()> {
    equals_an_unpacked_snapshot(&Options::default())
}

/// No container runs: a runtime makes mount points in its root. As containerd mounts them, for reading and for a container.
pub(crate) fn equals_an_unpacked_snapshot(options: &Options) -> anyhow::Result<()> {
    let began = SystemTime::now();
    let node = Node::start(options)?;
    let plain = Node::start(&Options { snapshotter: false, ..options.clone() })?;
    let spec = everything::image(&node.scratch().mount_point("everything")?)?;
    let top = chain_id(&spec).context("no layers")?;
    for node in [&node, &plain] {
        let image = node.push("everything", &spec)?;
        node.cri.pull(&image)?;
    }
    assert_eq!(node.status()?["images"].as_array().map(Vec::len), Some(1), "{}", node.sluice.log());
    for kind in ["view", "prepare"] {
        let [streamed, unpacked] = [&node, &plain].map(|node| {
            match kind {
                "view" => node.view(kind, &top)?,
                _ => drop(node.snapshots(&["prepare", kind, &top])?),
            }
            facts::changed_since(&node.mount_snapshot(kind)?, began)
        });
        let (mut streamed, mut unpacked) = (streamed?, unpacked?);
        assert!(unpacked.len() > 100, "the reference has only {} entries", unpacked.len());
        for (path, facts) in &mut unpacked {
            if facts.mtime == DURING {
                assert!(everything::WRITTEN_INTO.iter().any(|folder| path == Path::new(folder)), "{path:?}");
                facts.mtime = streamed.get(path).context("a path of both")?.mtime;
                assert!(kind == "prepare" || facts.mtime != DURING, "{path:?} has no time of the image");
            }
            if everything::WITHOUT_OTHER_NAMES.iter().any(|file| path == Path::new(file)) {
                facts.nlink = Some(1);
            }
        }
        // containerd sets times before 1970 to its first moment.
        for facts in streamed.values_mut() {
            facts.mtime = facts.mtime.max((0, 0));
        }
        let differences = facts::differences(&unpacked, &streamed);
        assert!(differences.is_empty(), "{kind}:\n{}", differences.join("\n"));
    }
    Ok(())
}

/// What containers do to files that a lower layer has: each behaves as on any overlayfs.
const CHANGES: &str = r#"
cd /data
mv link moved-link && [ "$(readlink moved-link)" = read ]
mv folder moved-folder && [ "$(cat moved-folder/inside)" = inside ]
ln read second-name && [ "$(stat -c %h read)" = 2 ]
chown 12:34 unread && [ "$(stat -c %u:%g unread)" = 12:34 ]
chmod 600 unread && [ "$(stat -c %a unread)" = 600 ]
echo more >> small && [ "$(cat small)" = "smallmore" ]
rm gone && [ ! -e gone ]
touch -d '2001-02-03 04:05:06' read
"#;

/// From outside, in the container's own root.
fn change_as_busybox_cannot(root: &Path) -> anyhow::Result<()> {
    let data = rustix::fs::open(root.join("data"), OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())?;
    rustix::fs::renameat_with(&data, "exchanged", &data, "with", RenameFlags::EXCHANGE)?;
    let taken = rustix::fs::renameat_with(&data, "with", &data, "exchanged", RenameFlags::NOREPLACE);
    assert_eq!(taken, Err(Errno::EXIST));
    rustix::fs::renameat_with(&data, "setuid", &data, "renamed", RenameFlags::NOREPLACE)?;
    let attributed = root.join("data/attributed");
    rustix::fs::setxattr(&attributed, "user.colour", b"blue", XattrFlags::CREATE)?;
    rustix::fs::setxattr(&attributed, "trusted.secret", b"kept", XattrFlags::CREATE)?;
    assert_eq!(std::fs::read(&attributed)?, b"three");
    Ok(rustix::fs::utimensat(
        &data,
        "fifo",
        &Timestamps { last_access: OLD, last_modification: OLD },
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

const OLD: Timespec = Timespec { tv_sec: 981_000_000, tv_nsec: 5 };

#[test]
fn a_container_changes_a_streamed_root_like_an_unpacked_one() -> anyhow::Result<()> {
    let began = SystemTime::now();
    let node = Node::start(&Options::default())?;
    let plain = Node::start(&Options { snapshotter: false, ..Options::default() })?;
    let data = Tarball::new()
        .directory("data")
        .file("data/read", &noise(5, LEN))
        .file("data/unread", &noise(6, LEN));
    let data =
        data.directory("data/folder").file("data/folder/inside", b"inside").symlink("data/link", "read");
    let data =
        data.file("data/small", b"small").file("data/gone", b"gone").hard_link("data/hard", "data/small");
    let data =
        data.file("data/exchanged", b"one").file("data/with", b"two").file("data/attributed", b"three");
    let data = data.member(b'6', "data/fifo", "", 0o640, b"").member(b'0', "data/setuid", "", 0o4755, b"s");
    let data = data.member(b'5', "data/sticky", "", 0o1777, b"").file("data/ space\u{e9}\n", b"odd");
    let spec = ImageSpec::new([busybox()?.finish(), data.finish()]);
    let roots = [&node, &plain].map(|node| -> anyhow::Result<_> {
        let image = node.push("app", &spec)?;
        node.cri.pull(&image)?;
        let pod = node.cri.pod("one")?;
        let untouched = node.cri.start(&pod, "untouched", &image, &["/bin/sleep", "1000"])?;
        let changed = node.cri.start(&pod, "changed", &image, &["/bin/sleep", "1000"])?;
        node.cri.exec(&changed, &["/bin/sh", "-euc", CHANGES])?;
        change_as_busybox_cannot(&node.root_of(&changed))?;
        Ok([untouched, changed].map(|container| facts::changed_since(&node.root_of(&container), began)))
    });
    let [streamed, unpacked] = roots;
    for (streamed, unpacked) in streamed?.into_iter().zip(unpacked?) {
        let (streamed, unpacked) = (streamed?, unpacked?);
        assert!(unpacked.len() > 15, "the reference has only {} entries", unpacked.len());
        let differences = facts::differences(&unpacked, &streamed);
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    }
    Ok(())
}
