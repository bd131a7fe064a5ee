//! Real connections: who is believed, who is refused, and what happens when certificates change.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::path::Path;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, date_time_ymd};
use tls::{Clients, Config, ConnectInfo, Connection, Name, Tls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;
use tonic::transport::server::Connected as _;
use tower::Service as _;

/// An authority in memory, and what it gives.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn give(&self, folder: &Path, name: &Name, over: bool) -> Config {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(name.to_string().try_into().unwrap())];
        if over {
            params.not_after = date_time_ymd(2001, 1, 1);
        }
        let certificate = params.signed_by(&key, &self.0).unwrap();
        std::fs::create_dir_all(folder).unwrap();
        let file = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            Some(path)
        };
        Config {
            ca_file: file("ca.pem", self.0.pem()),
            certificate_file: file("tls.pem", certificate.pem()),
            key_file: file("tls.key", key.serialize_pem()),
            insecure: false,
        }
    }
}

fn cache() -> Name {
    Name::service("cache").unwrap()
}

fn node() -> Name {
    Name::node("default", "n1").unwrap()
}

/// Serves connections, each with one byte; what was proven on each.
async fn serve(tls: Tls, clients: Clients) -> (String, tokio::sync::mpsc::UnboundedReceiver<ConnectInfo>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("{}://{}", tls.scheme(), listener.local_addr().unwrap());
    let mut incoming = tls.listen("test", listener, clients).unwrap();
    let (proven, taken) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(mut connection)) = incoming.next().await {
            let _ = proven.send(connection.connect_info());
            tokio::spawn(async move { connection.write_all(b"x").await });
        }
    });
    (url, taken)
}

/// Whether a connection comes about: a client learns that its certificate was refused when it reads.
async fn dial(tls: &Tls, role: &'static str, url: &str) -> std::io::Result<Connection> {
    let connecting = async {
        let mut connection = tls.connector(role).call(url.parse().unwrap()).await?.into_inner();
        let mut byte = [0];
        connection.read_exact(&mut byte).await?;
        Ok(connection)
    };
    tokio::time::timeout(Duration::from_secs(20), connecting).await.unwrap()
}

#[tokio::test]
async fn both_sides_prove_who_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let server = authority.give(&folder.path().join("cache"), &cache(), false).open().unwrap();
    let client = authority.give(&folder.path().join("node"), &node(), false).open().unwrap();
    let (url, mut proven) = serve(server, Clients::Proven).await;
    assert!(url.starts_with("https://"));
    dial(&client, "cache", &url).await.unwrap();
    let peer = proven.recv().await.unwrap().peer.unwrap();
    assert!(peer.is_node("default", "n1") && !peer.is_node("default", "n2") && !peer.is_node("other", "n1"));
    assert_eq!(peer.thumbprint, client.own().unwrap().thumbprint);
}

#[tokio::test]
async fn who_does_not_prove_it_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, foreign) = (Authority::new(), Authority::new());
    let place = |name: &str| folder.path().join(name);
    let (url, _proven) =
        serve(authority.give(&place("cache"), &cache(), false).open().unwrap(), Clients::Proven).await;
    let client = authority.give(&place("node"), &node(), false).open().unwrap();
    dial(&client, "cache", &url).await.unwrap();

    let stranger = foreign.give(&place("stranger"), &node(), false);
    dial(&stranger.open().unwrap(), "cache", &url).await.expect_err("another authority's cache");
    let mixed = Config { ca_file: client_config(&place("node")).ca_file, ..stranger };
    dial(&mixed.open().unwrap(), "cache", &url).await.expect_err("another authority's node");
    let over = authority.give(&place("over"), &node(), true).open().unwrap();
    dial(&over, "cache", &url).await.expect_err("an expired certificate");
    over.counts_at(std::time::SystemTime::now()).expect_err("it says so itself");
    client.counts_at(std::time::SystemTime::now()).unwrap();
    dial(&client, "fetcher", &url).await.expect_err("a cache is no fetcher");
    let plain = url.replace("https://", "http://");
    dial(&client, "cache", &plain).await.expect_err("no TLS");
    let (nodes, _proven) = serve(client.clone(), Clients::Proven).await;
    dial(&client, "cache", &nodes).await.expect_err("a node is no cache");
    let (expired, _proven) =
        serve(authority.give(&place("old"), &cache(), true).open().unwrap(), Clients::Proven).await;
    dial(&client, "cache", &expired).await.expect_err("an expired cache");
}

fn client_config(folder: &Path) -> Config {
    Config {
        ca_file: Some(folder.join("ca.pem")),
        certificate_file: Some(folder.join("tls.pem")),
        key_file: Some(folder.join("tls.key")),
        insecure: false,
    }
}

#[tokio::test]
async fn new_files_are_used_for_new_connections() {
    let folder = tempfile::tempdir().unwrap();
    let (before, after) = (Authority::new(), Authority::new());
    let place = |name: &str| folder.path().join(name);
    let server = before.give(&place("cache"), &cache(), false).open().unwrap();
    let (url, _proven) = serve(server, Clients::Proven).await;
    let client = before.give(&place("node"), &node(), false).open().unwrap();
    dial(&client, "cache", &url).await.unwrap();
    let newer = after.give(&place("newer"), &node(), false).open().unwrap();
    dial(&newer, "cache", &url).await.expect_err("an authority that is not believed yet");

    // Half of a change is no change.
    let key = std::fs::read(place("cache").join("tls.key")).unwrap();
    after.give(&place("cache"), &cache(), false);
    let new_key = std::fs::read(place("cache").join("tls.key")).unwrap();
    std::fs::write(place("cache").join("tls.key"), key).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    dial(&client, "cache", &url).await.expect("the old certificate stays in use");
    std::fs::write(place("cache").join("tls.key"), new_key).unwrap();
    let changed = async {
        while dial(&newer, "cache", &url).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), changed).await.unwrap();
    dial(&client, "cache", &url).await.expect_err("the old authority counts no more");
    // And the dialling side reads its own anew.
    after.give(&place("node"), &node(), false);
    let changed = async {
        while dial(&client, "cache", &url).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), changed).await.unwrap();
}

#[tokio::test]
async fn without_tls_only_this_machine() {
    let plain = Config::default().open().unwrap();
    let (url, mut proven) = serve(plain.clone(), Clients::Proven).await;
    dial(&plain, "cache", &url).await.unwrap();
    let proven = proven.recv().await.unwrap();
    assert!(!proven.secured && proven.peer.is_none());
    let everywhere = || async { TcpListener::bind("0.0.0.0:0").await.unwrap() };
    let refused = plain.listen("cache", everywhere().await, Clients::Proven).unwrap_err();
    assert!(refused.to_string().contains("tls.insecure = true"), "{refused}");
    let refused = dial(&plain, "cache", "http://192.0.2.1:80").await.unwrap_err();
    assert!(refused.to_string().contains("without TLS"), "{refused}");
    let insecure = Config { insecure: true, ..Config::default() }.open().unwrap();
    insecure.listen("cache", everywhere().await, Clients::Proven).unwrap();
    assert!(insecure.is_insecure());
    assert!(Config { ca_file: Some("x".into()), ..Config::default() }.open().is_err(), "one of three files");
}

/// A client that says nothing holds up nobody.
#[tokio::test]
async fn a_silent_client_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let server = authority.give(&folder.path().join("cache"), &cache(), false).open().unwrap();
    let client = authority.give(&folder.path().join("node"), &node(), false).open().unwrap();
    let (url, _proven) = serve(server, Clients::Proven).await;
    let address = url.trim_start_matches("https://").to_owned();
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(tokio::net::TcpStream::connect(&address).await.unwrap());
    }
    dial(&client, "cache", &url).await.unwrap();
}
