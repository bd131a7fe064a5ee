//! An image whose lower layers stream and whose upper ones are unpacked by containerd, as when the mesh went away between
//! two pulls, is the image that containerd alone would make.

use std::time::SystemTime;

use system_tests::facts;
use system_tests::kubernetes::{Node, Options, busybox};
use system_tests::noise;
use testkit::{ImageSpec, Tarball};

/// Pulls that nobody answers give up after it. On a busy machine others take seconds, and would be ordinary with less.
const RESOLVE_TIMEOUT: &str = "frontend.resolve_timeout=15s";

const LEN: usize = 300_000;

/// Two layers that stream.
fn base() -> anyhow::Result<Vec<Vec<u8>>> {
    let data = Tarball::new().member(b'5', "./", "", 0o711, b"").directory("data");
    let data = data.file("data/kept", &noise(1, LEN)).file("data/replaced", &noise(2, LEN));
    let data = data.file("data/gone", b"gone").file("data/becomes-folder", b"file");
    let data = data.directory("data/folder").file("data/folder/hidden", b"hidden");
    let data = data.directory("data/becomes-file").file("data/becomes-file/inside", b"inside");
    let data = data.directory("data/emptied").file("data/emptied/inside", b"inside");
    let data = data.member(b'5', "data/special", "", 0o1770, b"").file("data/special/old", b"old");
    let data = data.directory("usr").directory("usr/lib").symlink("lib", "usr/lib");
    Ok(vec![busybox()?.finish(), data.finish()])
}

/// A layer of what layers do to those below.
fn changes() -> Tarball {
    let layer = Tarball::new().file("data/replaced", &noise(3, LEN)).file("data/.wh.gone", b"");
    let layer = layer.directory("data/folder").file("data/folder/.wh..wh..opq", b"");
    let layer = layer.file("data/folder/new", b"new").file("data/becomes-file", b"file");
    let layer = layer.directory("data/becomes-folder").file("data/becomes-folder/inside", b"inside");
    let layer = layer.file("data/emptied/.wh.inside", b"");
    // Their folders have no entry here: one has attributes below, the others are nowhere but on this machine.
    let layer = layer.file("data/special/new", b"new");
    layer.file("tmp/new", b"new").file("root/new", b"new").file("lib/new", b"new")
}

/// Over that, what is in the image twice unpacked.
fn more_changes() -> Tarball {
    let layer = Tarball::new().file("data/folder/new", b"newer").file("data/special/newer", b"newer");
    layer.file("data/becomes-folder/.wh.inside", b"").file("tmp/newer", b"newer").file("data/gone", b"again")
}

#[test]
fn unpacked_layers_over_streamed_ones() -> anyhow::Result<()> {
    unpacks_layers_over_streamed_ones(&Options::default())
}

pub(crate) fn unpacks_layers_over_streamed_ones(options: &Options) -> anyhow::Result<()> {
    let began = SystemTime::now();
    let settings = vec![RESOLVE_TIMEOUT.to_owned()];
    let mut node = Node::start(&Options { services: true, settings, ..options.clone() })?;
    let plain = Node::start(&Options { snapshotter: false, ..options.clone() })?;
    let lower = base()?;
    let upper = [changes().finish(), more_changes().finish()];
    let whole = ImageSpec::new(lower.clone().into_iter().chain(upper));
    let below = node.push("below", &ImageSpec::new(lower))?;
    node.cri.pull(&below)?;
    // The pause image comes while the mesh is there.
    let pod = node.cri.pod("one")?;
    node.backend()?.fetcher.kill()?;
    let [mixed, unpacked] = [&node, &plain].map(|node| -> anyhow::Result<_> {
        let image = node.push("app", &whole)?;
        node.cri.pull(&image)?;
        let pod = if node.backend.is_some() { pod.clone() } else { node.cri.pod("one")? };
        let untouched = node.cri.start(&pod, "untouched", &image, &["/bin/sleep", "1000"])?;
        let changed = node.cri.start(&pod, "changed", &image, &["/bin/sleep", "1000"])?;
        let script = "cd /data; mv folder moved; chmod 600 kept; mv kept moved/kept; rm replaced; echo more >> special/new";
        node.cri.exec(&changed, &["/bin/sh", "-euc", script])?;
        Ok([untouched, changed].map(|container| facts::changed_since(&node.root_of(&container), began)))
    });
    assert!(node.sluice.log().contains("mesh-away"), "nothing was unpacked: {}", node.sluice.log());
    let status = node.status()?;
    assert_eq!(status["images"].as_array().map(Vec::len), Some(2), "not what streamed before: {status}");
    for (mixed, unpacked) in mixed?.into_iter().zip(unpacked?) {
        let (mixed, unpacked) = (mixed?, unpacked?);
        assert!(unpacked.len() > 25, "the reference has only {} entries", unpacked.len());
        let differences = facts::differences(&unpacked, &mixed);
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    }
    Ok(())
}

#[test]
fn an_image_over_layers_that_were_pulled_before_says_so() -> anyhow::Result<()> {
    let settings = vec![RESOLVE_TIMEOUT.to_owned()];
    let mut node = Node::start(&Options { services: true, settings, ..Options::default() })?;
    let base = busybox()?.file("base", b"base").finish();
    let over = |name: &str| ImageSpec::new([base.clone(), Tarball::new().file(name, b"more").finish()]);
    let [first, second] = ["first", "second"].map(|name| node.push(name, &over(name)));
    node.backend()?.fetcher.kill()?;
    node.cri.pull(&first?)?;
    node.backend()?.fetcher.restart()?;
    let second = second?;
    node.cri.pull(&second)?;
    let told = node.scratch().succeed(["events", "--kind", "fallback", "--image", &second])?;
    assert!(told.contains("over-ordinary-layer"), "nobody was told of the second image: {told}");
    let reasons = node.scratch().succeed(["events", "--kind", "fallback"])?;
    let of_first = reasons.lines().filter(|line| line.contains("over-ordinary") && line.contains("first"));
    assert_eq!(of_first.count(), 0, "one telling for each pull: {reasons}");
    Ok(())
}

#[test]
fn some_layers_of_a_streamed_image_need_the_mesh_once() -> anyhow::Result<()> {
    let settings = vec![RESOLVE_TIMEOUT.to_owned()];
    let mut node = Node::start(&Options { services: true, settings, ..Options::default() })?;
    // The other way round than usual: the image of pods is a busybox alone.
    let lower: Vec<_> = base()?.into_iter().rev().collect();
    let below = node.push("below", &ImageSpec::new(lower.clone()))?;
    let other = [lower[0].clone(), busybox()?.file("other", b"other").finish()];
    let other = node.push("app", &ImageSpec::new(other))?;
    node.cri.pull(&below)?;
    let pod = node.cri.pod("one")?;
    node.backend()?.fetcher.kill()?;
    assert!(node.cri.pull(&other).is_err(), "what stands below the second layer is nowhere");
    node.backend()?.fetcher.restart()?;
    node.settle(|_| node.cri.pull(&other).is_ok())?;
    let container = node.cri.start(&pod, "app", &other, &["/bin/sleep", "1000"])?;
    assert_eq!(node.cri.exec(&container, &["/bin/cat", "/other"])?, "other");
    Ok(())
}
