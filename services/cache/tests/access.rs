//! Over TLS a grant is of use to the node that it was given to, and as long as it is not revoked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bus::Bus;
use cache::{Cache, Config};
use ed25519_dalek::SigningKey;
use identity::{Options, Set};
use prost::Message as _;
use proto::content_client::ContentClient;
use proto::revocation::Scope;
use proto::signed::{Domain, sign};
use proto::{ChunksRequest, Grant, Revocation, Revocations, Signed};
use store::Store;
use tls::Tls;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};

struct Site {
    _folder: tempfile::TempDir,
    set: Set,
    bus: Bus,
    cache: Cache,
    key: SigningKey,
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
        let mut set = Set::init(&folder.path().join("mesh"), &options).unwrap();
        for node in ["n1", "n2"] {
            set.add_node(node, &["default".to_owned()]).unwrap();
        }
        let store = Store::open(folder.path().join("store").to_str().unwrap(), &HashMap::new()).unwrap();
        let (bus, tasks, shutdown) = (Bus::in_process(), TaskTracker::new(), CancellationToken::new());
        let key = SigningKey::from_bytes(&[1; 32]);
        let tls = files(&set.folder().join("services/cache"));
        let config = Config { tls, ..Config::default() };
        let trusted = vec![key.verifying_key()].into();
        let cache =
            Cache::start(config, store, bus.clone(), trusted, &tasks, shutdown.clone()).await.unwrap();
        Site { _folder: folder, set, bus, cache, key, shutdown }
    }

    fn node(&self, name: &str) -> Tls {
        files(&self.set.folder().join("nodes").join(name)).open().unwrap()
    }

    fn grant(&self, node: &str, key: &[u8], epoch: u64) -> Signed {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let grant = Grant {
            project: "default".to_owned(),
            node: node.to_owned(),
            manifest_digest: format!("sha256:{}", "1".repeat(64)),
            expires_unix: now + 3_600,
            node_key: key.to_vec(),
            epoch,
            ..Grant::default()
        };
        sign(&self.key, Domain::Grant, grant.encode_to_vec())
    }

    /// Nothing is asked for: what is admitted gets just that.
    async fn ask(&self, tls: &Tls, grant: &Signed) -> Result<(), Status> {
        let endpoint = Endpoint::from_shared(self.cache.endpoint().to_owned()).unwrap();
        let channel = endpoint.connect_with_connector_lazy(tls.connector("cache"));
        let mut request = Request::new(ChunksRequest::default());
        let value = MetadataValue::from_bytes(&grant.encode_to_vec());
        request.metadata_mut().insert_bin("sluice-grant-bin", value);
        ContentClient::new(channel).get_chunks(request).await.map(drop)
    }

    async fn code(&self, tls: &Tls, grant: &Signed) -> Code {
        self.ask(tls, grant).await.map_or_else(|status| status.code(), |()| Code::Ok)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn files(folder: &Path) -> tls::Config {
    tls::Config {
        ca_file: Some(folder.join("ca.pem")),
        certificate_file: Some(folder.join("tls.pem")),
        key_file: Some(folder.join("tls.key")),
        insecure: false,
    }
}

#[tokio::test]
async fn a_grant_serves_its_node_alone() {
    let site = Site::start().await;
    assert!(site.cache.endpoint().starts_with("https://"));
    let (first, second) = (site.node("n1"), site.node("n2"));
    let key = |tls: &Tls| tls.own().unwrap().thumbprint;
    let grant = site.grant("n1", &key(&first), 0);
    assert_eq!(site.code(&first, &grant).await, Code::Ok);
    // It leaked: another node has it, or a service, or somebody without a certificate.
    assert_eq!(site.code(&second, &grant).await, Code::PermissionDenied);
    assert_eq!(site.code(&second, &site.grant("n1", &key(&second), 0)).await, Code::PermissionDenied);
    assert_eq!(site.code(&first, &site.grant("n1", &key(&second), 0)).await, Code::Unauthenticated);
    let policy = files(&site.set.folder().join("services/policy")).open().unwrap();
    assert_eq!(site.code(&policy, &grant).await, Code::PermissionDenied);
    assert_ne!(site.code(&Tls::default(), &grant).await, Code::Ok, "nobody");
    let other = tempfile::tempdir().unwrap();
    let options = Options {
        name: "other".to_owned(),
        hosts: Vec::new(),
        nats_url: String::new(),
        listen: String::new(),
        at: None,
    };
    let mut other = Set::init(&other.path().join("mesh"), &options).unwrap();
    other.add_node("n1", &["default".to_owned()]).unwrap();
    let stranger = files(&other.folder().join("nodes/n1"));
    assert_ne!(site.code(&stranger.open().unwrap(), &grant).await, Code::Ok, "another mesh's n1");
}

#[tokio::test]
async fn what_is_revoked_is_served_no_more() {
    let site = Site::start().await;
    let node = site.node("n1");
    let key = node.own().unwrap().thumbprint;
    let before = site.grant("n1", &key, 0);
    assert_eq!(site.code(&node, &before).await, Code::Ok);
    let image = Revocation {
        scope: Scope::Image.into(),
        project: "default".to_owned(),
        name: format!("sha256:{}", "1".repeat(64)),
        epoch: 1,
        at_unix: 1,
    };
    let tell = |list: Revocations, key: &SigningKey| {
        let signed = sign(key, Domain::Revocations, list.encode_to_vec());
        site.bus.teller(proto::subjects::REVOCATIONS).tell(&signed)
    };
    // Nobody but a fetcher revokes.
    assert!(tell(Revocations { epoch: 9, entries: vec![image.clone()] }, &SigningKey::from_bytes(&[2; 32])));
    assert_eq!(site.code(&node, &before).await, Code::Ok);
    let revoked = async {
        // Told again: who listens may have begun only now.
        while site.code(&node, &before).await == Code::Ok {
            tell(Revocations { epoch: 1, entries: vec![image.clone()] }, &site.key);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), revoked).await.unwrap();
    assert_eq!(site.code(&node, &before).await, Code::PermissionDenied);
    assert_eq!(site.code(&node, &site.grant("n1", &key, 1)).await, Code::Ok, "given since");
}
