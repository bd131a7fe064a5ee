//! What the snapshotter says of itself is true, asked at its own socket: usage, state, what is freed, and why.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use proto::containerd::snapshots::{Info, Kind};
use proto::containerd::types::Mount;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use system_tests::builders::shell;
use system_tests::kubernetes::{Node, Options, busybox};
use system_tests::{Snapshotter, noise};
use testkit::{ImageSpec, Tarball};
use tonic::Code;

const LEN: usize = 2_000_000;
const TARGET: &str = "containerd.io/snapshot.ref";
const IMAGE: &str = "containerd.io/snapshot/cri.image-ref";
const MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";

/// A node with one pulled image of two layers, which no other image has.
struct Pulled {
    node: Node,
    snapshotter: Snapshotter,
    image: String,
}

impl Pulled {
    fn new(seed: u64) -> anyhow::Result<Pulled> {
        let node = Node::start(&Options::default())?;
        let base = busybox()?.file("own", &noise(seed, 100)).finish();
        let data = Tarball::new().directory("data").file("data/read", &noise(seed + 1, LEN)).finish();
        let image = node.push("app", &ImageSpec::new([base, data]))?;
        node.cri.pull(&image)?;
        let snapshotter = Snapshotter::connect(node.scratch().path("snapshotter.sock"))?;
        Ok(Pulled { node, snapshotter, image })
    }

    /// The image's layers, from the lowest up.
    fn layers(&self) -> anyhow::Result<[Info; 2]> {
        let is_its = |info: &Info| info.labels.get(IMAGE) == Some(&self.image);
        let mut layers: Vec<Info> = self.snapshotter.list()?.into_iter().filter(is_its).collect();
        layers.sort_by_key(|info| !info.parent.is_empty());
        layers.try_into().map_err(|layers| anyhow::anyhow!("not two layers: {layers:?}"))
    }

    fn bytes_local(&self) -> anyhow::Result<Option<i64>> {
        let status = self.node.status()?;
        let all = status["images"].as_array().context("images")?;
        let ours = all.iter().find(|image| image["reference"].as_str().is_some_and(|it| it.contains("/app")));
        Ok(ours.and_then(|image| image["bytes_local"].as_i64()))
    }
}

/// The folder into which changes go.
fn upper(mounts: &[Mount]) -> anyhow::Result<PathBuf> {
    let [mount] = mounts else { anyhow::bail!("not one mount: {mounts:?}") };
    let upper = match mount.r#type.as_str() {
        "bind" => Some(mount.source.as_str()),
        _ => mount.options.iter().find_map(|option| option.strip_prefix("upperdir=")),
    };
    upper.map(PathBuf::from).with_context(|| format!("no upper folder in {mounts:?}"))
}

#[test]
fn usage_and_state_of_streamed_snapshots_are_true() -> anyhow::Result<()> {
    let pulled = Pulled::new(300)?;
    let Pulled { node, snapshotter, image } = &pulled;
    node.settle(|status| {
        status["images"].as_array().is_some_and(|all| all.iter().all(|image| image["complete"] == true))
    })?;
    let [lower, top] = pulled.layers()?;
    assert_eq!((lower.parent.as_str(), top.parent.as_str()), ("", lower.name.as_str()));
    for layer in [&lower, &top] {
        let stat = snapshotter.stat(&layer.name)?;
        assert_eq!(&stat, layer, "stat and list differ");
        assert_eq!(stat.kind(), Kind::Committed);
        assert_eq!(stat.labels.get(TARGET), Some(&layer.name));
    }
    let whole = snapshotter.usage(&top.name)?;
    assert!(whole.bytes >= LEN as i64, "{whole:?}");
    assert_eq!(Some(whole.bytes), pulled.bytes_local()?, "the highest layer stands for all of the image");
    assert_eq!(snapshotter.usage(&lower.name)?.bytes, 0);

    let pod = node.cri.pod("one")?;
    let container = node.cri.start(&pod, "app", image, &["/bin/sleep", "1000"])?;
    let of_container = |info: &Info| info.kind() == Kind::Active && info.parent == top.name;
    let active = snapshotter.list()?.into_iter().find(of_container).context("the container's snapshot")?.name;
    let before = snapshotter.usage(&active)?;
    node.cri.exec(
        &container,
        &["/bin/sh", "-euc", "cat /data/read > /first; ln /first /second; mv /own /other"],
    )?;
    let after = snapshotter.usage(&active)?;
    let grown = after.bytes - before.bytes;
    assert!((LEN as i64..LEN as i64 * 3 / 2).contains(&grown), "{grown} bytes more: a hard link counts once");
    // The new file, the one that was moved, and what stands in the place of its old name.
    assert_eq!(after.inodes - before.inodes, 3);
    node.cri.stop(&container)?;
    // containerd's collection removes it.
    node.settle(|_| snapshotter.stat(&active).is_err_and(|status| status.code() == Code::NotFound))?;
    node.cri.remove_pod(&pod)
}

#[test]
fn remove_and_cleanup_free_what_they_say() -> anyhow::Result<()> {
    let pulled = Pulled::new(310)?;
    let (snapshotter, [_, top]) = (&pulled.snapshotter, pulled.layers()?);
    let change = |key: &str| {
        let upper = upper(&snapshotter.prepare(key, &top.name, &[])?)?;
        std::fs::write(upper.join("change"), noise(1, 100_000))?;
        anyhow::Ok(upper)
    };
    let gone = change("gone")?;
    snapshotter.remove("gone")?;
    assert!(!gone.exists(), "{} stays", gone.display());

    // Something that nobody expects keeps its folder: the snapshot goes all the same, and cleaning up finds the folder.
    let stuck = change("stuck")?;
    mount("sluice-test", &stuck, "tmpfs", MountFlags::empty(), None)?;
    snapshotter.remove("stuck")?;
    assert_eq!(snapshotter.stat("stuck").map_err(|status| status.code()), Err(Code::NotFound));
    unmount(&stuck, UnmountFlags::empty())?;
    let stray = stuck.parent().and_then(Path::parent).context("the folder of all snapshots")?.join("987654");
    std::fs::create_dir_all(stray.join("fs/data"))?;
    assert!(stuck.exists(), "nothing kept it: this tested nothing");
    let kept = change("kept")?;
    snapshotter.cleanup()?;
    assert!(!stuck.exists() && !stray.exists(), "folders of nobody stay");
    assert!(kept.join("change").exists(), "a folder in use is gone");
    Ok(())
}

#[test]
fn a_layer_that_its_image_does_not_have_is_pulled_as_ever() -> anyhow::Result<()> {
    let pulled = Pulled::new(320)?;
    let [lower, top] = pulled.layers()?;
    let unknown = format!("sha256:{}", "5".repeat(64));
    let manifest = top.labels.get(MANIFEST).context("the manifest's digest")?;
    let labels = [(TARGET, unknown.as_str()), (IMAGE, &pulled.image), (MANIFEST, manifest)];
    let mounts = pulled.snapshotter.prepare("extract", &lower.name, &labels)?;
    assert!(upper(&mounts)?.exists());
    let told = pulled.node.scratch().succeed(["events", "--kind", "fallback", "--image", &pulled.image])?;
    assert!(told.contains("layers-differ") && told.contains(&unknown), "{told}");
    Ok(())
}

/// Mounts below the node's folder; unmounted with it.
fn mount_at(node: &Node, name: &str, mounts: &[Mount]) -> anyhow::Result<PathBuf> {
    let target = node.scratch().mount_point(name)?;
    for Mount { r#type, source, options, .. } in mounts {
        let options = options.join(",");
        shell(&target, &format!("mount -t {type} -o {options} {source} {}", target.display()))?;
    }
    Ok(target)
}

#[test]
fn a_commit_may_name_its_parent() -> anyhow::Result<()> {
    let pulled = Pulled::new(330)?;
    let (node, snapshotter, [_, top]) = (&pulled.node, &pulled.snapshotter, pulled.layers()?);
    // Over a layer that streams, and over one that was committed so.
    for (name, parent) in [("first", top.name.as_str()), ("second", "first")] {
        let active = format!("{name}-active");
        std::fs::write(upper(&snapshotter.prepare(&active, "", &[])?)?.join(name), name)?;
        for (wrong, code) in [("nobody", Code::NotFound), (&active, Code::InvalidArgument)] {
            let refused = snapshotter.commit(&active, name, wrong).map_err(|status| status.code());
            assert_eq!(refused, Err(code), "{name} over {wrong}");
            assert_eq!(snapshotter.stat(&active)?.kind(), Kind::Active, "a refused commit changed it");
        }
        snapshotter.commit(&active, name, parent)?;
        let info = snapshotter.stat(name)?;
        assert_eq!((info.kind(), info.parent.as_str()), (Kind::Committed, parent));
    }
    let in_use = snapshotter.remove("first").map_err(|status| status.code());
    assert_eq!(in_use, Err(Code::FailedPrecondition), "a parent goes before its child");
    let root = mount_at(node, "root", &snapshotter.prepare("container", "second", &[])?)?;
    assert!(std::fs::read(root.join("data/read"))? == noise(331, LEN), "wrong bytes");
    for name in ["first", "second"] {
        assert_eq!(std::fs::read_to_string(root.join(name))?, name);
    }
    Ok(())
}

#[test]
fn a_view_of_nothing_is_an_empty_folder_that_cannot_be_written() -> anyhow::Result<()> {
    let node = Node::start(&Options::default())?;
    let plain = Node::start(&Options { snapshotter: false, ..Options::default() })?;
    let options = [&node, &plain].map(|node| -> anyhow::Result<_> {
        node.view("empty", "")?;
        let root = node.mount_snapshot("empty")?;
        assert_eq!(std::fs::read_dir(&root)?.count(), 0);
        let written = std::fs::write(root.join("file"), b"").map_err(|error| error.kind());
        assert_eq!(written, Err(std::io::ErrorKind::ReadOnlyFilesystem));
        let command = node.snapshots(&["mounts", "TARGET", "empty"])?;
        // Where its folder is, is its own affair.
        let words = command.split([' ', ',']).filter(|word| !word.starts_with('/'));
        Ok(words.map(|word| word.trim().to_owned()).collect::<BTreeSet<_>>())
    });
    let [ours, containerds] = options;
    let ours = ours?;
    assert!(ours.contains("bind") && ours.contains("ro"), "{ours:?}");
    assert_eq!(ours, containerds?);
    Ok(())
}
