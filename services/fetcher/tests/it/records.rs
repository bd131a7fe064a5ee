//! What the store holds is believed only when it is right, and goes when nobody names it.

use std::time::Duration;

use bus::Answer;
use bytesize::ByteSize;
use image::{Digest, Profile};
use proto::{
    CollectRequest, ListRequest, RefreshReply, RefreshRequest, RemoveRequest, RepairRequest, ReportRequest,
    ResolveRequest, Starts,
};
use store::{Kind, verify};
use testkit::{ImageSpec, LayoutWriter, Tarball};
use tokio::time::{sleep, timeout};
use tonic::Code;

use crate::harness::{DEADLINE, Harness, content, layer};

async fn imported(harness: &Harness, layers: &[Vec<u8>]) -> (LayoutWriter, image::ImageRecord) {
    let mut layout = harness.layout();
    layout.image("v1", &ImageSpec::new(layers.to_vec())).unwrap();
    let resolved = harness.import(&layout.reference("v1")).await.unwrap();
    (layout, harness.record(&resolved))
}

async fn stored(harness: &Harness, kind: Kind) -> usize {
    use futures::TryStreamExt;
    harness.project().list(kind).try_collect::<Vec<_>>().await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_record_is_as_good_as_absent() {
    let harness = Harness::start().await;
    let (layout, record) = imported(&harness, &[layer(1)]).await;
    let image = harness.path("store/default/images").join(&record.manifest_digest[7..]);
    let layer_record = harness.path("store/default/layers").join(&record.layers[0].diff_id[7..]);
    let good = std::fs::read(&image).unwrap();
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    for wrong in [forged, vec![], good[..good.len() / 2].to_vec()] {
        std::fs::write(&image, wrong).unwrap();
        let listed = harness.bus.call(ListRequest::default(), DEADLINE).await.unwrap();
        assert!(listed.images.is_empty());
        let again = harness.import(&layout.reference("v1")).await.unwrap();
        let summary = again.imported.unwrap();
        assert_eq!((summary.layers_read, summary.layers_known), (0, 1));
        assert_eq!(harness.record(&again).tree, record.tree);
    }
    std::fs::write(&image, b"").unwrap();
    std::fs::write(&layer_record, b"not a record").unwrap();
    let again = harness.import(&layout.reference("v1")).await.unwrap();
    assert_eq!(again.imported.unwrap().layers_read, 1);
    assert_eq!(harness.record(&again).tree, record.tree);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_content_is_brought_back() {
    let harness = Harness::start().await;
    let other = Tarball::new().file("other", &content(9, 300_000)).finish();
    let (layout, record) = imported(&harness, &[layer(1), other]).await;
    let objects = harness.objects(&record).await;
    let project = harness.project();
    let map = project.index(store::Index::Map, record.map.digest).await.unwrap();
    let map = image::Map::decode(&store::verify::open_index(&record.map.digest, &map).unwrap()).unwrap();
    let (first, last) = (map.chunks[0].digest, map.chunks[map.chunks.len() - 1].digest);

    let damage = || {
        let mut bytes = std::fs::read(harness.chunk_file(&first)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(harness.chunk_file(&first), bytes).unwrap();
        std::fs::remove_file(harness.chunk_file(&last)).unwrap();
        std::fs::write(harness.path("store/default/trees").join(record.tree.digest.path()), b"torn").unwrap();
    };
    damage();
    let request =
        RepairRequest { manifest_digest: record.manifest_digest.clone(), ..RepairRequest::default() };
    let reply = harness.bus.call(request.clone(), DEADLINE).await.unwrap();
    assert_eq!(reply.restored, 3);
    assert!(harness.objects(&record).await == objects);
    harness.tree(&record).await;
    assert_eq!(harness.bus.call(request, DEADLINE).await.unwrap().restored, 0);

    damage();
    let request = ResolveRequest { verify: true, ..harness.request(&layout.reference("v1")) };
    let (resolved, _) = harness.resolve(request).await.unwrap();
    assert_eq!(resolved.imported.unwrap().layers_read, 2);
    assert!(harness.objects(&harness.record(&resolved)).await == objects);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_counts_a_damaged_layer_once() {
    // Of 2000 files, with what their names take: more than half of it.
    let harness = Harness::start_with(|config| config.limits.image_records = ByteSize::mb(1)).await;
    let files = (0..2000).fold(Tarball::new(), |tar, number| tar.file(&number.to_string(), b""));
    let (_, record) = imported(&harness, &[files.file("small", &content(1, 10_000)).finish()]).await;
    let chunk = harness.map(&record).await.chunks[0].digest;
    std::fs::remove_file(harness.chunk_file(&chunk)).unwrap();
    let request =
        RepairRequest { manifest_digest: record.manifest_digest.clone(), ..RepairRequest::default() };
    assert_eq!(harness.bus.call(request, DEADLINE).await.unwrap().restored, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_repair_could_not_do_the_next_resolve_does() {
    let harness = Harness::start().await;
    let (layout, record) = imported(&harness, &[layer(1)]).await;
    let chunk = Digest::of(&content(1, 10_000));
    assert!(harness.chunk_file(&chunk).exists(), "the small file has a chunk of its own");
    std::fs::remove_file(harness.chunk_file(&chunk)).unwrap();
    let hidden = harness.path("hidden");
    std::fs::rename(harness.path("layout"), &hidden).unwrap();
    let request =
        RepairRequest { manifest_digest: record.manifest_digest.clone(), ..RepairRequest::default() };
    assert_eq!(harness.bus.call(request, DEADLINE).await.unwrap_err().code(), Code::NotFound);
    std::fs::rename(&hidden, harness.path("layout")).unwrap();
    let resolved = harness.import(&layout.reference("v1")).await.unwrap();
    assert_eq!(resolved.imported.unwrap().layers_read, 1);
    harness.objects(&record).await;
    assert!(harness.import(&layout.reference("v1")).await.unwrap().imported.is_none(), "repaired once");
}

#[tokio::test(flavor = "multi_thread")]
async fn collection_takes_what_no_image_names_and_nothing_else() {
    let harness = Harness::start().await;
    let (mut layout, first) = imported(&harness, &[layer(1), layer(3)]).await;
    layout
        .image("v2", &ImageSpec::new([layer(1), Tarball::new().file("b", &content(9, 70_000)).finish()]))
        .unwrap();
    let second = harness.record(&harness.import(&layout.reference("v2")).await.unwrap());
    let all = CollectRequest::default();
    assert_eq!(harness.bus.call(all.clone(), DEADLINE).await.unwrap().deleted, 0);

    let remove = RemoveRequest { image: layout.reference("v1"), ..RemoveRequest::default() };
    let removed = harness.bus.call(remove.clone(), DEADLINE).await.unwrap();
    assert_eq!(removed.manifest_digests, std::slice::from_ref(&first.manifest_digest));
    assert_eq!(harness.bus.call(remove, DEADLINE).await.unwrap_err().code(), Code::NotFound);

    let young = CollectRequest { grace_seconds: 3600, ..all.clone() };
    assert_eq!(harness.bus.call(young, DEADLINE).await.unwrap().deleted, 0);
    let dry = CollectRequest { dry_run: true, ..all.clone() };
    let planned = harness.bus.call(dry, DEADLINE).await.unwrap();
    let done = harness.bus.call(all.clone(), DEADLINE).await.unwrap();
    assert_eq!(planned, done);
    // Tree, map, source, one layer record, and the chunks of that layer.
    assert!(done.deleted > 4 && done.deleted_bytes > 1_000_000, "{done:?}");
    harness.objects(&second).await;
    harness.tree(&second).await;
    assert_eq!(stored(&harness, Kind::Layer).await, 2);
    assert_eq!(stored(&harness, Kind::Tree).await, 1);

    let remove = RemoveRequest { image: second.manifest_digest.clone(), ..RemoveRequest::default() };
    harness.bus.call(remove, DEADLINE).await.unwrap();
    harness.bus.call(all, DEADLINE).await.unwrap();
    for kind in Kind::ALL {
        assert_eq!(stored(&harness, kind).await, 0, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_are_learned_from() {
    let harness = Harness::start().await;
    let (layout, record) = imported(&harness, &[layer(1)]).await;
    let own: Vec<Digest> = harness.map(&record).await.chunks.iter().map(|chunk| chunk.digest).collect();
    let start = Profile { starts: 1, chunks: vec![own[1], own[0]] };
    let report = ReportRequest {
        manifest_digest: record.manifest_digest.clone(),
        profile: start.encode().unwrap(),
        ..ReportRequest::default()
    };
    for starts in 1..=2 {
        harness.bus.call(report.clone(), DEADLINE).await.unwrap();
        let resolved = harness.import(&layout.reference("v1")).await.unwrap();
        let profile = Profile::decode(&resolved.profile).unwrap();
        assert_eq!(profile, Profile { starts, chunks: start.chunks.clone() });
    }
    let nonsense = ReportRequest { profile: vec![1, 2, 3], ..report.clone() };
    assert_eq!(harness.bus.call(nonsense, DEADLINE).await.unwrap_err().code(), Code::InvalidArgument);
    let other = ReportRequest { manifest_digest: format!("sha256:{}", "00".repeat(32)), ..report };
    assert_eq!(harness.bus.call(other, DEADLINE).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_starts_read_is_stored_as_small_as_it_gets() {
    // The fetcher that hears of the start ends before it is done; the next one hears of the image only.
    let mut harness = Harness::start_with(|config| config.starts_zstd_level = Some(0)).await;
    let text: Vec<u8> =
        (0..40_000u32).flat_map(|number| format!("{}\n", number * 7919).into_bytes()).collect();
    let (layout, record) = imported(&harness, &[Tarball::new().file("text", &text).finish()]).await;
    let map = harness.map(&record).await;
    let (digest, before) =
        (map.chunks[0].digest, harness.project().chunk(map.chunks[0].digest).await.unwrap());
    // What is not the image's own is nobody's work.
    let start = Profile { starts: 1, chunks: vec![digest, Digest::of(b"a stranger's")] };
    let report = ReportRequest {
        manifest_digest: record.manifest_digest.clone(),
        profile: start.encode().unwrap(),
        ..ReportRequest::default()
    };
    harness.bus.call(report, DEADLINE).await.unwrap();
    let reference = layout.reference("v1");
    assert_eq!(harness.starts(&reference).await, Starts { reported: 1, chunks: 1, recompressed: 0 });

    let (sender, mut refreshed) = tokio::sync::mpsc::unbounded_channel();
    let heard = move |request: RefreshRequest| {
        sender.send(request.chunks).unwrap();
        std::future::ready(Ok(RefreshReply {}))
    };
    let _cache = harness.bus.answer(Answer { in_flight: 8, instance: None }, heard).await.unwrap();
    harness.config.starts_zstd_level = None;
    harness.restart().await;
    harness.import(&reference).await.unwrap();
    let told = timeout(DEADLINE, refreshed.recv()).await.unwrap().unwrap();
    assert_eq!(told, [digest.as_bytes().to_vec()]);
    let done = async {
        while harness.starts(&reference).await.recompressed < 1 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, done).await.unwrap();
    let after = harness.project().chunk(digest).await.unwrap();
    assert!(after.len() < before.len(), "{} of {}", after.len(), before.len());
    assert_eq!(verify::open_chunk(&digest, &after), verify::open_chunk(&digest, &before));
    harness.objects(&record).await;

    // A repair brings it back as an import stores it, and that is not the end.
    std::fs::write(harness.chunk_file(&digest), b"spoilt").unwrap();
    let repair =
        RepairRequest { manifest_digest: record.manifest_digest.clone(), ..RepairRequest::default() };
    assert_eq!(harness.bus.call(repair, DEADLINE).await.unwrap().restored, 1);
    let again = async {
        while harness.project().chunk(digest).await.unwrap() != after {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, again).await.unwrap();
}
