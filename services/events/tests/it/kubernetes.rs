//! Events of Kubernetes, against an API server that answers as one does on bad days. A real one: `./just test-kubernetes`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use events::{KubernetesConfig, SinkConfig};
use proto::{Event, EventKind, Pod};
use serde_json::{Value, json};

use crate::harness::{Answer, Asked, Receiver, Service, event};

const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

fn kubeconfig(folder: &Path, server: &str) -> PathBuf {
    let path = folder.join("kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{ "name": "test", "cluster": { "server": server } }],
        "users": [{ "name": "test", "user": { "token": "a-token" } }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
    });
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

struct Cluster {
    server: Receiver,
    service: Service,
    _folder: tempfile::TempDir,
}

async fn cluster(answers: impl IntoIterator<Item = Answer>, then: Answer) -> Cluster {
    let (server, folder) = (Receiver::start(answers, then).await, tempfile::tempdir().unwrap());
    let kubernetes = KubernetesConfig {
        kubeconfig: Some(kubeconfig(folder.path(), &server.url)),
        timeout: Duration::from_secs(2),
        ..KubernetesConfig::default()
    };
    let sink = SinkConfig { kubernetes: Some(kubernetes), ..SinkConfig::default() };
    let service = Service::start(&[("cluster", sink)]).await;
    Cluster { server, service, _folder: folder }
}

fn created() -> Answer {
    Answer::Json(201, json!({}))
}

fn name(asked: &Asked) -> String {
    asked.body["metadata"]["name"].as_str().unwrap().to_owned()
}

/// Event of something that goes wrong again and again, in a process of its own each: repeats are merged at the emitter otherwise.
fn again(cluster: &Cluster, number: usize) {
    cluster.service.tell(Event {
        manifest_digest: number.to_string(),
        ..event(EventKind::Degraded, "past-caches", "r.io/app:1")
    });
}

#[tokio::test]
async fn an_event_is_an_object_on_the_node_and_on_each_pod() {
    let cluster = cluster([], created()).await;
    let pods = ["web-1", "web-2"].map(|name| Pod {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: format!("uid-{name}"),
    });
    let streaming = event(EventKind::Streaming, "image-streaming", "r.io/app:1");
    cluster.service.tell(Event { pods: pods.to_vec(), ..streaming });
    let asked = cluster.server.until(|asked| asked.len() == 3).await;
    let paths: Vec<&str> = asked.iter().map(|asked| asked.path.as_str()).collect();
    let of_shop = "/apis/events.k8s.io/v1/namespaces/shop/events";
    assert_eq!(paths, [EVENTS, of_shop, of_shop]);
    assert!(asked.iter().all(|asked| asked.method == "POST"));
    assert_eq!(asked[0].headers["authorization"], "Bearer a-token");
    let node = &asked[0].body;
    assert_eq!((&node["reason"], &node["type"]), (&"ImageStreaming".into(), &"Normal".into()));
    assert_eq!(node["note"], "Image r.io/app:1 is backed by image streaming.");
    assert_eq!(
        node["regarding"],
        json!({ "apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "node-1" })
    );
    assert_eq!(node["reportingController"], "sluice.dev/frontend");
    assert!(node["eventTime"].as_str().unwrap().ends_with('Z') && node.get("series").is_none());
    let pod = &asked[1].body;
    assert_eq!((&pod["regarding"]["uid"], &pod["related"]["kind"]), (&"uid-web-1".into(), &"Node".into()));
    assert_eq!(pod["metadata"]["namespace"], "shop");
    let names: BTreeSet<String> = asked.iter().map(name).collect();
    assert_eq!(names.len(), 3);
}

#[tokio::test]
async fn repeats_are_one_series_and_what_expired_is_made_anew() {
    let answers = [
        created(),
        Answer::Json(200, json!({})),
        Answer::Json(404, json!({ "kind": "Status", "code": 404 })),
    ];
    let cluster = cluster(answers, created()).await;
    for number in 0..3 {
        again(&cluster, number);
        cluster.server.until(|asked| asked.len() > number).await;
    }
    let asked = cluster.server.until(|asked| asked.len() == 4).await;
    let methods: Vec<&str> = asked.iter().map(|asked| asked.method.as_str()).collect();
    assert_eq!(methods, ["POST", "PATCH", "PATCH", "POST"]);
    assert_eq!(asked[1].path, format!("{EVENTS}/{}", name(&asked[0])));
    assert_eq!(asked[1].headers["content-type"], "application/merge-patch+json");
    assert_eq!(
        (&asked[1].body["series"]["count"], &asked[2].body["series"]["count"]),
        (&2.into(), &3.into())
    );
    assert!(asked[1].body["series"]["lastObservedTime"].is_string());
    assert_ne!(name(&asked[3]), name(&asked[0]));
    // The next one is a repeat of the new one.
    again(&cluster, 3);
    let asked = cluster.server.until(|asked| asked.len() == 5).await;
    assert_eq!(asked[4].path, format!("{EVENTS}/{}", name(&asked[3])));
}

#[tokio::test]
async fn a_server_on_a_bad_day_gets_each_event_and_none_twice() {
    let busy = json!({ "kind": "Status", "code": 429, "message": "slow down", "details": { "retryAfterSeconds": 1 } });
    let answers = [
        Answer::RetryAfter(429, "1"),
        Answer::Json(429, busy),
        Answer::Status(500),
        Answer::Hang,
        Answer::Slow(Duration::from_secs(4), 201),
        Answer::Json(403, json!({ "kind": "Status", "code": 403, "message": "no rights" })),
        // It was made by a request whose answer got lost.
        Answer::Json(409, json!({ "kind": "Status", "reason": "AlreadyExists", "code": 409 })),
    ];
    let cluster = cluster(answers, created()).await;
    let images: Vec<String> = (0..6).map(|number| format!("r.io/app:{number}")).collect();
    for image in &images {
        cluster.service.tell(event(EventKind::Fallback, "no-room", image));
    }
    let asked = cluster.server.until(|asked| asked.len() == 6 + 6).await;
    // The first seven are one event, under one name.
    let first: BTreeSet<String> = asked[..7].iter().map(name).collect();
    assert_eq!(first.len(), 1, "{first:?}");
    let all: BTreeSet<String> = asked.iter().map(name).collect();
    assert_eq!(all.len(), 6);
    let notes: BTreeSet<&str> = asked.iter().map(|asked| asked.body["note"].as_str().unwrap()).collect();
    for image in &images {
        let note = format!("Image {image} is pulled without streaming (no-room): so it is");
        assert!(notes.contains(note.as_str()), "{notes:?}");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(cluster.server.asked().len(), 12);
}

#[tokio::test]
async fn what_will_never_be_taken_holds_up_no_other() {
    let terminating = json!({ "kind": "Status", "code": 403,
        "details": { "causes": [{ "reason": "NamespaceTerminating", "message": "it is going", "field": "" }] } });
    let answers = [
        created(),
        Answer::Json(403, terminating),
        created(),
        Answer::Json(404, json!({ "kind": "Status", "code": 404 })),
        Answer::Json(422, json!({ "kind": "Status", "code": 422 })),
    ];
    let cluster = cluster(answers, created()).await;
    let pod = Pod { namespace: "gone".to_owned(), name: "web-1".to_owned(), uid: "u".to_owned() };
    for image in ["r.io/app:1", "r.io/app:2"] {
        let streaming = event(EventKind::Streaming, "image-streaming", image);
        cluster.service.tell(Event { pods: vec![pod.clone()], ..streaming });
    }
    for image in ["r.io/app:3", "r.io/app:4"] {
        cluster.service.tell(event(EventKind::Denied, "denied", image));
    }
    let asked = cluster.server.until(|asked| asked.len() == 6).await;
    assert_eq!(asked[5].body["note"], "Image r.io/app:4 is pulled without streaming (denied): so it is");
}

#[tokio::test]
async fn one_object_gets_a_burst_and_its_series_count_the_rest() {
    let cluster = cluster([], created()).await;
    for number in 0..60 {
        cluster.service.tell(event(EventKind::Fallback, "no-room", &format!("r.io/app:{number}")));
    }
    cluster
        .service
        .tell(Event { node: "node-2".to_owned(), ..event(EventKind::Denied, "denied", "r.io/app:1") });
    let is_other = |asked: &Asked| asked.body["regarding"]["name"] == "node-2";
    let asked = cluster.server.until(|asked| asked.iter().any(is_other)).await;
    assert_eq!(asked.len(), 25 + 1, "an object gets 25, and another one is not held up");
}

#[tokio::test]
async fn progress_is_told_now_and_then_and_in_its_own_words() {
    let cluster = cluster([], created()).await;
    for number in 0..10 {
        let message = format!("Image r.io/app:1 is being imported: {number} % of 100 bytes have been read.");
        let importing = event(EventKind::Importing, "image-importing", "r.io/app:1");
        cluster.service.tell(Event { message, manifest_digest: number.to_string(), ..importing });
    }
    cluster.service.tell(event(EventKind::Streaming, "image-streaming", "r.io/app:1"));
    let asked =
        cluster.server.until(|asked| asked.iter().any(|it| it.body["reason"] == "ImageStreaming")).await;
    let reasons: Vec<&Value> = asked.iter().map(|asked| &asked.body["reason"]).collect();
    assert_eq!(reasons, ["ImageImporting", "ImageStreaming"]);
    assert_eq!(asked[0].body["note"], "Image r.io/app:1 is being imported: 0 % of 100 bytes have been read.");
    assert_eq!(asked[0].body["action"], "ImportImage");
}

#[tokio::test]
async fn a_configuration_that_comes_late_is_used_and_nothing_is_lost() {
    let (server, folder) = (Receiver::start([], created()).await, tempfile::tempdir().unwrap());
    let path = folder.path().join("kubeconfig");
    let kubernetes = KubernetesConfig { kubeconfig: Some(path), ..KubernetesConfig::default() };
    let sink = SinkConfig { kubernetes: Some(kubernetes), ..SinkConfig::default() };
    let service = Service::start(&[("cluster", sink)]).await;
    service.tell(event(EventKind::Fallback, "no-room", "r.io/app:1"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    kubeconfig(folder.path(), &server.url);
    let asked = server.until(|asked| asked.len() == 1).await;
    assert_eq!(asked[0].body["reason"], "ImageStreamingFallback");
}
