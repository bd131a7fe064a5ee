//! A real API server. `./just test-kubernetes` builds it and runs this; no part of other runs, as its build takes minutes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use events::{KubernetesConfig, SinkConfig};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::events::v1::Event as Object;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use proto::{Event, EventKind, Pod};
use serde_json::{Value, json};
use testkit::ApiServer;
use testkit::kubernetes::{ADMIN, write_kubeconfig};

use crate::harness::{SOON, Service, event};
use crate::moody::{Mood, Moody};

const SERVICE: &str = "sluice-events-token";

struct Cluster {
    server: ApiServer,
    folder: tempfile::TempDir,
}

impl Cluster {
    async fn start(more: &[&str]) -> Cluster {
        let server = ApiServer::start(&["sluice-events"], more).unwrap();
        let cluster = Cluster { server, folder: tempfile::tempdir().unwrap() };
        cluster.ready().await;
        cluster.give_rights().await;
        cluster
    }

    async fn admin(&self) -> Client {
        let file = Kubeconfig::read_from(self.server.kubeconfig(ADMIN).unwrap()).unwrap();
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        Client::try_from(config).unwrap()
    }

    async fn ready(&self) {
        let admin = self.admin().await;
        let asked = || http::Request::get("/readyz").body(Vec::new()).unwrap();
        let looked = async {
            while admin.request_text(asked()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let outcome = tokio::time::timeout(SOON, looked).await;
        assert!(outcome.is_ok(), "{}", self.server.log());
    }

    /// What docs/events.md says that the service needs, and nothing else.
    async fn give_rights(&self) {
        let admin = self.admin().await;
        let role = json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": { "name": "sluice-events" },
            "rules": [{ "apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"] }] });
        let binding = json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": { "name": "sluice-events" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "sluice-events" },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "sluice-events" }] });
        let shop = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } });
        let (role, binding): (ClusterRole, ClusterRoleBinding) = (of(role), of(binding));
        let made = PostParams::default();
        Api::<ClusterRole>::all(admin.clone()).create(&made, &role).await.unwrap();
        Api::<ClusterRoleBinding>::all(admin.clone()).create(&made, &binding).await.unwrap();
        Api::<Namespace>::all(admin).create(&made, &of(shop)).await.unwrap();
    }

    fn sink(&self) -> SinkConfig {
        sink(&self.server.kubeconfig(SERVICE).unwrap())
    }

    /// The same by way of what stands before the server.
    fn sink_by(&self, way: &Moody) -> SinkConfig {
        let path = self.folder.path().join("moody.kubeconfig");
        write_kubeconfig(&path, &json!({ "server": way.url }), SERVICE).unwrap();
        sink(&path)
    }

    /// Ours, by note, once they are as wanted.
    async fn events(
        &self,
        namespace: &str,
        wanted: impl Fn(&BTreeMap<String, Object>) -> bool,
    ) -> BTreeMap<String, Object> {
        let events: Api<Object> = Api::namespaced(self.admin().await, namespace);
        let looked = async {
            loop {
                // The server may be away.
                let listed = events.list(&ListParams::default()).await;
                let ours = |event: &Object| {
                    event.reporting_controller.as_deref().is_some_and(|name| name.starts_with("sluice.dev/"))
                };
                let all: Vec<Object> = listed.into_iter().flatten().filter(ours).collect();
                let count = all.len();
                let found: BTreeMap<String, Object> =
                    all.into_iter().map(|event| (event.note.clone().unwrap(), event)).collect();
                assert_eq!(found.len(), count, "one was told twice: {found:#?}");
                if wanted(&found) {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(3 * SOON, looked).await.expect("the events did not come")
    }
}

fn sink(kubeconfig: &Path) -> SinkConfig {
    let kubernetes = KubernetesConfig {
        kubeconfig: Some(kubeconfig.to_owned()),
        timeout: Duration::from_secs(3),
        ..KubernetesConfig::default()
    };
    SinkConfig { kubernetes: Some(kubernetes), ..SinkConfig::default() }
}

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn again(service: &Service, number: usize) {
    let degraded = event(EventKind::Degraded, "past-caches", "r.io/app:1");
    service.tell(Event { manifest_digest: number.to_string(), ..degraded });
}

#[tokio::test]
#[ignore = "needs an API server: ./just test-kubernetes"]
async fn a_real_server_takes_our_events_and_shows_them() {
    let mut cluster = Cluster::start(&[]).await;
    let service = Service::start(&[("cluster", cluster.sink())]).await;
    let pod = Pod { namespace: "shop".to_owned(), name: "web-1".to_owned(), uid: "7d0f".to_owned() };
    let streaming = event(EventKind::Streaming, "image-streaming", "r.io/app:1");
    service.tell(Event { pods: vec![pod], ..streaming });
    let long = event(EventKind::Denied, "not-eligible", &"é".repeat(3_000));
    service.tell(Event { message: "ü".repeat(3_000), ..long });

    let sentence = "Image r.io/app:1 is backed by image streaming.";
    let told = cluster.events("default", |told| told.len() == 2).await;
    let node = &told[sentence];
    assert_eq!((node.reason.as_deref(), node.type_.as_deref()), (Some("ImageStreaming"), Some("Normal")));
    assert_eq!(node.action.as_deref(), Some("StreamImage"));
    let regarding = node.regarding.as_ref().unwrap();
    assert_eq!((regarding.kind.as_deref(), regarding.name.as_deref()), (Some("Node"), Some("node-1")));
    let of_shop = cluster.events("shop", |told| told.len() == 1).await;
    assert_eq!(of_shop[sentence].regarding.as_ref().unwrap().uid.as_deref(), Some("7d0f"));

    // Repeats are a series; one that was removed is made anew.
    (0..3).for_each(|number| again(&service, number));
    let note = "Image r.io/app:1: so it is (past-caches)";
    let count = |told: &BTreeMap<String, Object>| {
        told.get(note).and_then(|event| event.series.as_ref()).map_or(1, |series| series.count)
    };
    let told = cluster.events("default", |told| told.contains_key(note) && count(told) == 3).await;
    let name = told[note].metadata.name.clone().unwrap();
    let events: Api<Object> = Api::namespaced(cluster.admin().await, "default");
    events.delete(&name, &DeleteParams::default()).await.unwrap();
    again(&service, 3);
    let told = cluster.events("default", |told| told.contains_key(note)).await;
    assert_ne!(told[note].metadata.name.as_ref(), Some(&name));

    // A namespace that is not there holds up nothing.
    let gone = Pod { namespace: "gone".to_owned(), name: "web-2".to_owned(), uid: "8e1a".to_owned() };
    let complete = event(EventKind::Complete, "image-complete", "r.io/app:2");
    service.tell(Event { pods: vec![gone], ..complete });
    cluster
        .events("default", |told| {
            told.values().any(|it| it.reason.as_deref() == Some("ImageStreamingComplete"))
        })
        .await;

    // Nothing is lost while the server is away, and nothing told twice.
    cluster.server.kill().unwrap();
    for number in 0..10 {
        service.tell(event(EventKind::Fallback, "no-room", &format!("r.io/away:{number}")));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.server.restart().unwrap();
    cluster.ready().await;
    let away =
        |told: &BTreeMap<String, Object>| told.keys().filter(|note| note.contains("r.io/away:")).count();
    cluster.events("default", |told| away(told) == 10).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: ./just test-kubernetes"]
async fn a_real_server_behind_one_that_fails_gets_each_event_and_none_twice() {
    let cluster = Cluster::start(&[]).await;
    let moods = [
        Mood::Refuse(429),
        Mood::Refuse(500),
        // Done, and nobody heard of it.
        Mood::Lose(502),
        Mood::Slow(Duration::from_secs(1)),
        // Done, too late.
        Mood::Slow(Duration::from_secs(5)),
        Mood::Hang,
        Mood::Refuse(503),
        Mood::Well,
    ];
    let authority = cluster.server.authority();
    let moody = Moody::start(&cluster.server.url(), authority, &moods).await;
    moody.spoil(24);
    let service = Service::start(&[("cluster", cluster.sink_by(&moody))]).await;
    for number in 0..16 {
        service.tell(event(EventKind::Fallback, "no-room", &format!("r.io/bad-day:{number}")));
    }
    let bad_day =
        |told: &BTreeMap<String, Object>| told.keys().filter(|note| note.contains("r.io/bad-day:")).count();
    let told = cluster.events("default", |told| bad_day(told) == 16).await;
    for object in told.values() {
        assert!(object.series.is_none(), "counted twice: {object:#?}");
        assert_eq!(object.reason.as_deref(), Some("ImageStreamingFallback"));
        assert_eq!(object.metadata.managed_fields.as_ref().map(Vec::len), Some(1));
    }
    assert!(moody.has_spoilt());
    // Repeats over the same: as many as there were, in one series.
    moody.spoil(8);
    (0..5).for_each(|number| again(&service, number));
    let note = "Image r.io/app:1: so it is (past-caches)";
    let counted = |told: &BTreeMap<String, Object>| {
        told.get(note).and_then(|event| event.series.as_ref()).is_some_and(|series| series.count == 5)
    };
    cluster.events("default", counted).await;
    assert!(moody.has_spoilt());
}

#[tokio::test]
#[ignore = "needs an API server: ./just test-kubernetes"]
async fn what_the_server_forgot_after_its_time_is_told_anew() {
    let cluster = Cluster::start(&["--event-ttl=10s"]).await;
    let service = Service::start(&[("cluster", cluster.sink())]).await;
    again(&service, 0);
    let told = cluster.events("default", |told| told.len() == 1).await;
    let first = told.into_values().next().unwrap();
    cluster.events("default", BTreeMap::is_empty).await;
    // A repeat of one that is gone.
    again(&service, 1);
    let told = cluster.events("default", |told| told.len() == 1).await;
    let second = told.into_values().next().unwrap();
    assert_ne!(first.metadata.name, second.metadata.name);
    assert_eq!(first.note, second.note);
}
