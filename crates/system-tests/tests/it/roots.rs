//! What containers are given of an image that streams: users and groups by name, a root that cannot be written, images as
//! volumes, owners of their own. Each with the oldest and the newest containerd, on one node.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::Context as _;
use proto::cri::{ImageSpec as CriImage, LinuxContainerSecurityContext, Mount};
use system_tests::cri::Pod;
use system_tests::kubernetes::{Node, Options, busybox};
use system_tests::noise;
use testkit::containerd::Version;
use testkit::{ImageSpec, Tarball};

const LEN: usize = 2_000_000;
const CYCLES: usize = 100;
/// Ids that containers in a user namespace have outside, from the first on.
const OUTSIDE: u32 = 100_000;

#[test]
fn containers_of_the_installed_containerd_get_what_they_ask_for() -> anyhow::Result<()> {
    containers_get_what_they_ask_for(Version::chosen())
}

#[test]
fn containers_of_containerd_2_4_get_what_they_ask_for() -> anyhow::Result<()> {
    if !Version::V2_4.is_here() {
        return Ok(());
    }
    containers_get_what_they_ask_for(Version::V2_4)
}

/// Each takes about a second, and there are more of them than a run of all tests has time for:
/// `cargo test -p system-tests --test it -- --ignored cycles`.
#[test]
#[ignore = "minutes: by hand, for each containerd with SLUICE_CONTAINERD"]
fn after_a_hundred_cycles_nothing_is_mounted() -> anyhow::Result<()> {
    let node = Node::start(&Options::default())?;
    let before = node.scratch().mounts()?.len();
    let image = node.push("app", &application()?)?;
    for number in 0..CYCLES {
        node.cri.pull(&image)?;
        let pod = node.cri.pod(&number.to_string())?;
        let container = node.cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;
        let printed = node.cri.exec(&container, &["/bin/sha256sum", "/data/read"])?;
        assert_eq!(printed.split(' ').next(), Some(sum(&noise(1, LEN)).as_str()));
        // Without the second that a process has to end by itself.
        node.cri.remove_pod(&pod)?;
        for reference in [&image, &node.registry.reference("pause:latest")] {
            node.cri.remove_image(reference)?;
        }
    }
    node.settle_empty(before)?;
    assert_eq!(std::fs::read_dir(node.scratch().state().join("snapshots"))?.count(), 0, "folders stay");
    Ok(())
}

/// A container of a frontend from before images were merged. Its program is in `SLUICE_OLD_FRONTEND`: a build of an older commit.
#[test]
#[ignore = "by hand: needs an older build"]
fn a_container_from_before_an_upgrade_goes_on() -> anyhow::Result<()> {
    let old = std::env::var_os("SLUICE_OLD_FRONTEND").context("SLUICE_OLD_FRONTEND names no program")?;
    let settings = vec!["frontend.background=false".to_owned()];
    let options = Options { services: true, settings, program: Some(old.into()), ..Options::default() };
    let mut node = Node::start(&options)?;
    let image = node.push("app", &application()?)?;
    node.cri.pull(&image)?;
    let pod = node.cri.pod("one")?;
    let container = node.cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;
    let run = |node: &Node, script: &str| node.cri.exec(&container, &["/bin/sh", "-euc", script]);
    run(&node, "chmod 600 /data/read; mv /data /moved; sha256sum /moved/read")?;
    in_a_user_namespace(&node, &image)?;
    assert!(node.lower_of(&container)?.len() > 1, "it is no older frontend");
    node.sluice.end()?;
    node.restart_sluice(&Options { services: true, ..Options::default() })?;
    let sum_of = |seed| sum(&noise(seed, LEN));
    let printed = run(&node, "sha256sum /moved/unread /moved/read")?;
    assert_eq!(printed, format!("{}  /moved/unread\n{}  /moved/read\n", sum_of(2), sum_of(1)));
    // Over the snapshot of other owners that the older one made, and beside the container.
    in_a_user_namespace(&node, &image)?;
    node.settle(|status| status["images"][0]["complete"] == true)?;
    node.backend()?.kill()?;
    let root = node.mount_snapshot(&container)?;
    assert_eq!(sum(&std::fs::read(root.join("moved/unread"))?), sum_of(2), "mounted as for a new task");
    node.kill_all()?;
    let printed = run(&node, "sha256sum /moved/unread /moved/read")?;
    assert_eq!(printed, format!("{}  /moved/unread\n{}  /moved/read\n", sum_of(2), sum_of(1)));
    Ok(())
}

fn containers_get_what_they_ask_for(containerd: Version) -> anyhow::Result<()> {
    // Nothing arrives but what is read.
    let settings = vec!["frontend.background=false".to_owned()];
    let node = Node::start(&Options { containerd, settings, ..Options::default() })?;
    let before = node.scratch().mounts()?.len();
    let image = node.push("app", &application()?)?;
    node.cri.pull(&image)?;
    let pod = node.cri.pod("one")?;
    in_a_user_namespace(&node, &image)?;
    by_name(&node, &pod, &image)?;
    let has_image_volumes = matches!(containerd, Version::V2 | Version::V2_3 | Version::V2_4);
    let volume = has_image_volumes.then(|| image_volume(&node, &pod, &image)).transpose()?;
    node.cri.remove_pod(&pod)?;
    let references = [Some(image), volume, Some(node.registry.reference("pause:latest"))];
    for reference in references.iter().flatten() {
        node.cri.remove_image(reference)?;
    }
    node.settle_empty(before)
}

/// Users and groups are in files that are no objects of their own, and in ones that are.
fn application() -> anyhow::Result<ImageSpec> {
    let many: String = (1000..2000).map(|id| format!("user{id}:x:{id}:{id}::/:/bin/sh\n")).collect();
    let users = format!("root:x:0:0::/:/bin/sh\n{many}worker:x:123:456::/:/bin/sh\n");
    let groups = "root:x:0:\nworkers:x:456:\nextra:x:789:worker\n";
    let data = Tarball::new().directory("etc").file("etc/passwd", users.as_bytes());
    let data = data.file("etc/group", groups.as_bytes()).directory("data");
    let data = data.file("data/read", &noise(1, LEN)).file("data/unread", &noise(2, LEN));
    Ok(ImageSpec::new([busybox()?.finish(), data.finish()]))
}

fn by_name(node: &Node, pod: &Pod, image: &str) -> anyhow::Result<()> {
    let user = LinuxContainerSecurityContext {
        run_as_username: "worker".to_owned(),
        readonly_rootfs: true,
        ..LinuxContainerSecurityContext::default()
    };
    let container = node.cri.create_as(pod, "by-name", image, &["/bin/sleep", "1000"], user, Vec::new())?;
    node.cri.begin(&container)?;
    let run = |script: &str| node.cri.exec(&container, &["/bin/sh", "-euc", script]);
    let ids = run("/bin/busybox id -u; /bin/busybox id -g; /bin/busybox id -G")?;
    assert_eq!(ids, "123\n456\n456 789\n");
    assert_eq!(
        run("touch /data/new 2>&1 || echo refused")?,
        "touch: /data/new: Read-only file system\nrefused\n"
    );
    assert_eq!(run("cat /data/read | sha256sum")?, run("sha256sum < /data/read")?);
    node.cri.stop(&container)
}

/// Another image, in a folder of a container; its reference.
fn image_volume(node: &Node, pod: &Pod, image: &str) -> anyhow::Result<String> {
    let model = Tarball::new().directory("model").file("model/weights", &noise(7, LEN));
    let model = node.push("model", &ImageSpec::new([model.finish()]))?;
    let pulled = node.cri.pull(&model)?;
    let volume = Mount {
        container_path: "/volume".to_owned(),
        readonly: true,
        image: Some(CriImage { image: pulled }),
        ..Mount::default()
    };
    let security = LinuxContainerSecurityContext::default();
    let container =
        node.cri.create_as(pod, "volume", image, &["/bin/sleep", "1000"], security, vec![volume])?;
    node.cri.begin(&container)?;
    let script = "touch /volume/new 2>/dev/null || cat /volume/model/weights";
    let printed = node.cri.exec(&container, &["/bin/sh", "-euc", &format!("({script}) | sha256sum")])?;
    assert_eq!(printed.split(' ').next(), Some(sum(&noise(7, LEN)).as_str()));
    let status = node.status()?;
    let streams =
        |image: &serde_json::Value| image["reference"].as_str().is_some_and(|name| name.contains("model"));
    assert!(status["images"].as_array().is_some_and(|images| images.iter().any(streams)), "{status}");
    node.cri.stop(&container)?;
    Ok(model)
}

fn sum(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(bytes))
}

/// containerd gives all files their owners by itself, which is to fetch none; twice, as the second finds what the first made.
fn in_a_user_namespace(node: &Node, image: &str) -> anyhow::Result<()> {
    let containerd = &node.containerd;
    let map = format!("0:{OUTSIDE}:65536");
    let received = || -> anyhow::Result<u64> {
        let status = node.status()?;
        let all = status["images"].as_array().context("images")?.iter();
        let ours = all.filter(|found| found["reference"] == image);
        Ok(ours.filter_map(|image| image["received_bytes"].as_u64()).sum())
    };
    for name in ["first", "second"] {
        let run = ["run", "--detach", "--uidmap", &map, "--gidmap", &map, image, name, "/bin/sleep", "1000"];
        containerd.ctr(&run)?;
        assert!(name == "second" || received()? < LEN as u64, "giving files other owners fetched them");
        let script =
            "stat -c %u:%g /data/read; sha256sum /data/read; echo new > /data/unread; cat /data/unread";
        let printed =
            containerd.ctr(&["tasks", "exec", "--exec-id", "e", name, "/bin/sh", "-euc", script])?;
        let expected = format!("0:0\n{}  /data/read\nnew\n", sum(&noise(1, LEN)));
        assert_eq!(printed, expected, "inside it is root's, with the image's bytes");
        let root = format!("/proc/{}/root", node.process_of(name)?.as_raw_nonzero());
        let outside = std::fs::metadata(Path::new(&root).join("data/read"))?;
        assert_eq!((outside.uid(), outside.gid()), (OUTSIDE, OUTSIDE));
    }
    for name in ["first", "second"] {
        containerd.ctr(&["tasks", "kill", "--signal", "SIGKILL", name])?;
        containerd.ctr(&["tasks", "delete", "--force", name])?;
        containerd.ctr(&["containers", "delete", name])?;
    }
    Ok(())
}
