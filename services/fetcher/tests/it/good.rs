//! What imports, and what of it is not done twice.

use image::Digest;
use prost::Message;
use proto::credential::{Basic, Kind};
use proto::layer_progress::State;
use proto::quota::Refused;
use proto::signed::{Domain, verify};
use proto::{AskerFacts, Credential, Grant, InspectRequest, ListRequest};
use quota::{Amount, MetricLimits, ProjectLimits, Quota};
use testkit::layout::sha256;
use testkit::registry::{PASSWORD, USER};
use testkit::{Compression, ImageSpec, Tarball};
use tonic::Code;

use crate::harness::{DEADLINE, Harness, content, layer};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_imported_once_and_then_resolved_at_once() {
    let harness = Harness::start().await;
    let mut layout = harness.layout();
    let manifest = layout.image("v1", &ImageSpec::new([layer(1)])).unwrap();
    let request = harness.request(&layout.reference("v1"));
    let (resolved, progress) = harness.resolve(request.clone()).await.unwrap();

    let summary = resolved.imported.unwrap();
    assert_eq!((summary.layers_read, summary.layers_known), (1, 0));
    assert_eq!(summary.plain_bytes, layer(1).len() as u64);
    assert!(summary.chunks_written >= 3, "{summary:?}");
    let last = progress.last().unwrap();
    assert!(progress.iter().all(|progress| progress.compressed_done <= last.compressed_total));

    let record = harness.record(&resolved);
    assert_eq!(record.manifest_digest, manifest);
    assert_eq!(record.references, [layout.reference("v1")]);
    assert_eq!((record.files, record.layers[0].entries), (3, 6));
    assert_eq!(record.plain_bytes, 5_010_000);
    let objects = harness.objects(&record).await;
    let small = content(1, 10_000);
    assert_eq!(objects.get(&Digest::of(&small)), Some(&small));
    assert_eq!(objects.len(), 2);
    let tree = harness.tree(&record).await;
    assert_eq!(tree.len() as u64, record.tree.plain_len);

    let key = fetcher::verifying_key(&harness.config).unwrap();
    let grant = Grant::decode(verify(&[key], Domain::Grant, &resolved.grant.unwrap()).unwrap()).unwrap();
    assert_eq!((grant.node.as_str(), grant.project.as_str()), ("node-1", "default"));
    assert_eq!(grant.manifest_digest, manifest);

    let (again, progress) = harness.resolve(request).await.unwrap();
    assert!(again.imported.is_none() && progress.is_empty());
    assert_eq!(harness.record(&again), record);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_imports_give_the_same_bytes() {
    let (one, two) = (Harness::start().await, Harness::start().await);
    let mut records = Vec::new();
    for harness in [&one, &two] {
        let mut layout = harness.layout();
        let compression = [Compression::Gzip, Compression::Zstd][records.len()];
        let layers = [layer(1), layer(2)].map(|tar| (tar, Some(compression)));
        layout.image("v1", &ImageSpec { layers: layers.to_vec(), config: None }).unwrap();
        let record = harness.record(&harness.import(&layout.reference("v1")).await.unwrap());
        records.push((record.tree.digest, record.map.digest, harness.tree(&record).await));
    }
    assert!(records[0] == records[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_layer_is_not_read_again_and_a_duplicate_is_read_once() {
    let harness = Harness::start().await;
    let mut layout = harness.layout();
    let base = (layer(1), Some(Compression::None));
    let with =
        |top: Vec<u8>| ImageSpec { layers: vec![base.clone(), base.clone(), (top, None)], config: None };
    layout.image("v1", &with(layer(2))).unwrap();
    let summary = harness.import(&layout.reference("v1")).await.unwrap().imported.unwrap();
    assert_eq!((summary.layers_read, summary.layers_known), (2, 0));

    // Gone from the source: whoever opens it fails.
    std::fs::remove_file(layout.blob_path(&sha256(&base.0))).unwrap();
    layout.image("v2", &with(layer(3))).unwrap();
    let (resolved, progress) = harness.resolve(harness.request(&layout.reference("v2"))).await.unwrap();
    let summary = resolved.imported.unwrap();
    assert_eq!((summary.layers_read, summary.layers_known), (1, 1));
    assert_eq!(summary.compressed_bytes, layer(3).len() as u64);
    let states: Vec<State> = progress.last().unwrap().layers.iter().map(|layer| layer.state()).collect();
    assert!(states.is_empty() || states[0] == State::Known, "{states:?}");
    assert_eq!(harness.record(&resolved).layers.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_layers_and_all_compressions_work() {
    let harness = Harness::start().await;
    let mut layout = harness.layout();
    let many_members = {
        let tar = layer(5);
        let (one, two) = tar.split_at(tar.len() / 2);
        [one, two].map(gzip).concat()
    };
    let skippable = {
        let (one, two) = (layer(6), [0; 0]);
        let mut blob = vec![0x5e, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
        blob.extend(zstd::encode_all(&one[..1000], 1).unwrap());
        blob.extend(zstd::encode_all(&one[1000..], 1).unwrap());
        blob.extend(zstd::encode_all(&two[..], 1).unwrap());
        blob
    };
    let gzip_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    let empty = Tarball::new().finish();
    let layers = vec![
        layout.blob(&gzip(&empty), gzip_type).unwrap(),
        layout.blob(&many_members, gzip_type).unwrap(),
        // The media type says gzip, the bytes are what they are.
        layout.blob(&skippable, gzip_type).unwrap(),
        layout.blob(&layer(7), gzip_type).unwrap(),
        layout.blob(b"", gzip_type).unwrap(),
    ];
    let tars = [&empty[..], &layer(5), &layer(6), &layer(7), b""];
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": tars.map(sha256) },
    });
    layout.manifest("v1", config, layers).unwrap();
    let record = harness.record(&harness.import(&layout.reference("v1")).await.unwrap());
    let entries: Vec<u64> = record.layers.iter().map(|layer| layer.entries).collect();
    assert_eq!(entries, [0, 6, 6, 6, 0]);
    let top = content(7, 10_000);
    assert!(harness.objects(&record).await.contains_key(&Digest::of(&top)));
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_ask_at_once_share_one_import() {
    let harness = Harness::start().await;
    let _second = harness.another().await;
    let mut layout = harness.layout();
    layout.image("v1", &ImageSpec::new([layer(1), layer(2)])).unwrap();
    let reference = layout.reference("v1");
    let asked = (0..8).map(|_| harness.import(&reference));
    let resolved = futures::future::join_all(asked).await;
    let digests: Vec<_> =
        resolved.iter().map(|one| harness.record(one.as_ref().unwrap()).tree.digest).collect();
    assert!(digests.iter().all(|digest| *digest == digests[0]));
    // Two fetchers share the questions; only one of them imports.
    let times: Vec<_> = resolved.iter().filter_map(|one| one.as_ref().unwrap().imported).collect();
    assert!(!times.is_empty() && times.iter().all(|summary| *summary == times[0]), "{times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_is_asked_with_the_callers_credential_also_for_what_is_here() {
    let registry = testkit::Registry::start_private().unwrap();
    let harness = Harness::start().await;
    let mut layout = harness.layout();
    let manifest = layout.image("v1", &ImageSpec::new([layer(1)])).unwrap();
    registry.push(&layout.reference("v1"), "app:v1").unwrap();
    let by_digest = format!("app@{manifest}");
    let ask = |name: &str, password: Option<&str>| {
        let credential = password.map(|password| {
            let basic = Basic { username: USER.into(), password: password.into() };
            Credential { kind: Some(Kind::Basic(basic)) }
        });
        let request = harness.request(&registry.reference(name));
        harness.resolve(proto::ResolveRequest { plain_http: true, credential, ..request })
    };
    // The second time everything is in the store.
    for imports in [true, false] {
        for name in ["app:v1", &by_digest] {
            for password in [None, Some("not-it")] {
                let refusal = format!("/manifests/{} HTTP/1.1\" 401", &name["app:".len()..]);
                let refusals = || registry.log().matches(&refusal).count();
                let before = refusals();
                let status = ask(name, password).await.unwrap_err();
                assert!(
                    matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied),
                    "{name}: {status}"
                );
                assert!(status.message().contains(&registry.host()), "{status}");
                assert!(!status.message().contains("not-it"), "a password in a message: {status}");
                assert!(refusals() > before, "the registry was not asked: {}", registry.log());
            }
        }
        let (resolved, _) = ask("app:v1", Some(PASSWORD)).await.unwrap();
        assert_eq!(resolved.imported.is_some(), imports);
        assert_eq!(harness.record(&resolved).manifest_digest, manifest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_serves_each_blob_once() {
    let registry = testkit::Registry::start().unwrap();
    let harness = Harness::start().await;
    let mut layout = harness.layout();
    let manifest = layout.image("v1", &ImageSpec::new([layer(1), layer(2)])).unwrap();
    registry.push(&layout.reference("v1"), "app:v1").unwrap();
    registry.push(&layout.reference("v1"), "copy:v1").unwrap();
    for name in ["app:v1", "copy:v1"] {
        let reference = registry.reference(name);
        let request = proto::ResolveRequest { plain_http: true, ..harness.request(&reference) };
        let record = harness.record(&harness.resolve(request).await.unwrap().0);
        assert_eq!(record.manifest_digest, manifest);
        assert!(record.references.contains(&reference), "{:?}", record.references);
        for layer in &record.layers {
            let line = format!("GET /v2/{}/blobs/{}", name.trim_end_matches(":v1"), layer.digest);
            let expected = usize::from(name == "app:v1");
            assert_eq!(registry.log().matches(&line).count(), expected, "{line}");
        }
    }
    let images = harness.bus.call(ListRequest::default(), DEADLINE).await.unwrap().images;
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].references.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_tells_without_importing() {
    let harness = Harness::start().await;
    let mut layout = harness.layout();
    let spec = ImageSpec::new([layer(1), Tarball::new().finish(), layer(1)]);
    let manifest = layout.image("v1", &spec).unwrap();
    let asker = AskerFacts {
        node: "n1".to_owned(),
        region: Some("eu-1".to_owned()),
        pool: Some("gpu".to_owned()),
        ..AskerFacts::default()
    };
    let request = InspectRequest {
        reference: layout.reference("v1"),
        platform: harness.request("").platform,
        asker: Some(asker.clone()),
        ..InspectRequest::default()
    };
    let reply = harness.bus.call(request.clone(), DEADLINE).await.unwrap();
    assert_eq!(reply.manifest_digest, manifest);
    let project = "default".to_owned();
    assert_eq!(reply.facts.clone().unwrap().asker, Some(AskerFacts { project, ..asker }));
    assert!(!reply.imported && reply.image.is_none() && reply.ineligible.is_empty());
    let facts = |reply: &proto::InspectReply| -> Vec<_> {
        reply.layers.iter().map(|layer| (layer.empty, layer.duplicate, layer.known)).collect()
    };
    assert_eq!(facts(&reply), [(false, false, false), (true, false, false), (false, true, false)]);
    assert!(!harness.path("store/default").exists(), "a question changed the store");
    harness.import(&layout.reference("v1")).await.unwrap();
    let reply = harness.bus.call(request, DEADLINE).await.unwrap();
    assert!(reply.imported && reply.image.is_some());
    assert_eq!(facts(&reply), [(false, false, true), (true, false, true), (false, true, true)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_costs_once_and_one_too_many_is_refused_for_want_of_quota() {
    let harness = Harness::start().await;
    let imports = MetricLimits { day: Some(Amount::Limit(1)), ..MetricLimits::default() };
    let limits = ProjectLimits { imports, ..ProjectLimits::default() };
    let config = quota::Config { limits, ..quota::Config::default() };
    let (bus, shutdown) = (harness.bus.clone(), harness.shutdown.clone());
    let quota = Quota::start(config, bus, &harness.tasks, shutdown).await.unwrap();
    while quota.probe()().await.is_err() {
        tokio::task::yield_now().await;
    }
    let mut layout = harness.layout();
    layout.image("v1", &ImageSpec::new([layer(1)])).unwrap();
    layout.image("v2", &ImageSpec::new([layer(2)])).unwrap();
    let (first, second) = (layout.reference("v1"), layout.reference("v2"));
    harness.import(&first).await.unwrap();
    let refused =
        Refused::of(&harness.import(&second).await.unwrap_err()).expect("a refusal for want of quota");
    assert_eq!(
        (refused.subject.as_str(), refused.limit.as_str()),
        ("project:default", "imports_per_project_day")
    );
    // What is here already costs nothing.
    harness.import(&first).await.unwrap();
}

/// Of several who ask for one image at once, at whatever fetcher, one pays.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_two_fetchers_are_asked_for_costs_once() {
    let harness = Harness::start().await;
    let _other = harness.another().await;
    let imports = MetricLimits { day: Some(Amount::Limit(1)), ..MetricLimits::default() };
    let limits = ProjectLimits { imports, ..ProjectLimits::default() };
    let config = quota::Config { limits, ..quota::Config::default() };
    let (bus, shutdown) = (harness.bus.clone(), harness.shutdown.clone());
    let quota = Quota::start(config, bus, &harness.tasks, shutdown).await.unwrap();
    while quota.probe()().await.is_err() {
        tokio::task::yield_now().await;
    }
    let mut layout = harness.layout();
    layout.image("v1", &ImageSpec::new([layer(1)])).unwrap();
    let reference = layout.reference("v1");
    let all = futures::future::join_all((0..8).map(|_| harness.import(&reference))).await;
    for imported in all {
        imported.unwrap();
    }
    layout.image("v2", &ImageSpec::new([layer(2)])).unwrap();
    Refused::of(&harness.import(&layout.reference("v2")).await.unwrap_err())
        .expect("the one that there was is spent");
}
