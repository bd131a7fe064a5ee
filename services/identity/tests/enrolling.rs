//! Nodes at a real identity service, over TLS that only the token vouches for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::path::PathBuf;
use std::time::Duration;

use identity::{Options, Own, Set, Token, client};
use identity_service::Config;
use proto::EnrollRequest;
use proto::identity_client::IdentityClient;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Endpoint;

const HOUR: Duration = Duration::from_secs(3_600);

struct Site {
    folder: tempfile::TempDir,
    set: Set,
    address: String,
    shutdown: CancellationToken,
}

impl Site {
    async fn start() -> Site {
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
        let authority = set.folder().join("authority");
        let config = Config { listen: ([127, 0, 0, 1], 0).into(), authority, kubernetes: None };
        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        let address =
            identity_service::start(config, tls.open().unwrap(), &tasks, shutdown.clone()).await.unwrap();
        Site { folder, set, address: format!("https://{address}"), shutdown }
    }

    fn token(&self, node: &str, uses: u32) -> Token {
        let authority = self.set.authority().unwrap().fingerprint();
        self.set.tokens().make(node, &["default".to_owned()], HOUR, uses, authority).unwrap().0
    }

    fn place(&self, node: &str) -> PathBuf {
        self.folder.path().join(node)
    }

    async fn enroll(&self, node: &str, token: &Token) -> anyhow::Result<identity::Given> {
        client::enroll(&Own::open(&self.place(node))?, &self.address, token, node).await
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

#[tokio::test]
async fn a_node_enrolls_once_and_renews_by_what_it_was_given() {
    let mut site = Site::start().await;
    let token = site.token("n1", 1);
    let given = site.enroll("n1", &token).await.unwrap();
    assert_eq!((given.node.as_str(), &given.projects[..]), ("n1", &["default".to_owned()][..]));
    let tls = Own::open(&site.place("n1")).unwrap().tls().open().unwrap();
    assert!(tls.own().unwrap().is_node("default", "n1"));
    // The answer was lost, and it asks again.
    site.enroll("n1", &token).await.unwrap();
    let renewed = client::renew(&site.place("n1"), &site.address).await.unwrap();
    assert_ne!(renewed.certificate, given.certificate);
    assert_eq!(tls.own().unwrap().thumbprint, {
        let again = Own::open(&site.place("n1")).unwrap().tls().open().unwrap();
        again.own().unwrap().thumbprint
    });
    let listed = site.set.entries().unwrap();
    assert!(listed.iter().any(|entry| entry.name == "n1"), "{listed:?}");
    site.set.revoke("n1").unwrap();
    let refused = client::renew(&site.place("n1"), &site.address).await.unwrap_err();
    assert!(format!("{refused:#}").contains("revoked"), "{refused:#}");
    site.enroll("n1", &site.token("n1", 1)).await.unwrap_err();
}

#[tokio::test]
async fn a_node_renews_by_itself_when_two_thirds_are_over() {
    let site = Site::start().await;
    let given = site.enroll("n1", &site.token("n1", 1)).await.unwrap();
    // As if it had been given long ago, and would end in an hour.
    let state = site.place("n1").join("identity.json");
    let mut kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
    kept["given_unix"] = (given.expires_unix - 10 * 24 * 3_600).into();
    kept["expires_unix"] = (given.expires_unix - 23 * 3_600).into();
    std::fs::write(&state, kept.to_string()).unwrap();
    let config = client::Config {
        address: Some(site.address.clone()),
        folder: Some(site.place("n1")),
        ..client::Config::default()
    };
    let renewing = tokio::spawn(client::keep_renewed(config, site.shutdown.clone()));
    let renewed = async {
        while Own::given(&site.place("n1")).unwrap().unwrap().expires_unix < given.expires_unix {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), renewed).await.unwrap();
    site.shutdown.cancel();
    renewing.await.unwrap();
}

#[tokio::test]
async fn tokens_that_do_not_count_open_nothing() {
    let site = Site::start().await;
    let token = site.token("n1", 1);
    site.enroll("n2", &token).await.expect_err("another node's token");
    site.enroll("n1", &token).await.unwrap();
    // Another machine that calls itself n1, with the same token.
    let other = Own::open(&site.place("thief")).unwrap();
    client::enroll(&other, &site.address, &token, "n1").await.expect_err("a used token");
    let authority = token.authority;
    let over = site.set.tokens().make("n3", &["default".to_owned()], Duration::ZERO, 1, authority).unwrap().0;
    site.enroll("n3", &over).await.expect_err("a token that is over");
    let unknown = site.folder.path().join("other-tokens");
    let unknown = identity::Tokens::open(&unknown);
    let unknown = unknown.make("n4", &["default".to_owned()], HOUR, 1, authority).unwrap().0;
    let refused = site.enroll("n4", &unknown).await.expect_err("another mesh's token");
    assert!(!format!("{refused:#}").contains("unknown token"), "nothing is told but that it does not count");
    // A server of another authority: the token vouches for none.
    let mut pinned = site.token("n5", 1);
    pinned.authority = [9; 32];
    site.enroll("n5", &pinned).await.expect_err("another authority's server");
    client::renew(&site.place("n5"), &site.address).await.expect_err("nothing was given yet");
}

#[tokio::test]
async fn a_request_must_prove_its_key() {
    let site = Site::start().await;
    let token = site.token("n1", 1);
    let connector = tls::Connector::pinned(token.authority, identity::IDENTITY);
    let channel = Endpoint::from_shared(site.address.clone()).unwrap().connect_with_connector_lazy(connector);
    let own = Own::open(&site.place("n1")).unwrap();
    let request = EnrollRequest {
        token: token.to_string(),
        node: "n1".to_owned(),
        key: own.key().to_vec(),
        nats_key: own.nats_key(),
        proof: own.prove(&token.to_string(), "n2").unwrap(),
    };
    let mut client = IdentityClient::new(channel);
    for (request, why) in [
        (request.clone(), "a proof of something else"),
        (EnrollRequest { key: vec![1], ..request.clone() }, "no key"),
        (EnrollRequest { token: String::new(), ..request.clone() }, "no token"),
        (EnrollRequest::default(), "nothing"),
    ] {
        assert!(client.enroll(request).await.is_err(), "{why}");
    }
    // A name that is none: proven, and refused all the same.
    let wild = EnrollRequest {
        node: "n1/../x".to_owned(),
        proof: own.prove(&token.to_string(), "n1/../x").unwrap(),
        ..request
    };
    assert!(client.enroll(wild).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_enrolls_at_once() {
    const NODES: u32 = 64;
    let site = Site::start().await;
    let token = site.token("gpu-*", NODES);
    let nodes: Vec<String> = (0..NODES).map(|number| format!("gpu-{number}")).collect();
    let (site, token) = (&site, &token);
    let enrolled = futures::future::join_all(nodes.iter().map(|node| async move {
        // Busy is no refusal, nor is a machine that is slow: a node asks again.
        for _ in 0..200 {
            match site.enroll(node, token).await {
                Ok(_) => return true,
                Err(error) if ["busy", "deadline"].iter().any(|late| format!("{error:#}").contains(late)) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => panic!("{node}: {error:#}"),
            }
        }
        false
    }));
    assert!(enrolled.await.into_iter().all(|enrolled| enrolled));
    site.enroll("gpu-more", token).await.expect_err("one too many");
}
