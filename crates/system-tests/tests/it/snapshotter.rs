//! containerd with sluice as its snapshotter, asked as the kubelet asks: what streams and what does not.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;

use sha2::{Digest as _, Sha256};
use system_tests::kubernetes::{Node, Options, busybox};
use system_tests::{metrics, noise};
use testkit::containerd::Annotations;
use testkit::{ImageSpec, Tarball};

const LEN: usize = 2_000_000;

/// Two layers: a busybox, and files of which a container reads one.
fn application(seed: u64) -> anyhow::Result<ImageSpec> {
    let data = Tarball::new().directory("data").file("data/read", &noise(seed, LEN));
    let data = data.file("data/unread", &noise(seed + 1, LEN));
    Ok(ImageSpec::new([busybox()?.finish(), data.finish()]))
}

fn sum(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn sum_in(node: &Node, container: &str, path: &str) -> anyhow::Result<String> {
    let printed = node.cri.exec(container, &["/bin/sha256sum", path])?;
    Ok(printed.split(' ').next().unwrap_or_default().to_owned())
}

/// Sizes of all blobs that containerd keeps.
fn blobs(node: &Node) -> anyhow::Result<BTreeSet<String>> {
    Ok(node.containerd.ctr(&["content", "list", "--quiet"])?.lines().map(str::to_owned).collect())
}

/// To the kernel, the container's root is an overlay over one folder, in which the image's names and data are merged.
fn stands_on_its_image(node: &Node, container: &str) -> anyhow::Result<()> {
    let (lower, state) = (node.lower_of(container)?, node.scratch().state());
    let [merged] = &lower[..] else { anyhow::bail!("not one folder: {lower:?}") };
    assert_eq!(merged.parent(), Some(state.join("mnt/merged").as_path()), "{lower:?}");
    assert!(merged.join("data/unread").exists(), "not this image: {}", merged.display());
    Ok(())
}

/// To the kernel, the container's root is an overlay over layers that containerd unpacked, and nothing else.
fn stands_on_unpacked_layers(node: &Node, container: &str) -> anyhow::Result<()> {
    let (lower, snapshots) = (node.lower_of(container)?, node.scratch().state().join("snapshots"));
    assert_eq!(lower.len(), 2, "{lower:?}");
    assert!(lower.iter().all(|layer| layer.starts_with(&snapshots)), "{lower:?}");
    Ok(())
}

#[test]
fn a_container_streams_and_leaves_nothing_behind() -> anyhow::Result<()> {
    streams_and_leaves_nothing(&Options::default())
}

pub(crate) fn streams_and_leaves_nothing(options: &Options) -> anyhow::Result<()> {
    let node = Node::start(options)?;
    let image = node.push("app", &application(1)?)?;
    let before = node.scratch().mounts()?.len();
    node.cri.pull(&image)?;
    let pod = node.cri.pod("one")?;
    let container = node.cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;

    // Manifests and configs of two images; no layer.
    assert_eq!(blobs(&node)?.len(), 4, "containerd fetched layers");
    let status = node.status()?;
    let images = status["images"].as_array().map_or(0, Vec::len);
    assert_eq!(images, 2, "not both images stream: {status}");
    stands_on_its_image(&node, &container)?;
    assert_eq!(sum_in(&node, &container, "/data/read")?, sum(&noise(1, LEN)));
    let received = node.status()?["received_bytes"].as_u64();
    assert!(received > Some(LEN as u64), "{received:?} bytes were streamed");
    node.cri
        .exec(&container, &["/bin/sh", "-c", "echo new > /data/read && cat /data/read && mv /data /moved"])?;
    assert_eq!(sum_in(&node, &container, "/moved/unread")?, sum(&noise(2, LEN)));

    node.cri.stop(&container)?;
    node.cri.remove_pod(&pod)?;
    for reference in [&image, &node.registry.reference("pause:latest")] {
        node.cri.remove_image(reference)?;
    }
    node.settle_empty(before)?;
    assert_eq!(std::fs::read_dir(node.scratch().state().join("snapshots"))?.count(), 0, "folders stay");
    // And again, with what the store has.
    node.cri.pull(&image)?;
    Ok(())
}

#[test]
fn ctr_pulls_with_labels_runs_executes_in_and_removes_what_streams() -> anyhow::Result<()> {
    let node = Node::start(&Options::default())?;
    let image = node.push("app", &application(5)?)?;
    let containerd = &node.containerd;
    containerd.pull_with_labels(&image)?;
    assert_eq!(blobs(&node)?.len(), 2, "containerd fetched layers");
    let status = node.status()?;
    assert_eq!(status["images"].as_array().map(Vec::len), Some(1), "it does not stream: {status}");

    containerd.ctr(&["run", "--detach", "--net-host", &image, "one", "/bin/sleep", "1000"])?;
    let execute =
        |command: &[&str]| containerd.ctr(&[&["tasks", "exec", "--exec-id", "e", "one"], command].concat());
    let printed = execute(&["/bin/sha256sum", "/data/read"])?;
    assert!(printed.starts_with(&sum(&noise(5, LEN))), "{printed}");
    assert!(node.status()?["images"][0]["received_bytes"].as_u64() > Some(0), "nothing was streamed");
    execute(&[
        "/bin/sh",
        "-euc",
        "mv /data /moved && echo new > /moved/read && [ \"$(cat /moved/read)\" = new ]",
    ])?;
    containerd.ctr(&["tasks", "kill", "--signal", "SIGKILL", "one"])?;
    containerd.ctr(&["tasks", "delete", "--force", "one"])?;
    containerd.ctr(&["containers", "delete", "one"])?;
    // The CRI has given it a name, too.
    for name in containerd.ctr(&["images", "list", "--quiet"])?.lines() {
        containerd.ctr(&["images", "remove", "--sync", name])?;
    }
    node.settle(|status| status["images"].as_array().is_some_and(Vec::is_empty))
}

#[test]
fn without_annotations_an_image_is_pulled_as_ever() -> anyhow::Result<()> {
    pulls_as_ever_without_annotations(&Options::default())
}

pub(crate) fn pulls_as_ever_without_annotations(options: &Options) -> anyhow::Result<()> {
    let mut options = Options { annotations: Annotations::Off, ..options.clone() };
    let admin = testkit::port::free()?;
    options.settings.push(format!("lifecycle.admin=127.0.0.1:{admin}"));
    let node = Node::start(&options)?;
    let image = node.push("app", &application(3)?)?;
    node.cri.pull(&image)?;
    let pod = node.cri.pod("one")?;
    let container = node.cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;
    assert_eq!(sum_in(&node, &container, "/data/read")?, sum(&noise(3, LEN)));

    let status = node.status()?;
    assert_eq!(status["images"].as_array().map(Vec::len), Some(0), "something streams: {status}");
    assert_eq!(status["received_bytes"], 0, "something was streamed: {status}");
    // Manifests and configs of two images, and two layers: they share the lower one.
    assert_eq!(blobs(&node)?.len(), 6);
    stands_on_unpacked_layers(&node, &container)?;
    assert!(node.sluice.log().contains("no-annotations"), "nobody was told: {}", node.sluice.log());
    let counted = |metric: &str| metrics::sum(admin, &format!("sluice_frontend_layers_{metric}"));
    assert_eq!(counted("ordinary_total{reason=\"no-annotations\"}")?, 1.0, "of the lowest layer");
    assert_eq!(counted("ordinary_total")?, 2.0, "and that of the layer over it");
    assert_eq!(counted("streamed_total")?, 0.0);
    let told = node.scratch().succeed(["events", "--kind", "fallback"])?;
    assert!(told.contains("no-annotations") && told.contains("disable_snapshot_annotations"), "{told}");
    node.cri.stop(&container)?;
    node.cri.remove_pod(&pod)
}

#[test]
fn an_image_is_pulled_as_ever_while_its_import_goes_on_and_streams_afterwards() -> anyhow::Result<()> {
    for services in [true, false] {
        let settings = vec!["frontend.import_timeout=0s".to_owned()];
        let node = Node::start(&Options { services, settings, ..Options::default() })?;
        let base = busybox()?.file("own", b"no other image has this layer").finish();
        let data = Tarball::new().file("data", &noise(8, LEN)).finish();
        let image = node.push("app", &ImageSpec::new([base, data]))?;
        node.cri.pull(&image)?;
        let told = node.scratch().succeed(["events", "--kind", "fallback", "--image", &image])?;
        assert!(told.contains("not-imported-yet") && told.contains("ask again in 10s"), "{told}");
        let mut pulls = 0;
        while node.status()?["images"].as_array().is_none_or(Vec::is_empty) {
            pulls += 1;
            assert!(pulls < 100, "it never streams: {}", node.sluice.log());
            node.cri.remove_image(&image)?;
            std::thread::sleep(std::time::Duration::from_millis(100));
            node.cri.pull(&image)?;
        }
        let pod = node.cri.pod("one")?;
        let container = node.cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;
        assert_eq!(sum_in(&node, &container, "/data")?, sum(&noise(8, LEN)));
    }
    Ok(())
}

#[test]
fn on_a_machine_that_cannot_stream_all_images_are_pulled_as_ever() -> anyhow::Result<()> {
    let scratch = system_tests::Scratch::new()?;
    let program = scratch.path("frontend-on-an-old-kernel");
    let frontend = system_tests::binaries::path("frontend")?;
    std::fs::write(&program, format!("#!/bin/sh\nexec setarch --uname-2.6 {} \"$@\"\n", frontend.display()))?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    let node = Node::start(&Options { services: true, program: Some(program), ..Options::default() })?;
    let image = node.push("app", &application(7)?)?;
    node.cri.pull(&image)?;
    let pod = node.cri.pod("one")?;
    let container = node.cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;
    assert_eq!(sum_in(&node, &container, "/data/read")?, sum(&noise(7, LEN)));
    assert_eq!(blobs(&node)?.len(), 6, "not all layers were fetched");
    stands_on_unpacked_layers(&node, &container)?;
    let log = node.sluice.log();
    assert!(log.contains("machine-cannot-stream") && log.contains("is too old"), "nobody was told: {log}");
    node.cri.stop(&container)?;
    node.cri.remove_pod(&pod)
}
