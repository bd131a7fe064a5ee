//! The node against a real mesh, with real mounts. Needs root and /dev/fuse, as the frontend does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod mesh;

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ed25519_dalek::SigningKey;
use prost::Message as _;
use proto::plan_item::Item;
use proto::plan_reply::Mode;
use proto::signed::{Domain, sign};
use proto::{EventKind, EvictRequest, Grant, PlanItem, PlanReply, PlanRequest, Signed};
use rustix::mount::UnmountFlags;
use testkit::Tarball;
use tonic::Code;

use mesh::{Mesh, noise, read};

/// Small files that share a chunk, and large ones of several.
fn tar() -> Vec<u8> {
    Tarball::new()
        .directory("etc")
        .file("etc/inline", b"a few bytes")
        .file("etc/small", &noise("small", 20_000))
        .file("etc/other", &noise("other", 30_000))
        .hard_link("etc/linked", "etc/small")
        .symlink("link", "etc/small")
        .file("large", &noise("large", 5_000_000))
        .file("zeros", &vec![0; 3_000_000])
        .finish()
}

/// Everything in [`tar`] but `large`.
async fn assert_small_files(root: &Path) {
    assert_eq!(read(root.join("etc/inline")).await.unwrap(), b"a few bytes");
    for name in ["etc/small", "etc/linked", "link"] {
        assert_eq!(read(root.join(name)).await.unwrap(), noise("small", 20_000), "{name}");
    }
    assert_eq!(read(root.join("etc/other")).await.unwrap(), noise("other", 30_000));
    assert_eq!(read(root.join("zeros")).await.unwrap(), vec![0; 3_000_000]);
}

async fn assert_whole(root: &Path) {
    assert_small_files(root).await;
    assert_eq!(read(root.join("large")).await.unwrap(), noise("large", 5_000_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_read_as_they_are_needed() {
    let mut mesh = Mesh::start().await;
    let manifest = mesh.image("one", tar());
    let target = mesh.target("root");
    let mut node = mesh.node("node", |config| config.background = false).await.unwrap();
    let mounted = node.mount(mesh.request("one", &target)).await.unwrap();
    assert_eq!(mounted.manifest_digest, manifest);
    assert_eq!(
        mounted.phases.iter().map(|phase| phase.name.as_str()).collect::<Vec<_>>(),
        ["resolve", "index", "mount"]
    );
    assert!(serde_json::from_slice::<serde_json::Value>(&mounted.config).unwrap()["rootfs"].is_object());
    assert_eq!(node.image(&manifest).await.unwrap().progress.unwrap().received_bytes, 0);
    // What nobody reads is not fetched: a piece in the middle costs its chunks, not the file.
    let large = target.join("large");
    let piece = tokio::task::spawn_blocking(move || {
        let mut piece = vec![0; 10];
        fs::File::open(large).unwrap().read_exact_at(&mut piece, 2_500_000).unwrap();
        piece
    });
    assert_eq!(piece.await.unwrap(), noise("large", 5_000_000)[2_500_000..2_500_010]);
    let progress = node.image(&manifest).await.unwrap().progress.unwrap();
    assert!(progress.demand_bytes > 0 && progress.received_bytes < 4_500_000, "{progress:?}");
    assert_whole(&target).await;
    assert_eq!(fs::metadata(target.join("etc/small")).unwrap().nlink(), 2);
    node.unmount(&target).await.unwrap();
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_complete_image_needs_nobody() {
    let mut mesh = Mesh::start().await;
    let manifest = mesh.image("one", tar());
    let (first, second) = (mesh.target("first"), mesh.target("second"));
    let mut node = mesh.node("node", |_| {}).await.unwrap();
    node.mount(mesh.request("one", &first)).await.unwrap();
    node.complete(&manifest).await;
    mesh.go_away().await;
    assert_whole(&first).await;
    node.unmount(&first).await.unwrap();
    node.stop().await;
    // Neither does the next process, which mounts it by the name it had.
    let mut node = mesh.node("node", |config| config.resolve_timeout = Duration::from_secs(1)).await.unwrap();
    node.mount(mesh.request("one", &second)).await.unwrap();
    assert_whole(&second).await;
    assert!(node.image(&manifest).await.unwrap().progress.unwrap().complete);
    // What it does not know it refuses.
    let other = mesh.target("other");
    let status = node.mount(mesh.request("two", &other)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_outlives_its_frontend_and_is_found_by_the_next() {
    let mut mesh = Mesh::start().await;
    let manifest = mesh.image("one", tar());
    let target = mesh.target("root");
    let mut node = mesh.node("node", |config| config.background = false).await.unwrap();
    node.mount(mesh.request("one", &target)).await.unwrap();
    node.stop().await;
    let mut node = mesh.node("node", |_| {}).await.unwrap();
    let mounts = node.image(&manifest).await.unwrap().mounts;
    assert_eq!(mounts, [target.to_str().unwrap()]);
    // It completes the image, and what had not been opened before is then read from the disk.
    node.until(&manifest, |image| image.progress.as_ref().is_some_and(|progress| progress.complete)).await;
    assert_whole(&target).await;
    let evict = EvictRequest { image: manifest.clone() };
    assert_eq!(node.client.evict(evict).await.unwrap_err().code(), Code::FailedPrecondition);
    node.unmount(&target).await.unwrap();
    node.stop().await;
}

/// The grant for an image as one that ended long ago.
fn ended(mesh: &Mesh, node: &str, manifest: &str) -> Signed {
    let key: [u8; 32] = fs::read(mesh.path("fetcher.key")).unwrap().try_into().unwrap();
    let grant = Grant {
        project: "default".to_owned(),
        node: node.to_owned(),
        manifest_digest: manifest.to_owned(),
        expires_unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() - 3600,
        ..Grant::default()
    };
    sign(&SigningKey::from_bytes(&key), Domain::Grant, grant.encode_to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_ended_before_its_first_use_is_renewed_for_it() {
    let mut mesh = Mesh::start().await;
    let manifest = mesh.image("one", tar());
    let target = mesh.target("root");
    let mut node = mesh.node("node", |config| config.background = false).await.unwrap();
    node.mount(mesh.request("one", &target)).await.unwrap();
    node.stop().await;
    // The next process must fetch the map, and has what ended meanwhile.
    let kept = mesh.path("node/grants").join(&manifest[7..]);
    fs::write(&kept, ended(&mesh, "node", &manifest).encode_to_vec()).unwrap();
    for map in fs::read_dir(mesh.path("node/maps")).unwrap() {
        fs::remove_file(map.unwrap().path()).unwrap();
    }
    let mut node = mesh.node("node", |config| config.background = false).await.unwrap();
    node.until(&manifest, |image| image.progress.as_ref().is_some_and(|progress| progress.objects_total > 0))
        .await;
    node.unmount(&target).await.unwrap();
    node.mount(mesh.request("one", &target)).await.unwrap();
    assert_whole(&target).await;
    let now = Signed::decode(&*fs::read(&kept).unwrap()).unwrap();
    let expires = Grant::decode(&*now.payload).unwrap().expires_unix;
    assert!(
        expires > SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs(),
        "it is kept as it was"
    );
    node.stop().await;
}

/// How many files are below a folder of the node's.
fn files(mesh: &Mesh, folder: &str) -> usize {
    fs::read_dir(mesh.path("node").join(folder)).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_opened_leaves_nothing() {
    let mut mesh = Mesh::start().await;
    let manifest = mesh.image("one", tar());
    let target = mesh.target("root");
    let mut other = mesh.node("other", |_| {}).await.unwrap();
    other.mount(mesh.request("one", &target)).await.unwrap();
    other.unmount(&target).await.unwrap();
    other.stop().await;
    // Its tree can be had, and its map neither read nor repaired.
    let maps = mesh.path("store/default/maps");
    let shard = fs::read_dir(&maps).unwrap().next().unwrap().unwrap().path();
    let map = fs::read_dir(&shard).unwrap().next().unwrap().unwrap().path();
    fs::rename(&map, mesh.path("map")).unwrap();
    fs::create_dir_all(map.join("in the way")).unwrap();
    mesh.go_away().await;
    mesh.start_fetcher().await;
    mesh.start_cache().await;
    let hasty = |config: &mut frontend::Config| config.read_timeout = Duration::from_secs(2);
    let mut node = mesh.node("node", hasty).await.unwrap();
    let status = node.mount(mesh.request("one", &target)).await.unwrap_err();
    assert!(status.message().contains("map"), "{status}");
    assert!(node.image(&manifest).await.is_none());
    for folder in ["trees", "maps", "records", "grants"] {
        assert_eq!(files(&mesh, folder), 0, "{folder}");
    }
    fs::remove_dir_all(&map).unwrap();
    fs::rename(mesh.path("map"), &map).unwrap();
    node.mount(mesh.request("one", &target)).await.unwrap();
    assert_whole(&target).await;
    node.unmount(&target).await.unwrap();
    node.stop().await;

    // What a process left that was killed while it opened one.
    for stray in ["trees/00", "maps/00"] {
        let suffix = if stray.starts_with("trees") { ".erofs" } else { "" };
        let name = format!("{stray}{}{suffix}", "ab".repeat(31));
        fs::write(mesh.path("node").join(name), b"left").unwrap();
    }
    let node = mesh.node("node", |_| {}).await.unwrap();
    assert_eq!((files(&mesh, "trees"), files(&mesh, "maps")), (1, 1));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_indexes_are_fetched_again() {
    let mut mesh = Mesh::start().await;
    let manifest = mesh.image("one", tar());
    let target = mesh.target("root");
    let mut node = mesh.node("node", |_| {}).await.unwrap();
    node.mount(mesh.request("one", &target)).await.unwrap();
    node.complete(&manifest).await;
    node.unmount(&target).await.unwrap();
    node.stop().await;
    for folder in ["trees", "maps"] {
        let entry = fs::read_dir(mesh.path("node").join(folder)).unwrap().next().unwrap().unwrap();
        let mut bytes = fs::read(entry.path()).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(entry.path(), bytes).unwrap();
    }
    let mut node = mesh.node("node", |_| {}).await.unwrap();
    node.mount(mesh.request("one", &target)).await.unwrap();
    assert_whole(&target).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_share_what_they_have_in_common() {
    let mut mesh = Mesh::start().await;
    let one = mesh.image("one", tar());
    let two = mesh.image(
        "two",
        Tarball::new().file("again", &noise("large", 5_000_000)).file("own", &noise("own", 9_000)).finish(),
    );
    let (first, second) = (mesh.target("first"), mesh.target("second"));
    let mut node = mesh.node("node", |_| {}).await.unwrap();
    node.mount(mesh.request("one", &first)).await.unwrap();
    node.complete(&one).await;
    node.mount(mesh.request("two", &second)).await.unwrap();
    node.complete(&two).await;
    assert_eq!(read(second.join("again")).await.unwrap(), noise("large", 5_000_000));
    let received = node.image(&two).await.unwrap().progress.unwrap().received_bytes;
    assert!(received < 100_000, "{received}");
    // One image goes; what the other needs stays.
    node.unmount(&first).await.unwrap();
    let freed =
        node.client.evict(EvictRequest { image: one.clone() }).await.unwrap().into_inner().freed_bytes;
    assert!(freed > 50_000, "{freed}");
    assert!(node.image(&one).await.is_none());
    assert_eq!(read(second.join("again")).await.unwrap(), noise("large", 5_000_000));
    assert_eq!(read(second.join("own")).await.unwrap(), noise("own", 9_000));
    node.mount(mesh.request("one", &first)).await.unwrap();
    assert_whole(&first).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmount_behind_its_back_is_noticed() {
    let mut mesh = Mesh::start().await;
    let manifest = mesh.image("one", tar());
    let (first, second) = (mesh.target("first"), mesh.target("second"));
    let mut node = mesh.node("node", |_| {}).await.unwrap();
    node.mount(mesh.request("one", &first)).await.unwrap();
    node.mount(mesh.request("one", &second)).await.unwrap();
    rustix::mount::unmount(&first, UnmountFlags::empty()).unwrap();
    let image = node.until(&manifest, |image| image.mounts.len() == 1).await;
    assert_eq!(image.mounts, [second.to_str().unwrap()]);
    assert_eq!(node.unmount(&first).await.unwrap_err().code(), Code::NotFound);
    assert_whole(&second).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_may_mount_the_same_image_at_once() {
    let mut mesh = Mesh::start().await;
    let manifest = mesh.image("one", tar());
    let targets: Vec<_> = (0..6).map(|number| mesh.target(&format!("root{number}"))).collect();
    let mut node = mesh.node("node", |_| {}).await.unwrap();
    let mounts = targets.iter().map(|target| {
        let (mut client, request) = (node.client.clone(), mesh.request("one", target));
        async move {
            let mut events = client.mount(request).await.unwrap().into_inner();
            while events.message().await.unwrap().is_some() {}
        }
    });
    futures::future::join_all(mounts).await;
    for target in &targets {
        assert_whole(target).await;
    }
    assert_eq!(node.image(&manifest).await.unwrap().mounts.len(), 6);
    // All ask for one target: one of them gets it.
    let target = mesh.target("contended");
    let request = mesh.request("one", &target);
    let mut others = Vec::new();
    for _ in 0..4 {
        let (mut client, request) = (node.client.clone(), request.clone());
        others.push(tokio::spawn(async move {
            let mut events = client.mount(request).await.unwrap().into_inner();
            loop {
                match events.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Code::Ok,
                    Err(status) => return status.code(),
                }
            }
        }));
    }
    let mut codes = Vec::new();
    for other in others {
        codes.push(other.await.unwrap());
    }
    codes.sort_by_key(|code| *code as i32);
    assert_eq!(
        codes,
        [Code::Ok, Code::FailedPrecondition, Code::FailedPrecondition, Code::FailedPrecondition]
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_start_read_the_next_node_prefetches() {
    let mut mesh = Mesh::start().await;
    let manifest = mesh.image("one", tar());
    let (first, second) = (mesh.target("first"), mesh.target("second"));
    let settle = |config: &mut frontend::Config| {
        config.background = false;
        config.start_settled = Duration::from_millis(200);
    };
    let mut one = mesh.node("one", settle).await.unwrap();
    one.mount(mesh.request("one", &first)).await.unwrap();
    assert_eq!(read(first.join("etc/small")).await.unwrap(), noise("small", 20_000));
    reported(&mesh, &manifest).await;
    // On another node nobody reads anything, and it comes all the same.
    let mut two = mesh.node("two", settle).await.unwrap();
    two.mount(mesh.request("one", &second)).await.unwrap();
    let has = |image: &proto::NodeImage| {
        image.progress.as_ref().is_some_and(|progress| progress.prefetch_bytes > 20_000)
    };
    let image = two.until(&manifest, has).await;
    assert_eq!(image.progress.unwrap().demand_bytes, 0);
    assert_eq!(read(second.join("etc/small")).await.unwrap(), noise("small", 20_000));
    assert_eq!(two.image(&manifest).await.unwrap().progress.unwrap().demand_bytes, 0);
    one.stop().await;
    two.stop().await;
}

/// Waits until a start of the image was reported.
async fn reported(mesh: &Mesh, manifest: &str) {
    let project = mesh.store().project("default").unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while project.profile(manifest).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "no profile was reported");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_start_read_is_prefetched_for_the_next_image_of_the_repository() {
    let mut mesh = Mesh::start().await;
    let older = mesh.image("older", tar());
    // Small files travel packed: what is new stands before the one that is read, and moves it.
    let changed = Tarball::new().directory("etc").file("etc/before", &noise("before", 30_000));
    let changed = changed.file("etc/small", &noise("small", 20_000)).file("etc/big", &noise("new", 900_000));
    let newer = mesh.image("newer", changed.finish());
    let (first, second) = (mesh.target("first"), mesh.target("second"));
    let settle = |config: &mut frontend::Config| {
        config.background = false;
        config.start_settled = Duration::from_millis(200);
    };
    let mut one = mesh.node("one", settle).await.unwrap();
    one.mount(mesh.request("older", &first)).await.unwrap();
    read(first.join("etc/small")).await.unwrap();
    reported(&mesh, &older).await;
    // Nobody has ever started it.
    let mut two = mesh.node("two", settle).await.unwrap();
    two.mount(mesh.request("newer", &second)).await.unwrap();
    let has = |image: &proto::NodeImage| {
        image.progress.as_ref().is_some_and(|progress| progress.prefetch_bytes > 20_000)
    };
    let image = two.until(&newer, has).await;
    assert_eq!(read(second.join("etc/small")).await.unwrap(), noise("small", 20_000));
    let progress = two.image(&newer).await.unwrap().progress.unwrap();
    assert_eq!(progress.demand_bytes, 0, "the read waited: {image:?}");
    assert!(progress.prefetch_bytes < 500_000, "what changed is no part of it: {progress:?}");
    one.stop().await;
    two.stop().await;
}

/// Answers for a policy that lists these paths, and nothing else.
async fn plans(mesh: &Mesh, paths: &[&str]) -> bus::Answering {
    let item = |path: &&str| PlanItem { item: Some(Item::Path((*path).to_owned())) };
    let items = paths.iter().map(item).collect();
    let plan = PlanReply { mode: Mode::ListedOnly.into(), items, ..PlanReply::default() };
    let answer = bus::Answer { in_flight: 4, instance: None };
    let planning = move |_: PlanRequest| std::future::ready(Ok(plan.clone()));
    mesh.bus.answer(answer, planning).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_may_name_files_by_their_paths() {
    let mut mesh = Mesh::start().await;
    let manifest = mesh.image("one", tar());
    let target = mesh.target("root");
    // By a link, by its name, inline, and two that lead nowhere: out of the tree there is nothing.
    let paths = ["link", "/large", "etc/inline", "../../../etc/passwd", "etc/none"];
    let _planning = plans(&mesh, &paths).await;
    let mut node = mesh.node("node", |_| ()).await.unwrap();
    node.mount(mesh.request("one", &target)).await.unwrap();
    // `small` stands in one chunk with its neighbours; `large` is the most of the image.
    let has = |image: &proto::NodeImage| {
        image.progress.as_ref().is_some_and(|progress| progress.bytes_local >= 5_020_000)
    };
    node.until(&manifest, has).await;
    for (path, len) in [("large", 5_000_000), ("etc/small", 20_000)] {
        let name = path.trim_start_matches("etc/");
        assert_eq!(read(target.join(path)).await.unwrap(), noise(name, len));
    }
    let progress = node.image(&manifest).await.unwrap().progress.unwrap();
    assert_eq!((progress.demand_bytes, progress.complete), (0, false), "only what was listed: {progress:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_may_name_a_folder_for_all_files_below_it() {
    let mut mesh = Mesh::start().await;
    let files = ["lib/one", "lib/sub/two", "other"];
    let tar = files.iter().fold(Tarball::new(), |tar, name| tar.file(name, &noise(name, 1_500_000)));
    let manifest = mesh.image("one", tar.finish());
    let target = mesh.target("root");
    let _planning = plans(&mesh, &["lib/"]).await;
    let mut node = mesh.node("node", |_| ()).await.unwrap();
    node.mount(mesh.request("one", &target)).await.unwrap();
    let has = |image: &proto::NodeImage| {
        image.progress.as_ref().is_some_and(|progress| progress.bytes_local >= 3_000_000)
    };
    node.until(&manifest, has).await;
    for name in &files[..2] {
        assert_eq!(read(target.join(name)).await.unwrap(), noise(name, 1_500_000));
    }
    let progress = node.image(&manifest).await.unwrap().progress.unwrap();
    assert_eq!(
        (progress.demand_bytes, progress.bytes_local),
        (0, 3_000_000),
        "only the folder: {progress:?}"
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_of_what_cannot_come_fails_and_is_never_zeros() {
    let mut mesh = Mesh::start().await;
    mesh.image("one", tar());
    let target = mesh.target("root");
    let change = |config: &mut frontend::Config| {
        config.background = false;
        config.read_timeout = Duration::from_secs(1);
    };
    let mut node = mesh.node("node", change).await.unwrap();
    node.mount(mesh.request("one", &target)).await.unwrap();
    mesh.go_away().await;
    let error = read(target.join("etc/small")).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
    assert_eq!(read(target.join("etc/inline")).await.unwrap(), b"a few bytes");
    // Nothing of that is remembered: when the mesh is back, so is the file.
    mesh.start_fetcher().await;
    mesh.start_cache().await;
    assert_whole(&target).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_why_and_leave_nothing_mounted() {
    let mut mesh = Mesh::start().await;
    mesh.image("one", tar());
    let target = mesh.target("root");
    let full = mesh.target("full");
    fs::write(full.join("file"), b"").unwrap();
    let mut node = mesh.node("node", |_| {}).await.unwrap();
    let mut refusal =
        async |tag: &str, target: &Path| node.mount(mesh.request(tag, target)).await.unwrap_err();
    let absent = refusal("absent", &target).await;
    assert_eq!(absent.code(), Code::NotFound, "{absent}");
    assert_eq!(refusal("one", &full).await.code(), Code::FailedPrecondition);
    assert_eq!(refusal("one", &mesh.path("nowhere")).await.code(), Code::NotFound);
    assert_eq!(refusal("one", Path::new("relative")).await.code(), Code::InvalidArgument);
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    let twice = mesh.node("node", |config| config.socket = mesh.path("twice.sock")).await;
    assert!(twice.err().unwrap().to_string().contains("another frontend"));
    let status = node.unmount(&target).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_to_the_upper_layer() {
    let mut mesh = Mesh::start().await;
    mesh.image("one", tar());
    let target = mesh.target("root");
    let (upper, work) = (mesh.path("upper"), mesh.path("work"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&work).unwrap();
    let mut node = mesh.node("node", |_| {}).await.unwrap();
    let mut request = mesh.request("one", &target);
    request.upper = upper.to_str().unwrap().to_owned();
    request.work = work.to_str().unwrap().to_owned();
    node.mount(request).await.unwrap();
    let writing = target.clone();
    tokio::task::spawn_blocking(move || {
        // A copy-up of a file that is not here yet waits for it, as a read does.
        let mut file = fs::OpenOptions::new().append(true).open(writing.join("etc/other")).unwrap();
        std::io::Write::write_all(&mut file, b"more").unwrap();
        fs::remove_file(writing.join("link")).unwrap();
    })
    .await
    .unwrap();
    let changed = read(upper.join("etc/other")).await.unwrap();
    assert_eq!(changed, [noise("other", 30_000), b"more".to_vec()].concat());
    assert!(!target.join("link").exists());
    node.unmount(&target).await.unwrap();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_node_ends() {
    let mut mesh = Mesh::start().await;
    let manifest = mesh.image("one", tar());
    let target = mesh.target("root");
    let mut node =
        mesh.node("node", |config| config.exit_when_idle = Some(Duration::from_secs(1))).await.unwrap();
    node.mount(mesh.request("one", &target)).await.unwrap();
    node.complete(&manifest).await;
    assert!(!node.shutdown.is_cancelled());
    node.unmount(&target).await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), node.shutdown.cancelled()).await.unwrap();
    node.stop().await;
}

const TERABYTE: u64 = 1 << 40;

/// Where data, and then a hole, begins after `offset`.
fn sought(file: &fs::File, offset: u64) -> Option<(u64, u64)> {
    let data = rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)).ok()?;
    Some((data, rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(data)).unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn files_with_holes_keep_them() {
    let mut mesh = Mesh::start().await;
    let block = noise("block", 4096);
    let tar = Tarball::new()
        .sparse("holed", TERABYTE, &[(TERABYTE / 2, 4096)], &block)
        .sparse("hollow", TERABYTE, &[], b"")
        .finish();
    let manifest = mesh.image("one", tar);
    let (target, again) = (mesh.target("root"), mesh.target("again"));
    let mut node = mesh.node("node", |config| config.background = false).await.unwrap();
    node.mount(mesh.request("one", &target)).await.unwrap();
    let check = |root: &Path| {
        let (root, block) = (root.to_owned(), block.clone());
        tokio::task::spawn_blocking(move || {
            for name in ["holed", "hollow"] {
                let file = fs::File::open(root.join(name)).unwrap();
                assert_eq!(file.metadata().unwrap().len(), TERABYTE);
                let mut bytes = vec![1; 4098];
                file.read_exact_at(&mut bytes, TERABYTE / 2 - 1).unwrap();
                let mut last = [1; 10];
                file.read_exact_at(&mut last, TERABYTE - 10).unwrap();
                assert_eq!(last, [0; 10]);
                if name == "holed" {
                    assert!(bytes[1..4097] == block && bytes[0] == 0 && bytes[4097] == 0);
                    assert_eq!(sought(&file, 5), Some((TERABYTE / 2, TERABYTE / 2 + 4096)));
                } else {
                    assert!(bytes.iter().all(|byte| *byte == 0));
                }
                assert_eq!(sought(&file, TERABYTE / 2 + 4096), None, "{name}");
                // The kernel asks for it when the file is looked up below the tree.
                assert!(file.metadata().unwrap().blocks() <= 16, "{name}");
            }
        })
    };
    check(&target).await.unwrap();
    node.stop().await;
    let mut node = mesh.node("node", |_| {}).await.unwrap();
    node.complete(&manifest).await;
    node.mount(mesh.request("one", &again)).await.unwrap();
    check(&again).await.unwrap();
    let image = node.image(&manifest).await.unwrap();
    assert_eq!(image.progress.unwrap().bytes_total, 4096);
    let status = node.client.status(proto::StatusRequest { reads: false }).await.unwrap().into_inner();
    assert!(status.disk_bytes < 1 << 20, "{}", status.disk_bytes);
    node.unmount(&again).await.unwrap();
    node.unmount(&target).await.unwrap();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_judged_or_a_stranger_signed_is_told() {
    let mut mesh = Mesh::start().await;
    mesh.image("one", tar());
    let target = mesh.target("root");
    let mut node = mesh.node("node", |_| {}).await.unwrap();
    // Another fetcher, whose key nobody trusts.
    mesh.go_away().await;
    fs::remove_file(mesh.path("fetcher.key")).unwrap();
    mesh.start_fetcher().await;
    mesh.start_cache().await;
    let refused = node.mount(mesh.request("one", &target)).await.unwrap_err();
    assert_eq!(refused.code(), Code::DataLoss, "{refused:?}");
    let told = mesh.bus.events().recent();
    let one = |reason: &str| {
        let mut of_reason = told.iter().filter(|event| event.reason == reason);
        let one = of_reason.next().unwrap_or_else(|| panic!("no {reason}: {told:#?}"));
        assert!(of_reason.next().is_none(), "{told:#?}");
        one
    };
    let unjudged = one("no-policy-answers");
    assert_eq!((unjudged.kind(), unjudged.node.as_str()), (EventKind::Unjudged, "node"));
    assert!(unjudged.image.ends_with(":one"), "{unjudged:?}");
    let stranger = one("untrusted-key");
    assert_eq!((stranger.kind(), stranger.node.as_str()), (EventKind::Degraded, "node"));
    assert!(stranger.message.contains("frontend.trusted_keys"), "{stranger:?}");
    node.stop().await;
}
