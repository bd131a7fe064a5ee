//! What a collection does not delete: anything, as long as one record is not believed, and a large part that nobody removed.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use bus::Bus;
use ed25519_dalek::SigningKey;
use fetcher::{Config, Fetcher};
use futures::TryStreamExt;
use prost::Message;
use proto::resolve_reply::Answer;
use proto::signed::{Domain, sign, verify};
use proto::{
    CollectReply, CollectRequest, FollowRequest, ListRequest, RemoveRequest, ResolveRequest, Resolved,
    Signed, StoredLayer,
};
use store::Kind;
use testkit::{ImageSpec, LayoutWriter};
use tonic::{Code, Status};

use crate::harness::{DEADLINE, Harness, layer};

const DAY: Duration = Duration::from_secs(86_400);

/// A harness with two images, and their digests.
async fn with_two_images() -> (Harness, LayoutWriter, [String; 2]) {
    let harness = Harness::start().await;
    let mut layout = harness.layout();
    let mut digests = Vec::new();
    for (tag, seed) in [("v1", 1), ("v2", 5)] {
        layout.image(tag, &ImageSpec::new([layer(seed)])).unwrap();
        let resolved = harness.import(&layout.reference(tag)).await.unwrap();
        digests.push(harness.record(&resolved).manifest_digest);
    }
    let digests = digests.try_into().unwrap();
    (harness, layout, digests)
}

/// Answers questions about the harness's store with another key, on a bus of its own.
async fn asked_elsewhere(harness: &Harness, key: &str, trusted: Vec<String>) -> (Bus, Fetcher) {
    let bus = Bus::in_process();
    let config =
        Config { signing_key_file: harness.path(key), trusted_keys: trusted, ..harness.config.clone() };
    let (store, tasks) = (harness.store.clone(), &harness.tasks);
    let fetcher = Fetcher::start_for_questions(config, store, bus.clone(), tasks, harness.shutdown.clone());
    let fetcher = fetcher.await.unwrap();
    (bus, fetcher)
}

async fn collect(bus: &Bus, request: CollectRequest) -> Result<CollectReply, Status> {
    bus.call(request, DEADLINE).await
}

async fn remove(bus: &Bus, image: &str, force: bool) -> Result<Vec<String>, Status> {
    let request = RemoveRequest { image: image.to_owned(), force, ..RemoveRequest::default() };
    bus.call(request, DEADLINE).await.map(|reply| reply.manifest_digests)
}

/// Everything that the store holds.
async fn everything(harness: &Harness) -> Vec<(Kind, String)> {
    let mut all = Vec::new();
    for kind in Kind::ALL {
        let listed: Vec<_> = harness.project().list(kind).try_collect().await.unwrap();
        all.extend(listed.into_iter().map(|stored| (kind, stored.hex)));
    }
    all.sort_by_key(|(_, hex)| hex.clone());
    all
}

/// Nothing goes, whatever is asked for; the refusal.
async fn refuses(harness: &Harness, bus: &Bus) -> String {
    let before = everything(harness).await;
    let mut said = String::new();
    for (dry_run, force) in [(true, false), (false, false), (false, true)] {
        let request = CollectRequest { dry_run, force, ..CollectRequest::default() };
        let error = collect(bus, request).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        said = error.message().to_owned();
        assert!(everything(harness).await == before, "something was deleted: {said}");
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_with_another_key_deletes_nothing() {
    let (harness, layout, digests) = with_two_images().await;
    let (elsewhere, _fetcher) = asked_elsewhere(&harness, "elsewhere/fetcher.key", Vec::new()).await;
    let said = refuses(&harness, &elsewhere).await;
    for part in [&digests[0], &digests[1], "unknown key", "fetcher.trusted_keys", "sluice rm --force"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let listed = elsewhere.call(ListRequest::default(), DEADLINE).await.unwrap();
    assert_eq!((listed.images.len(), listed.refused.len()), (0, 2));
    assert!(listed.refused[0].reason.contains("unknown key"), "{listed:?}");
    assert!(!harness.path("elsewhere").exists(), "a key was made to answer a question");

    // A key of before, which is still believed.
    let key = hex::encode(fetcher::verifying_key(&harness.config).unwrap().as_bytes());
    let (trusting, _fetcher) = asked_elsewhere(&harness, "elsewhere/fetcher.key", vec![key]).await;
    assert_eq!(collect(&trusting, CollectRequest::default()).await.unwrap().deleted, 0);

    // Whoever says so forgets records that are not believed, one by one.
    let refused = remove(&elsewhere, &digests[0], false).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("--force"), "{refused}");
    let unnamed = remove(&elsewhere, &layout.reference("v1"), true).await.unwrap_err();
    assert!(unnamed.message().contains("2 records are not believed"), "{unnamed}");
    for digest in &digests {
        assert_eq!(remove(&elsewhere, digest, true).await.unwrap(), std::slice::from_ref(digest));
    }
    let asked = collect(&elsewhere, CollectRequest::default()).await.unwrap_err();
    assert!(asked.message().contains("sluice gc --force"), "{asked}");
    let all = CollectRequest { force: true, ..CollectRequest::default() };
    assert!(collect(&elsewhere, all).await.unwrap().deleted > 8);
    assert!(everything(&harness).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_record_that_cannot_be_believed_keeps_everything() {
    let (harness, _layout, digests) = with_two_images().await;
    let images = harness.path("store/default/images");
    let record = images.join(&digests[0][7..]);
    let good = fs::read(&record).unwrap();
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    for wrong in [
        forged,
        Vec::new(),
        good[..good.len() / 2].to_vec(),
        of_version(&harness, Domain::ImageRecord, &good, 7),
    ] {
        fs::write(&record, wrong).unwrap();
        let said = refuses(&harness, &harness.bus).await;
        assert!(said.contains(&digests[0]) && !said.contains(&digests[1]), "{said}");
    }
    fs::write(&record, &good).unwrap();
    assert_eq!(collect(&harness.bus, CollectRequest::default()).await.unwrap().deleted, 0);

    // Where another one should be, under a name of no record, and where nothing can be read.
    let misplaced = images.join("ab".repeat(32));
    fs::copy(&record, &misplaced).unwrap();
    assert!(refuses(&harness, &harness.bus).await.contains(&"ab".repeat(32)));
    fs::rename(&misplaced, images.join("record.v2")).unwrap();
    assert!(refuses(&harness, &harness.bus).await.contains("images/record.v2"));
    fs::remove_file(images.join("record.v2")).unwrap();
    for folder in ["images", "layers", "chunks", "maps"] {
        let endless = harness.path("store/default").join(folder).join("cd".repeat(32));
        std::os::unix::fs::symlink(&endless, &endless).unwrap();
        let error = collect(&harness.bus, CollectRequest::default()).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{folder}: {error}");
        assert!(error.message().contains(folder), "{folder}: {error}");
        fs::remove_file(&endless).unwrap();
    }
    let before = everything(&harness).await;
    assert_eq!(collect(&harness.bus, CollectRequest::default()).await.unwrap().deleted, 0);
    assert!(everything(&harness).await == before);
}

/// The record as a version of sluice writes it that has another format; signed with the same key.
fn of_version(harness: &Harness, domain: Domain, good: &[u8], version: u16) -> Vec<u8> {
    let key: [u8; 32] = fs::read(&harness.config.signing_key_file).unwrap().try_into().unwrap();
    let mut payload = Signed::decode(good).unwrap().payload;
    payload[4..6].copy_from_slice(&version.to_le_bytes());
    sign(&SigningKey::from_bytes(&key), domain, payload).encode_to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn layer_records_of_an_earlier_version_go_once_they_are_old_and_those_of_a_later_one_keep_everything() {
    let (harness, layout, _) = with_two_images().await;
    let record = fs::read_dir(harness.path("store/default/layers")).unwrap().next().unwrap().unwrap().path();
    // As a version wrote it that did not say where a layer was read.
    let stored = Signed::decode(&*fs::read(&record).unwrap()).unwrap().payload;
    let payload = StoredLayer::decode(&*stored).unwrap().record;
    let good = Signed { payload, ..Signed::default() }.encode_to_vec();
    let write =
        |version| fs::write(&record, of_version(&harness, Domain::LayerRecord, &good, version)).unwrap();
    write(7);
    refuses(&harness, &harness.bus).await;
    write(1);
    let day = CollectRequest { grace_seconds: DAY.as_secs() as u32, ..CollectRequest::default() };
    let young = collect(&harness.bus, day.clone()).await.unwrap_err();
    assert!(young.message().contains("version 1"), "{young}");
    age(&harness.path("store"), 2 * DAY);
    assert_eq!(collect(&harness.bus, day).await.unwrap().deleted, 1);
    assert!(!record.exists());
    for tag in ["v1", "v2"] {
        let resolved = harness.import(&layout.reference(tag)).await.unwrap();
        harness.objects(&harness.record(&resolved)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_record_that_cannot_be_believed_keeps_everything() {
    let (harness, layout, _) = with_two_images().await;
    let record = fs::read_dir(harness.path("store/default/layers")).unwrap().next().unwrap().unwrap().path();
    let digest = format!("sha256:{}", record.file_name().unwrap().to_str().unwrap());
    fs::write(&record, b"not a record").unwrap();
    let said = refuses(&harness, &harness.bus).await;
    assert!(said.contains(&digest) && said.contains("layer record"), "{said}");
    assert_eq!(remove(&harness.bus, &digest, false).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(remove(&harness.bus, &digest, true).await.unwrap(), [digest]);
    assert_eq!(collect(&harness.bus, CollectRequest::default()).await.unwrap().deleted, 0);
    for tag in ["v1", "v2"] {
        let resolved = harness.import(&layout.reference(tag)).await.unwrap();
        harness.objects(&harness.record(&resolved)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_part_goes_only_when_it_was_removed_or_with_force() {
    let (harness, layout, digests) = with_two_images().await;
    // Somebody's mistake, which no command of ours made.
    let record = harness.path("store/default/images").join(&digests[0][7..]);
    let kept = fs::read(&record).unwrap();
    fs::remove_file(&record).unwrap();
    let before = everything(&harness).await;
    let asked = collect(&harness.bus, CollectRequest::default()).await.unwrap_err();
    assert_eq!(asked.code(), Code::FailedPrecondition);
    assert!(asked.message().contains("25 %") && asked.message().contains("--force"), "{asked}");
    let dry = CollectRequest { dry_run: true, ..CollectRequest::default() };
    let planned = collect(&harness.bus, dry).await.unwrap();
    assert!(planned.deleted > 4 && planned.needs_force.contains("--force"), "{planned:?}");
    assert!(everything(&harness).await == before);

    // The same when the image is removed.
    fs::write(&record, kept).unwrap();
    remove(&harness.bus, &layout.reference("v1"), false).await.unwrap();
    let done = collect(&harness.bus, CollectRequest::default()).await.unwrap();
    assert_eq!((done.deleted, done.deleted_bytes), (planned.deleted, planned.deleted_bytes));
    // And for the last one.
    remove(&harness.bus, &layout.reference("v2"), false).await.unwrap();
    collect(&harness.bus, CollectRequest::default()).await.unwrap();
    assert!(everything(&harness).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_image_that_is_imported_again_stays() {
    let (harness, layout, digests) = with_two_images().await;
    remove(&harness.bus, &digests[0], false).await.unwrap();
    let resolved = harness.import(&layout.reference("v1")).await.unwrap();
    assert_eq!(collect(&harness.bus, CollectRequest::default()).await.unwrap().deleted, 0);
    harness.objects(&harness.record(&resolved)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_was_cut_short_finds_the_chunks_of_the_layers_that_it_had_read() {
    let (harness, layout, digests) = with_two_images().await;
    remove(&harness.bus, &digests[0], false).await.unwrap();
    age(&harness.path("store"), 2 * DAY);
    // It read a layer whose chunks were here already, and wrote nothing but its record.
    for record in fs::read_dir(harness.path("store/default/layers")).unwrap() {
        age(&record.unwrap().path(), Duration::ZERO);
    }
    let day = CollectRequest { grace_seconds: DAY.as_secs() as u32, ..CollectRequest::default() };
    let done = collect(&harness.bus, day).await.unwrap();
    assert!(done.deleted > 0, "tree, map and source of the removed image go: {done:?}");
    let resolved = harness.import(&layout.reference("v1")).await.unwrap();
    assert_eq!(resolved.imported.as_ref().unwrap().layers_read, 0);
    harness.objects(&harness.record(&resolved)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_take_nothing_from_a_fetcher_that_imports_with_another_key() {
    let (harness, mut layout, _) = with_two_images().await;
    layout.image("v3", &ImageSpec::new([layer(9), layer(1)])).unwrap();
    let bus = Bus::in_process();
    let config = Config { signing_key_file: harness.path("other.key"), ..harness.config.clone() };
    let (store, tasks, shutdown) = (harness.store.clone(), &harness.tasks, harness.shutdown.clone());
    let _other = Fetcher::start(config.clone(), store, bus.clone(), tasks, shutdown).await.unwrap();
    let request = harness.request(&layout.reference("v3"));
    let importing = tokio::spawn(resolve_on(bus, request));
    let mut said = Vec::new();
    while !importing.is_finished() {
        let collected =
            collect(&harness.bus, CollectRequest { force: true, ..CollectRequest::default() }).await;
        said.push(collected.map(|reply| reply.deleted).map_err(|status| status.code()));
    }
    let expected = [Ok(0), Err(Code::Unavailable), Err(Code::FailedPrecondition)];
    assert!(said.iter().all(|one| expected.contains(one)), "{said:?}");
    let resolved = importing.await.unwrap();
    let key = fetcher::verifying_key(&config).unwrap();
    let payload = verify(&[key], Domain::ImageRecord, resolved.record.as_ref().unwrap()).unwrap();
    harness.objects(&image::ImageRecord::decode(payload).unwrap()).await;
    assert!(refuses(&harness, &harness.bus).await.contains("unknown key"));
}

/// Imports with whoever answers on `bus`.
async fn resolve_on(bus: Bus, request: ResolveRequest) -> Resolved {
    let (project, node) = (request.project.clone(), request.node.clone());
    let mut reply = bus.call(request, DEADLINE).await.unwrap();
    loop {
        let ticket = match reply.answer.unwrap() {
            Answer::Resolved(resolved) => return resolved,
            Answer::Importing(ticket) => ticket,
        };
        let seen_revision = ticket.progress.unwrap().revision;
        let follow = FollowRequest {
            ticket: ticket.ticket,
            wait_ms: 10_000,
            seen_revision,
            project: project.clone(),
            node: node.clone(),
        };
        reply = bus.call_instance(&ticket.instance, follow, DEADLINE).await.unwrap();
    }
}

/// Sets when a file, or all files below a folder, were written last.
fn age(path: &Path, by: Duration) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            age(&entry.unwrap().path(), by);
        }
        return;
    }
    File::options().write(true).open(path).unwrap().set_modified(SystemTime::now() - by).unwrap();
}
