//! Pods enroll by their projected tokens: with servers that answer as older ones do, and with a real API server, which
//! `./just test-kubernetes` builds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{Request, StatusCode, Uri};
use identity::client::{self, PodToken};
use identity::{Given, Options, Own, Set};
use identity_service::{Config, KubernetesConfig};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{Api, DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config as ClientConfig};
use serde_json::{Value, json};
use testkit::ApiServer;
use testkit::kubernetes::{ADMIN, write_kubeconfig};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const AUDIENCE: &str = "sluice.dev";
const SOON: Duration = Duration::from_secs(120);

/// A mesh's keys, and an identity service that asks the API server of this kubeconfig; none: that lets in no pods.
struct Site {
    folder: tempfile::TempDir,
    set: Set,
    address: String,
    shutdown: CancellationToken,
}

impl Site {
    async fn start(kubeconfig: Option<&Path>) -> Site {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            name: "test".to_owned(),
            hosts: Vec::new(),
            nats_url: "tls://127.0.0.1:4222".to_owned(),
            listen: "127.0.0.1:4222".to_owned(),
            at: None,
        };
        let set = Set::init(&folder.path().join("mesh"), &options).unwrap();
        let own = set.folder().join("services/identity");
        let tls = tls::Config {
            ca_file: Some(own.join("ca.pem")),
            certificate_file: Some(own.join("tls.pem")),
            key_file: Some(own.join("tls.key")),
            insecure: false,
        };
        let kubernetes = kubeconfig.map(|path| KubernetesConfig {
            service_accounts: vec!["sluice/sluice-node".to_owned()],
            projects: vec!["team-a".parse().unwrap()],
            kubeconfig: Some(path.to_owned()),
            timeout: Duration::from_secs(5),
            ..KubernetesConfig::default()
        });
        let authority = set.folder().join("authority");
        let config = Config { listen: ([127, 0, 0, 1], 0).into(), authority, kubernetes };
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        let address =
            identity_service::start(config, tls.open().unwrap(), &tasks, shutdown.clone()).await.unwrap();
        Site { folder, set, address: format!("https://{address}"), shutdown }
    }

    fn ca(&self) -> PathBuf {
        self.set.folder().join("services/identity/ca.pem")
    }

    fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// As a pod does whose token this is.
    async fn enroll(&self, place: &str, token: &str, node: &str) -> anyhow::Result<Given> {
        let file = self.place(&format!("{place}.token"));
        std::fs::write(&file, token).unwrap();
        let authority = client::authority_of(&self.ca()).unwrap();
        client::enroll_pod(
            &Own::open(&self.place(place))?,
            &self.address,
            &PodToken { file, authority },
            node,
        )
        .await
    }

    /// The text of the refusal.
    async fn refused(&self, token: &str, node: &str) -> String {
        let error = self.enroll("refused", token, node).await.expect_err("it must not count");
        let text = format!("{error:#}");
        assert!(token.len() < 9 || !text.contains(token), "the token is told: {text}");
        text
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// What an API server answers to reviews, and what pods it has.
#[derive(Clone, Default)]
struct Scripted {
    review: Arc<Mutex<Value>>,
    pod: Arc<Mutex<Option<Value>>>,
}

impl Scripted {
    async fn start(&self, folder: &Path) -> PathBuf {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let path = folder.join("kubeconfig");
        write_kubeconfig(&path, &json!({ "server": server }), "a-token").unwrap();
        path
    }

    fn says(&self, user: &Value) {
        *self.review.lock().unwrap() =
            json!({ "authenticated": true, "audiences": [AUDIENCE], "user": user });
    }
}

async fn answer(State(scripted): State<Scripted>, uri: Uri) -> (StatusCode, String) {
    if uri.path() == "/apis/authentication.k8s.io/v1/tokenreviews" {
        let status = scripted.review.lock().unwrap().clone();
        let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {},
            "spec": {}, "status": status });
        return (StatusCode::CREATED, review.to_string());
    }
    let pod = scripted.pod.lock().unwrap().clone();
    match pod.filter(|_| uri.path() == "/api/v1/namespaces/sluice/pods/node-x") {
        Some(pod) => (StatusCode::OK, pod.to_string()),
        None => (
            StatusCode::NOT_FOUND,
            json!({ "kind": "Status", "code": 404, "reason": "NotFound" }).to_string(),
        ),
    }
}

fn user(account: &str, extra: &Value) -> Value {
    json!({ "username": format!("system:serviceaccount:{account}"), "uid": "1", "extra": extra })
}

fn pod(uid: &str, node: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "node-x", "namespace": "sluice", "uid": uid },
        "spec": { "nodeName": node, "containers": [] } })
}

#[tokio::test]
async fn of_older_servers_the_pod_is_asked_where_it_is() {
    let (scripted, folder) = (Scripted::default(), tempfile::tempdir().unwrap());
    let site = Site::start(Some(&scripted.start(folder.path()).await)).await;
    let bound = json!({ "authentication.kubernetes.io/pod-name": ["node-x"], "authentication.kubernetes.io/pod-uid": ["u1"] });
    scripted.says(&user("sluice:sluice-node", &bound));
    assert!(site.refused("a-token-of-it", "").await.contains("does not count"), "there is no such pod");
    *scripted.pod.lock().unwrap() = Some(pod("u2", "n1"));
    assert!(site.refused("a-token-of-it", "").await.contains("does not count"), "it is another pod");
    *scripted.pod.lock().unwrap() = Some(pod("u1", ""));
    assert!(site.refused("a-token-of-it", "").await.contains("does not count"), "it is on no node yet");
    *scripted.pod.lock().unwrap() = Some(pod("u1", "n1"));
    let given = site.enroll("n1", "a-token-of-it", "").await.unwrap();
    assert_eq!((given.node.as_str(), &given.projects[..]), ("n1", &["team-a".to_owned()][..]));
}

#[tokio::test]
async fn what_the_server_does_not_vouch_for_opens_nothing() {
    let (scripted, folder) = (Scripted::default(), tempfile::tempdir().unwrap());
    let site = Site::start(Some(&scripted.start(folder.path()).await)).await;
    let on = |node: &str| json!({ "authentication.kubernetes.io/node-name": [node] });
    let good = user("sluice:sluice-node", &on("n1"));
    for review in [
        json!({}),
        json!({ "authenticated": false, "error": "token has expired", "audiences": [AUDIENCE], "user": good }),
        // As a server answers that knows no audiences.
        json!({ "authenticated": true, "user": good }),
        json!({ "authenticated": true, "audiences": ["other"], "user": good }),
        json!({ "authenticated": true, "audiences": [AUDIENCE], "user": user("sluice:other", &on("n1")) }),
        json!({ "authenticated": true, "audiences": [AUDIENCE], "user": user("other:sluice-node", &on("n1")) }),
        json!({ "authenticated": true, "audiences": [AUDIENCE], "user": { "username": "sluice/sluice-node" } }),
        json!({ "authenticated": true, "audiences": [AUDIENCE], "user": user("sluice:sluice-node", &json!({})) }),
        json!({ "authenticated": true, "audiences": [AUDIENCE],
            "user": user("sluice:sluice-node", &json!({ "authentication.kubernetes.io/node-name": ["n1", "n2"] })) }),
    ] {
        *scripted.review.lock().unwrap() = review.clone();
        assert!(site.refused("a-token-of-it", "").await.contains("does not count"), "{review}");
    }
    scripted.says(&good);
    assert!(site.refused("a-token-of-it", "n2").await.contains("on n1"), "another node than was asked for");
    // A name that no certificate may have.
    scripted.says(&user("sluice:sluice-node", &on("n1/../x")));
    site.refused("a-token-of-it", "").await;
    scripted.says(&good);
    site.enroll("n1", "a-token-of-it", "n1").await.unwrap();
    let mut set = Set::open(site.set.folder()).unwrap();
    set.revoke("n1").unwrap();
    assert!(site.refused("a-token-of-it", "").await.contains("revoked"));
    let none = Site::start(None).await;
    assert!(none.refused("a-token-of-it", "").await.contains("lets in no pods"));
}

/// A real one, with the service's rights as docs/access.md says them.
struct Cluster {
    server: ApiServer,
    admin: Client,
}

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

impl Cluster {
    async fn start() -> Cluster {
        let server = ApiServer::start(&["sluice-identity"], &[]).unwrap();
        let file = Kubeconfig::read_from(server.kubeconfig(ADMIN).unwrap()).unwrap();
        let config = ClientConfig::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        let cluster = Cluster { server, admin: Client::try_from(config).unwrap() };
        cluster.ready().await;
        cluster.fill().await;
        cluster
    }

    async fn ready(&self) {
        let asked = || Request::get("/readyz").body(Vec::new()).unwrap();
        let looked = async {
            while self.admin.request_text(asked()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        assert!(tokio::time::timeout(SOON, looked).await.is_ok(), "{}", self.server.log());
    }

    async fn fill(&self) {
        let (admin, made) = (&self.admin, PostParams::default());
        let role = json!({ "metadata": { "name": "sluice-identity" },
            "rules": [{ "apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"] }] });
        let binding = json!({ "metadata": { "name": "sluice-identity" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "sluice-identity" },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "sluice-identity" }] });
        Api::<ClusterRole>::all(admin.clone()).create(&made, &of(role)).await.unwrap();
        Api::<ClusterRoleBinding>::all(admin.clone()).create(&made, &of(binding)).await.unwrap();
        Api::<Namespace>::all(admin.clone())
            .create(&made, &of(json!({ "metadata": { "name": "sluice" } })))
            .await
            .unwrap();
        let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), "sluice");
        for name in ["sluice-node", "other"] {
            accounts.create(&made, &of(json!({ "metadata": { "name": name } }))).await.unwrap();
        }
        for name in ["n1", "n2"] {
            let node = json!({ "metadata": { "name": name } });
            Api::<Node>::all(admin.clone()).create(&made, &of(node)).await.unwrap();
        }
        for (name, node, account) in
            [("node-1", "n1", "sluice-node"), ("node-2", "n2", "sluice-node"), ("other", "n1", "other")]
        {
            let pod = json!({ "metadata": { "name": name }, "spec": { "serviceAccountName": account, "nodeName": node,
                "automountServiceAccountToken": false, "containers": [{ "name": "c", "image": "r.io/sluice:1" }] } });
            Api::<Pod>::namespaced(admin.clone(), "sluice").create(&made, &of(pod)).await.unwrap();
        }
    }

    /// As a kubelet gets it for a pod's volume. `to`: kind and name.
    async fn token(&self, account: &str, audience: Option<&str>, to: Option<(&str, &str)>) -> String {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin.clone(), "sluice");
        let bound_object_ref = to.map(|(kind, name)| BoundObjectReference {
            kind: Some(kind.to_owned()),
            api_version: Some("v1".to_owned()),
            name: Some(name.to_owned()),
            uid: None,
        });
        let audiences = audience.map(str::to_owned).into_iter().collect();
        let spec = TokenRequestSpec { audiences, bound_object_ref, expiration_seconds: Some(3_600) };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let made = accounts.create_token_request(account, &PostParams::default(), &request).await.unwrap();
        made.status.unwrap().token
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: ./just test-kubernetes"]
async fn a_real_server_says_on_which_node_a_pod_is() {
    let mut cluster = Cluster::start().await;
    let kubeconfig = cluster.server.kubeconfig("sluice-identity-token").unwrap();
    let site = Site::start(Some(&kubeconfig)).await;
    let token = cluster.token("sluice-node", Some(AUDIENCE), Some(("Pod", "node-1"))).await;
    let given = site.enroll("n1", &token, "").await.unwrap();
    assert_eq!((given.node.as_str(), &given.projects[..]), ("n1", &["team-a".to_owned()][..]));
    assert!(
        Own::open(&site.place("n1")).unwrap().tls().open().unwrap().own().unwrap().is_node("team-a", "n1")
    );
    let of_node = cluster.token("sluice-node", Some(AUDIENCE), Some(("Node", "n2"))).await;
    assert_eq!(site.enroll("n2", &of_node, "n2").await.unwrap().node, "n2");

    for (token, node, said) in [
        (cluster.token("sluice-node", None, Some(("Pod", "node-1"))).await, "", "does not count"),
        (cluster.token("sluice-node", Some("other"), Some(("Pod", "node-1"))).await, "", "does not count"),
        (cluster.token("other", Some(AUDIENCE), Some(("Pod", "other"))).await, "", "does not count"),
        (cluster.token("sluice-node", Some(AUDIENCE), None).await, "", "does not count"),
        (token.clone(), "n2", "on n1"),
        (token[..token.len() - 4].to_owned(), "", "does not count"),
        (ADMIN.to_owned(), "", "does not count"),
        ("no token at all".to_owned(), "", "does not count"),
    ] {
        let refused = site.refused(&token, node).await;
        assert!(refused.contains(said), "{refused}");
    }
    // A pod that is gone proves nothing any more, once the server has forgotten that it did.
    let last = cluster.token("sluice-node", Some(AUDIENCE), Some(("Pod", "node-2"))).await;
    let pods: Api<Pod> = Api::namespaced(cluster.admin.clone(), "sluice");
    pods.delete("node-2", &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() })
        .await
        .unwrap();
    let forgotten = async {
        while site.enroll("gone", &last, "").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::time::timeout(SOON, forgotten).await.expect("the token of a pod that is gone counts");

    // As a user types it.
    let (file, into) = (site.place("n1.token"), site.place("typed"));
    std::fs::write(&file, &token).unwrap();
    let program = std::env::current_exe().unwrap();
    let mut enroll = Command::new(program.parent().unwrap().parent().unwrap().join("sluice"));
    enroll.args(["enroll", &site.address, "--ca-file"]).arg(site.ca());
    enroll.arg("--kubernetes-token-file").arg(&file).arg("--into").arg(&into);
    let typed = tokio::task::spawn_blocking(move || enroll.output()).await.unwrap().unwrap();
    assert!(typed.status.success(), "{}", String::from_utf8_lossy(&typed.stderr));
    let said = String::from_utf8_lossy(&typed.stdout).into_owned();
    assert!(said.starts_with("this is node n1 of team-a"), "{said}");
    let settings = std::fs::read_to_string(into.join("frontend.toml")).unwrap();
    assert!(
        settings.contains(&format!("kubernetes_token_file = {:?}", file.display().to_string())),
        "{settings}"
    );

    // While the server is away nobody comes in, and who is in renews.
    cluster.server.kill().unwrap();
    assert!(site.refused(&token, "").await.contains("ask again"));
    client::renew(&into, &site.address).await.unwrap();
    cluster.server.restart().unwrap();
    cluster.ready().await;

    // An identity that is over is got anew, with the token that the kubelet has put there meanwhile.
    let state = into.join("identity.json");
    let mut kept: Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
    let end = kept["expires_unix"].as_u64().unwrap();
    kept["expires_unix"] = (end - 2 * 24 * 3_600).into();
    kept["given_unix"] = (end - 3 * 24 * 3_600).into();
    std::fs::write(&state, kept.to_string()).unwrap();
    std::fs::write(&file, cluster.token("sluice-node", Some(AUDIENCE), Some(("Pod", "node-1"))).await)
        .unwrap();
    let config = client::Config {
        address: Some(site.address.clone()),
        folder: Some(into.clone()),
        kubernetes_token_file: Some(file),
    };
    let renewing = tokio::spawn(client::keep_renewed(config, site.shutdown.clone()));
    let renewed = async {
        while Own::given(&into).unwrap().unwrap().expires_unix < end {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, renewed).await.expect("the identity was not got anew");
    site.shutdown.cancel();
    renewing.await.unwrap();
}
