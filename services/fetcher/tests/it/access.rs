//! Knowing a name is not access: what one registry let a caller read says nothing of what another one may have him read.

use image::{Digest, LayerRecord};
use prost::Message;
use proto::credential::{Basic, Kind};
use proto::resolve_reply::Answer;
use proto::signed::{Domain, sign, verify};
use proto::switch_request::To;
use proto::{
    Credential, FollowRequest, InspectRequest, ListRequest, RenewRequest, RepairRequest, ResolveRequest,
    Signed, StoredLayer, SwitchRequest,
};
use testkit::lying::{ClaimedLayer, LyingRegistry};
use testkit::registry::{PASSWORD, USER};
use testkit::{ImageSpec, Registry};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::{DEADLINE, Harness, content, layer};

async fn import(harness: &Harness, reference: &str) -> Result<proto::Resolved, Status> {
    let request = ResolveRequest { plain_http: true, ..harness.request(reference) };
    harness.resolve(request).await.map(|(resolved, _)| resolved)
}

/// A registry with an image of two layers, which is imported.
async fn victim(harness: &Harness) -> (LyingRegistry, String) {
    let honest = LyingRegistry::start(false).unwrap();
    let manifest =
        honest.publish("team/secret", "v1", &[1, 2].map(|seed| ClaimedLayer::honest(&layer(seed))));
    import(harness, &honest.reference("team/secret:v1")).await.unwrap();
    (honest, manifest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_says_it_has_a_layer_is_not_given_the_layer() {
    let harness = Harness::start().await;
    let (_honest, manifest) = victim(&harness).await;
    let thief = LyingRegistry::start(true).unwrap();
    // The very image; and one of the thief's own, with one of its layers.
    let known = [1, 2].map(|seed| ClaimedLayer::known(&layer(seed)));
    assert_eq!(thief.publish("x", "all", &known), manifest);
    thief.publish("x", "one", &[ClaimedLayer::honest(&layer(9)), known[1].clone()]);
    for name in ["x:all", "x:one", &format!("x@{manifest}")] {
        let refused = import(&harness, &thief.reference(name)).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{name}: {refused}");
    }
    assert!(thief.count("GET", "/v2/x/blobs/") > 3, "its word was enough: {:?}", thief.requests());
    let listed = harness.bus.call(ListRequest::default(), DEADLINE).await.unwrap().images;
    assert_eq!((listed.len(), listed[0].references.len()), (1, 1), "{listed:?}");
    // Nor is it told what there is.
    let request =
        InspectRequest { reference: thief.reference("x:all"), plain_http: true, ..InspectRequest::default() };
    let platform = harness.request("").platform;
    let told = harness.bus.call(InspectRequest { platform, ..request }, DEADLINE).await.unwrap();
    assert!(
        !told.imported && told.image.is_none() && told.layers.iter().all(|layer| !layer.known),
        "{told:?}"
    );

    // Who has the bytes may have them.
    let other = LyingRegistry::start(false).unwrap();
    other.publish("x", "all", &[1, 2].map(|seed| ClaimedLayer::honest(&layer(seed))));
    let imported = import(&harness, &other.reference("x:all")).await.unwrap().imported.unwrap();
    assert_eq!((imported.layers_read, imported.chunks_written), (2, 0), "{imported:?}");
    assert!(import(&harness, &other.reference("x:all")).await.unwrap().imported.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_repository_of_a_registry_has_what_it_shows_and_each_is_asked_once() {
    let harness = Harness::start().await;
    let (registry, manifest) = victim(&harness).await;
    let asked = |repository: &str| {
        (
            registry.count("HEAD", &format!("/v2/{repository}/blobs/")),
            registry.count("GET", &format!("/v2/{repository}/blobs/sha256:")),
        )
    };
    // It names the layers and has none of them: somebody pushed a manifest.
    registry.publish("thief", "v1", &[1, 2].map(|seed| ClaimedLayer::known(&layer(seed))));
    let refused = import(&harness, &registry.reference("thief:v1")).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");

    let honest = |seed| ClaimedLayer::honest(&layer(seed));
    assert_eq!(registry.publish("copy", "v1", &[1, 2].map(honest)), manifest);
    let resolved = import(&harness, &registry.reference("copy:v1")).await.unwrap();
    assert!(resolved.imported.is_none(), "nothing was left to do: {:?}", resolved.imported);
    // The config, and a question for each layer.
    assert_eq!(asked("copy"), (2, 1));
    import(&harness, &registry.reference("copy:v1")).await.unwrap();
    assert_eq!(asked("copy").0, 2, "it is the image's own repository now");
    // Another image there: what was shown lately is not asked for again, and what is new is read.
    registry.publish("copy", "v2", &[honest(1), honest(3), honest(2)]);
    let imported = import(&harness, &registry.reference("copy:v2")).await.unwrap().imported.unwrap();
    assert_eq!((imported.layers_read, imported.layers_known), (1, 2));
    assert_eq!(asked("copy").0, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_ones_own_is_not_another_layer_whatever_its_config_claims() {
    let harness = Harness::start().await;
    let (registry, _) = victim(&harness).await;
    let own =
        ClaimedLayer { diff_id: ClaimedLayer::known(&layer(1)).diff_id, ..ClaimedLayer::honest(&layer(7)) };
    // In a repository of his own, and even in that of the image.
    for repository in ["thief", "team/secret"] {
        registry.publish(repository, "own", std::slice::from_ref(&own));
        let refused = import(&harness, &registry.reference(&format!("{repository}:own"))).await.unwrap_err();
        assert_eq!(refused.code(), Code::DataLoss, "{repository}: {refused}");
        assert!(refused.message().contains("diff id"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_joins_an_import_that_another_registry_let_somebody_begin() {
    let harness = Harness::start().await;
    let honest = LyingRegistry::start(false).unwrap();
    let manifest = honest.publish("team/secret", "v1", &[ClaimedLayer::honest(&layer(1))]);
    let blob = ClaimedLayer::known(&layer(1)).digest;
    honest.hold(&blob);
    let ticket = async |reference: String| {
        let request = ResolveRequest { plain_http: true, ..harness.request(&reference) };
        match harness.bus.call(request, DEADLINE).await.unwrap().answer.unwrap() {
            Answer::Importing(ticket) => ticket,
            Answer::Resolved(resolved) => panic!("it is here already: {resolved:?}"),
        }
    };
    let first = ticket(honest.reference("team/secret:v1")).await;
    let thief = LyingRegistry::start(true).unwrap();
    assert_eq!(thief.publish("x", "v1", &[ClaimedLayer::known(&layer(1))]), manifest);
    let joined = ticket(thief.reference("x:v1")).await;
    honest.release();
    let outcome = async |ticket: proto::ImportTicket| {
        loop {
            let follow = FollowRequest {
                ticket: ticket.ticket.clone(),
                wait_ms: 10_000,
                seen_revision: u64::MAX,
                node: harness.request("").node,
                ..FollowRequest::default()
            };
            let reply = harness.bus.call_instance(&ticket.instance, follow, DEADLINE).await?;
            if let Some(Answer::Resolved(resolved)) = reply.answer {
                return Ok::<_, Status>(resolved);
            }
        }
    };
    assert_eq!(harness.record(&outcome(first).await.unwrap()).manifest_digest, manifest);
    let refused = outcome(joined).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_before_is_read_and_vouches_for_no_other_place() {
    let harness = Harness::start().await;
    let (registry, manifest) = victim(&harness).await;
    let diff_id = ClaimedLayer::known(&layer(1)).diff_id;
    let stored = harness.project().layer(&diff_id).await.unwrap();
    let key = fetcher::verifying_key(&harness.config).unwrap();
    let signed = Signed::decode(stored).unwrap();
    let now = StoredLayer::decode(verify(&[key], Domain::StoredLayer, &signed).unwrap()).unwrap();
    let source = &now.sources[0];
    assert_eq!(
        (source.registry.as_str(), source.repository.as_str()),
        (&*registry.host(), &*registry.reference("team/secret"))
    );
    LayerRecord::decode(&now.record).unwrap();
    // As the version before wrote it.
    let secret: [u8; 32] = std::fs::read(harness.path("fetcher.key")).unwrap().try_into().unwrap();
    let old = sign(&ed25519_dalek::SigningKey::from_bytes(&secret), Domain::LayerRecord, now.record);
    harness.project().put_layer(&diff_id, old.encode_to_vec().into()).await.unwrap();

    // The image is what it was; a new one reads the layer once more, and then it is known.
    assert!(import(&harness, &registry.reference("team/secret:v1")).await.unwrap().imported.is_none());
    let honest = |seed| ClaimedLayer::honest(&layer(seed));
    for (tag, seed, read) in [("v2", 4, 2), ("v3", 5, 1)] {
        registry.publish("team/secret", tag, &[honest(1), honest(seed)]);
        let name = registry.reference(&format!("team/secret:{tag}"));
        let imported = import(&harness, &name).await.unwrap().imported.unwrap();
        assert_eq!(imported.layers_read, read, "{tag}");
    }
    assert!(harness.project().images().await.unwrap().contains(&manifest));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_by_another_name_is_the_same_one_where_that_is_told() {
    let registry = LyingRegistry::start(false).unwrap();
    let port = registry.host().rsplit(':').next().unwrap().to_owned();
    let names = vec![registry.host(), format!("localhost:{port}")];
    let harness = Harness::start_with(|config| config.same_registries = vec![names.clone()]).await;
    registry.publish("app", "v1", &[ClaimedLayer::honest(&layer(1))]);
    import(&harness, &registry.reference("app:v1")).await.unwrap();
    assert!(import(&harness, &format!("localhost:{port}/app:v1")).await.unwrap().imported.is_none());
    assert_eq!(registry.count("HEAD", "/blobs/"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fetchers_own_credential_repairs_and_is_lent_to_nobody() {
    let registry = Registry::start_private().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config_file = folder.path().join("config.json");
    let harness = Harness::start_with(|config| config.source.docker_config = Some(config_file.clone())).await;
    let host = registry.host();
    let config = format!(r#"{{"auths":{{"{host}":{{"username":"{USER}","password":"{PASSWORD}"}}}}}}"#);
    std::fs::write(&config_file, config).unwrap();
    let mut layout = harness.layout();
    layout.image("v1", &ImageSpec::new([layer(1)])).unwrap();
    registry.push(&layout.reference("v1"), "app:v1").unwrap();
    let name = registry.reference("app:v1");
    let refused = import(&harness, &name).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    let inspect = InspectRequest { reference: name.clone(), plain_http: true, ..InspectRequest::default() };
    assert_eq!(harness.bus.call(inspect, DEADLINE).await.unwrap_err().code(), Code::Unauthenticated);

    let basic = Basic { username: USER.into(), password: PASSWORD.into() };
    let credential = Some(Credential { kind: Some(Kind::Basic(basic)) });
    let request = ResolveRequest { plain_http: true, credential, ..harness.request(&name) };
    let record = harness.record(&harness.resolve(request).await.unwrap().0);
    let chunk = Digest::of(&content(1, 10_000));
    std::fs::remove_file(harness.chunk_file(&chunk)).unwrap();
    let repair = RepairRequest { manifest_digest: record.manifest_digest, ..RepairRequest::default() };
    assert_eq!(harness.bus.call(repair, DEADLINE).await.unwrap().restored, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_is_switched_off_is_refused_at_once_and_its_grants_are_not_renewed() {
    let folder = tempfile::tempdir().unwrap();
    let switches = folder.path().join("projects.toml");
    let harness = Harness::start_with(|config| config.projects.file = Some(switches.clone())).await;
    let mut layout = harness.layout();
    layout.image("v1", &ImageSpec::new([layer(1), layer(2)])).unwrap();
    let reference = layout.reference("v1");
    let of = |project: &str| ResolveRequest { project: project.to_owned(), ..harness.request(&reference) };
    let payload = |grant: Option<Signed>| proto::Grant::decode(&*grant.unwrap().payload).unwrap();
    let (resolved, _) = harness.resolve(of("one")).await.unwrap();
    let renew = || RenewRequest { grant: resolved.grant.clone(), ..RenewRequest::default() };
    std::fs::write(&switches, "switches.one = false").unwrap();
    let refused = harness.resolve(of("one")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(refused.get_details_error_info().unwrap().metadata["streaming"], "off");
    harness.resolve(of("two")).await.unwrap();
    assert_eq!(harness.bus.call(renew(), DEADLINE).await.unwrap_err().code(), Code::PermissionDenied);
    // A part of what streams is given for no longer than the whole.
    let part = |grant| ResolveRequest { layers: 1, grant, ..of("one") };
    let (of_part, _) = harness.resolve(part(resolved.grant.clone())).await.unwrap();
    assert!(payload(of_part.grant).expires_unix <= payload(resolved.grant.clone()).expires_unix);
    assert_eq!(harness.resolve(part(None)).await.unwrap_err().code(), Code::PermissionDenied);

    // `sluice project`: live, and before the file.
    let switch = |streaming| SwitchRequest { project: "one".to_owned(), to: Some(To::Streaming(streaming)) };
    harness.bus.call(switch(true), DEADLINE).await.unwrap();
    harness.resolve(of("one")).await.unwrap();
    let renewed = harness.bus.call(renew(), DEADLINE).await.unwrap();
    let (before, after) = (payload(resolved.grant.clone()), payload(renewed.grant));
    assert_eq!((before.tree, before.map, before.node), (after.tree, after.map, after.node));
    std::fs::write(&switches, "# all of them again").unwrap();
    harness.bus.call(switch(false), DEADLINE).await.unwrap();
    assert_eq!(harness.resolve(of("one")).await.unwrap_err().code(), Code::PermissionDenied);
}

/// What a mesh's answer says, it says to this question.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_repeats_the_question_it_answers() {
    let harness = Harness::start().await;
    let mut layout = harness.layout();
    layout.image("v1", &ImageSpec::new([layer(1)])).unwrap();
    let key = fetcher::verifying_key(&harness.config).unwrap();
    // The first is followed, the second is answered at once.
    for nonce in [vec![1; 16], vec![2; 16]] {
        let request = ResolveRequest { nonce: nonce.clone(), ..harness.request(&layout.reference("v1")) };
        let (resolved, _) = harness.resolve(request.clone()).await.unwrap();
        let manifest_digest = harness.record(&resolved).manifest_digest;
        let signed = resolved.resolution.unwrap();
        let said = proto::Resolution::decode(verify(&[key], Domain::Resolution, &signed).unwrap()).unwrap();
        let ResolveRequest { reference, platform, node, layers, .. } = request;
        let project = "default".to_owned();
        let expected =
            proto::Resolution { project, reference, platform, layers, node, nonce, manifest_digest };
        assert_eq!(said, expected);
    }
}
