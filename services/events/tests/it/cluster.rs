//! A real API server. `./just test-kubernetes` builds it and runs this; no part of other runs, as its build takes minutes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
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
use testkit::{Certificates, Server};

use crate::harness::{SOON, Service, event};

/// The API server is tried in one version.
const RELEASE: &str = "kubernetes-1.36";
const ADMIN: &str = "admin-token";
const SERVICE: &str = "service-token";

struct Cluster {
    server: Server,
    _etcd: Server,
    start: Box<dyn Fn() -> Server>,
    port: u16,
    certificates: Certificates,
    folder: tempfile::TempDir,
}

fn program(name: &str) -> PathBuf {
    testkit::tools().join(RELEASE).join("bin").join(name)
}

impl Cluster {
    async fn start() -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        let certificates = Certificates::make(&folder.path().join("tls")).unwrap();
        let (etcd_url, etcd) = start_etcd(folder.path());
        let port = testkit::port::free().unwrap();
        let tokens = folder.path().join("tokens.csv");
        std::fs::write(&tokens, format!("{ADMIN},admin,1,system:masters\n{SERVICE},sluice-events,2\n"))
            .unwrap();
        let log = folder.path().join("api.log");
        let arguments = [
            format!("--etcd-servers={etcd_url}"),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={}", certificates.server.display()),
            format!("--tls-private-key-file={}", certificates.server_key.display()),
            "--authorization-mode=RBAC".to_owned(),
            format!("--token-auth-file={}", tokens.display()),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", certificates.server.display()),
            format!("--service-account-signing-key-file={}", certificates.server_key.display()),
            "--service-cluster-ip-range=10.96.0.0/24".to_owned(),
        ];
        let start = Box::new(move || {
            let mut command = Command::new(program("kube-apiserver"));
            command.args(&arguments);
            Server::spawn(command, &log, "`./just test-kubernetes` builds it").unwrap()
        });
        let server = start();
        let cluster = Cluster { server, _etcd: etcd, start, port, certificates, folder };
        cluster.ready().await;
        cluster.give_rights().await;
        cluster
    }

    /// A configuration of whoever has this token.
    fn kubeconfig(&self, token: &str) -> PathBuf {
        let path = self.folder.path().join(format!("{token}.kubeconfig"));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{ "name": "it", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.port), "certificate-authority": self.certificates.ca } }],
            "users": [{ "name": "it", "user": { "token": token } }],
            "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it" } }],
        });
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    async fn admin(&self) -> Client {
        let file = Kubeconfig::read_from(self.kubeconfig(ADMIN)).unwrap();
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        Client::try_from(config).unwrap()
    }

    async fn ready(&self) {
        let admin = self.admin().await;
        let namespaces: Api<Namespace> = Api::all(admin);
        let looked = async {
            while namespaces.get("default").await.is_err() {
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
        let kubernetes =
            KubernetesConfig { kubeconfig: Some(self.kubeconfig(SERVICE)), ..KubernetesConfig::default() };
        SinkConfig { kubernetes: Some(kubernetes), ..SinkConfig::default() }
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
        tokio::time::timeout(SOON, looked).await.expect("the events did not come")
    }
}

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn start_etcd(folder: &Path) -> (String, Server) {
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let (clients, peers) = (url(testkit::port::free().unwrap()), url(testkit::port::free().unwrap()));
    let mut command = Command::new(program("etcd"));
    command.arg("--data-dir").arg(folder.join("etcd")).args([
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=default={peers}"),
        "--unsafe-no-fsync".to_owned(),
    ]);
    let server =
        Server::spawn(command, &folder.join("etcd.log"), "`./just test-kubernetes` builds it").unwrap();
    (clients, server)
}

fn again(service: &Service, number: usize) {
    let degraded = event(EventKind::Degraded, "past-caches", "r.io/app:1");
    service.tell(Event { manifest_digest: number.to_string(), ..degraded });
}

#[tokio::test]
#[ignore = "needs an API server: ./just test-kubernetes"]
async fn a_real_server_takes_our_events_and_shows_them() {
    let mut cluster = Cluster::start().await;
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
    cluster.server = (cluster.start)();
    cluster.ready().await;
    let away =
        |told: &BTreeMap<String, Object>| told.keys().filter(|note| note.contains("r.io/away:")).count();
    cluster.events("default", |told| away(told) == 10).await;
}
