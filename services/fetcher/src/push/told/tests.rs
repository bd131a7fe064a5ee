use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use super::*;
use crate::push::RegistryConfig;

const HEX: &str = "0a0b0c0d0e0f0a0b0c0d0e0f0a0b0c0d0e0f0a0b0c0d0e0f0a0b0c0d0e0f0a0b";

fn registry(host: &str) -> Registry {
    Registry {
        name: "main".to_owned(),
        host: host.to_owned(),
        project: names::Project::default(),
        platforms: Vec::new(),
        config: RegistryConfig::default(),
        repositories: Vec::new(),
    }
}

fn digest() -> String {
    format!("sha256:{HEX}")
}

fn told(value: &Value, kind: Option<&str>) -> Result<Vec<Told>, Unread> {
    read(&registry("europe-docker.pkg.dev"), value.to_string().as_bytes(), kind)
}

fn push(repository: &str, tag: Option<&str>) -> Told {
    let tag = tag.map(str::to_owned);
    Ok(Pushed { repository: repository.to_owned(), digest: digest().parse().unwrap(), tag })
}

/// As distribution 2.8 sends it.
fn event(action: &str, media_type: &str) -> Value {
    json!({ "id": "320678d8", "timestamp": "2026-11-30T12:00:00Z", "action": action,
        "target": { "mediaType": media_type, "size": 708, "digest": digest(), "length": 708,
            "repository": "team/app", "url": "http://evil.example/v2/team/app/manifests/x", "tag": "v1" },
        "request": { "id": "6df24a34", "addr": "10.0.0.1:5", "host": "evil.example", "method": "PUT" },
        "actor": {}, "source": { "addr": "registry:5000" } })
}

#[test]
fn distribution_tells_of_everything_and_manifests_count() {
    let layer = "application/octet-stream";
    let body = json!({ "events": [
        event("push", layer), event("push", MANIFESTS[2]), event("pull", MANIFESTS[0]), event("push", MANIFESTS[1]),
        { "action": "push", "target": { "repository": "team/app", "digest": "sha512:00" } }, {} ] });
    assert_eq!(
        told(&body, None).unwrap(),
        [
            Err(Ignored::NoManifest),
            push("team/app", Some("v1")),
            Err(Ignored::NoPush),
            push("team/app", Some("v1")),
            Err(Ignored::Malformed),
            Err(Ignored::NoPush),
        ]
    );
}

#[test]
fn harbor_tells_in_a_format_of_its_own_and_as_cloud_events() {
    let data = json!({
        "resources": [{ "digest": digest(), "tag": "v1", "resource_url": "evil.example/team/app:v1" },
            { "digest": digest(), "tag": digest() }],
        "repository": { "name": "app", "namespace": "team", "repo_full_name": "team/app", "repo_type": "private" } });
    let both = [push("team/app", Some("v1")), push("team/app", None)];
    let own =
        |kind: &str| json!({ "type": kind, "occur_at": 1, "operator": "admin", "event_data": data.clone() });
    assert_eq!(told(&own("PUSH_ARTIFACT"), None).unwrap(), both);
    assert_eq!(told(&own("PULL_ARTIFACT"), None).unwrap(), [Err(Ignored::NoPush)]);
    let cloud = |kind: &str| json!({ "specversion": "1.0", "id": "1", "source": "/projects/1", "type": kind, "data": data });
    assert_eq!(told(&cloud("harbor.artifact.pushed"), None).unwrap(), both);
    assert_eq!(told(&cloud("harbor.artifact.pulled"), None).unwrap(), [Err(Ignored::NoPush)]);
    assert_eq!(told(&data, Some("harbor.artifact.pushed")).unwrap(), both);
    assert_eq!(told(&json!([cloud("harbor.artifact.pushed")]), None).unwrap(), both);
}

#[test]
fn clouds_tell_as_cloud_events() {
    let azure = json!({ "specversion": "1.0", "id": "1", "source": "/subscriptions/s", "type": "Microsoft.ContainerRegistry.ImagePushed",
        "data": { "id": "1", "action": "push", "request": { "host": "evil.example" }, "target": {
            "mediaType": MANIFESTS[2], "digest": digest(), "repository": "hello-world", "tag": "v1" } } });
    assert_eq!(told(&azure, None).unwrap(), [push("hello-world", Some("v1"))]);

    let google = |host: &str, action: &str| json!({ "action": action, "digest": format!("{host}/project/repo/app@{}", digest()), "tag": format!("{host}/project/repo/app:v1") });
    let (own, other) = (google("europe-docker.pkg.dev", "INSERT"), google("evil.example", "INSERT"));
    let message = json!({ "message": { "data": BASE64_STANDARD.encode(own.to_string()), "messageId": "1" }, "subscription": "s" });
    let structured = json!({ "specversion": "1.0", "id": "1", "source": "s", "type": "google.cloud.pubsub.topic.v1.messagePublished", "data": message.clone() });
    let encoded = json!({ "specversion": "1.0", "id": "1", "source": "s", "type": "a", "data_base64": BASE64_STANDARD.encode(own.to_string()) });
    for body in [&own, &message, &structured, &encoded] {
        assert_eq!(told(body, None).unwrap(), [push("project/repo/app", Some("v1"))], "{body}");
    }
    assert_eq!(told(&other, None).unwrap(), [Err(Ignored::OtherRegistry)]);
    assert_eq!(told(&google("europe-docker.pkg.dev", "DELETE"), None).unwrap(), [Err(Ignored::NoPush)]);

    let github = |kind: &str| {
        json!({ "action": "published", "registry_package": { "package_type": kind, "namespace": "Team", "name": "app",
            "package_version": { "version": digest(), "container_metadata": { "tag": { "name": "v1" } } } }, "repository": {} })
    };
    assert_eq!(told(&github("CONTAINER"), None).unwrap(), [push("team/app", Some("v1"))]);
    assert_eq!(told(&github("npm"), None).unwrap(), [Err(Ignored::NoPush)]);
}

#[test]
fn what_says_nothing_is_refused() {
    let none = registry("r.example");
    for (body, expected) in [
        (b"".as_slice(), "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"{}", "no format"),
        (b"null", "no format"),
        (b"7", "no format"),
        (b"[{}]", "specversion"),
        (br#"{"specversion":"0.3","type":"x","data":{}}"#, "specversion"),
        (br#"{"specversion":"1.0","type":"x"}"#, "no data"),
        (br#"{"specversion":"1.0","type":"x","data_base64":"%"}"#, "its data"),
        (br#"{"specversion":"1.0","type":"x","data":"{"}"#, "its data"),
        (br#"{"events":7}"#, "a list of events"),
        (br#"{"events":[{"action":"push","target":{"digest":7}}]}"#, "a list of events"),
        (br#"{"message":{"data":7}}"#, "its data"),
        (br#"{"resources":[],"repository":7}"#, ""),
        (br#"{"type":"PUSH_ARTIFACT","event_data":{}}"#, "Harbor"),
        (br#"{"package":{}}"#, "GitHub"),
    ] {
        match read(&none, body, None) {
            Err(unread) => assert!(unread.to_string().contains(expected), "{unread}"),
            Ok(told) => assert!(expected.is_empty() && told == [Err(Ignored::NoPush)], "{told:?}"),
        }
    }
    let nested = "[".repeat(100_000);
    assert!(matches!(read(&none, nested.as_bytes(), None), Err(Unread::NotJson(_))));
    let many = json!({ "events": vec![json!({}); EVENTS_MAX + 1] });
    assert_eq!(told(&many, None), Err(Unread::TooMany));
    let batch = vec![json!({ "specversion": "1.0", "type": "x", "data": {} }); EVENTS_MAX + 1];
    assert_eq!(told(&batch.into(), None), Err(Unread::TooMany));
}
