//! A real NATS server with the configuration that `sluice keys init` writes: each role does its work, and nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event};
use bus::{Answer, Bus, Introduction, NatsConfig};
use ed25519_dalek::SigningKey;
use futures::StreamExt as _;
use identity::{Options, Set};
use prost::Message as _;
use proto::signed::Domain;
use proto::subjects::{CONVERSATION, TOLD};
use proto::{
    Event as Told, EventKind, HelloRequest, JudgeReply, JudgeRequest, LocateReply, PresentRequest,
    ResolveReply, ResolveRequest, Role, SealingReply, SealingRequest, speaker,
};
use testkit::{Nats, port};
use tonic::Code;

const WAIT: Duration = Duration::from_secs(20);
/// Subjects that are tried before their refusals are waited for.
const AT_ONCE: usize = 16;

/// A mesh's keys and the server that knows them.
struct Mesh {
    folder: tempfile::TempDir,
    set: Set,
    nats: Nats,
}

impl Mesh {
    fn start() -> Mesh {
        let folder = tempfile::tempdir().unwrap();
        let port = port::free().unwrap();
        let options = Options {
            name: "test".to_owned(),
            hosts: Vec::new(),
            nats_url: format!("tls://127.0.0.1:{port}"),
            listen: format!("127.0.0.1:{port}"),
            at: None,
        };
        let mut set = Set::init(&folder.path().join("mesh"), &options).unwrap();
        for (node, project) in [("n1", "default"), ("n.2", "team.b")] {
            set.add_node(node, &[project.to_owned()]).unwrap();
        }
        let nats = Nats::configured(&set.folder().join("nats/nats-server.conf"), port).unwrap();
        Mesh { folder, set, nats }
    }

    fn identity(&self, role: Role) -> PathBuf {
        let folder = self.set.folder();
        match role {
            Role::Operator => folder.join("operators/operator"),
            Role::Frontend => folder.join("nodes/n1"),
            role => folder.join("services").join(role.name()),
        }
    }

    /// As the snippet of settings says.
    async fn bus(&self, role: Role) -> Bus {
        self.bus_of(&self.identity(role)).await
    }

    async fn bus_of(&self, folder: &Path) -> Bus {
        let bus = Bus::connect_within(&config(folder), WAIT).await;
        bus.unwrap_or_else(|error| panic!("{}: {error:#}\n{}", folder.display(), self.nats.log()))
    }
}

fn config(folder: &Path) -> NatsConfig {
    let snippet = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let snippet = snippet.into_iter().find(|path| path.extension().is_some_and(|end| end == "toml")).unwrap();
    let settings: toml::Table = std::fs::read_to_string(snippet).unwrap().parse().unwrap();
    settings["nats"].clone().try_into().unwrap()
}

fn once() -> Answer {
    Answer { in_flight: 8, instance: Some("one".to_owned()) }
}

fn resolve(project: &str, node: &str) -> ResolveRequest {
    ResolveRequest { project: project.to_owned(), node: node.to_owned(), ..ResolveRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_does_its_work() {
    let mesh = Mesh::start();
    let (fetcher, cache, policy) =
        (mesh.bus(Role::Fetcher).await, mesh.bus(Role::Cache).await, mesh.bus(Role::Policy).await);
    let (node, operator) = (mesh.bus(Role::Frontend).await, mesh.bus(Role::Operator).await);
    let _resolves = fetcher
        .answer(once(), |_: ResolveRequest| std::future::ready(Ok(ResolveReply::default())))
        .await
        .unwrap();
    let _judges =
        policy.answer(once(), |_: JudgeRequest| std::future::ready(Ok(JudgeReply::default()))).await.unwrap();
    let _presents = cache
        .answer(once(), |_: PresentRequest| std::future::ready(Ok(LocateReply::default())))
        .await
        .unwrap();
    let about = Introduction { version: "1", ready: Box::new(|| Ok(())), insecure: Vec::new() };
    let _there = cache.introduce(Role::Cache, about).await.unwrap();

    node.call(resolve("default", "n1"), WAIT).await.unwrap();
    node.call_instance("one", resolve("", "n1"), WAIT).await.unwrap();
    operator.call(resolve("any", "any"), WAIT).await.unwrap();
    fetcher.call(JudgeRequest::default(), WAIT).await.unwrap();
    assert_eq!(cache.gather(PresentRequest {}, Duration::from_secs(1)).await.unwrap().len(), 1);
    let there = operator.gather(HelloRequest {}, Duration::from_secs(1)).await.unwrap();
    assert_eq!(there.iter().map(|reply| reply.role.as_str()).collect::<Vec<_>>(), ["cache"]);
    // JetStream.
    let lease = fetcher.lease("import", Duration::from_secs(5)).await.unwrap().unwrap();
    assert!(fetcher.lease("import", Duration::from_secs(5)).await.unwrap().is_none());
    lease.release().await;
    assert!(mesh.bus(Role::Policy).await.lease("import", Duration::from_secs(5)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_speaks_as_itself_alone() {
    let mesh = Mesh::start();
    let (fetcher, node) = (mesh.bus(Role::Fetcher).await, mesh.bus(Role::Frontend).await);
    let _resolves = fetcher
        .answer(once(), |_: ResolveRequest| std::future::ready(Ok(ResolveReply::default())))
        .await
        .unwrap();
    // In its own subjects it names another.
    let refused = node.call(resolve("default", "n.2"), WAIT).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    // In a project that its user does not have; the server would not even say so.
    let refused = node.call(resolve("team.b", "n1"), WAIT).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let lying = NatsConfig { projects: vec!["team.b".to_owned()], ..config(&mesh.identity(Role::Frontend)) };
    let lying = Bus::connect_within(&lying, WAIT).await.unwrap();
    assert!(lying.call(resolve("team.b", "n1"), Duration::from_secs(1)).await.is_err(), "the server refuses");
    let other = mesh.bus_of(&mesh.set.folder().join("nodes/n.2")).await;
    other.call(resolve("team.b", "n.2"), WAIT).await.unwrap();
    assert_eq!(other.call(resolve("team.b", "n1"), WAIT).await.unwrap_err().code(), Code::PermissionDenied);

    // Events: another's are passed over by who listens.
    let operator = mesh.bus(Role::Operator).await;
    let mut heard = operator.listen_to_events().await.unwrap();
    let mut number = 0;
    let first = async {
        loop {
            // Told again: a subscription is known to the server only a moment after it was made.
            number += 1;
            for (name, image) in [("n.2", "forged"), ("n1", "own")] {
                let event = Told::new(EventKind::Degraded, format!("test-{number}"), "test");
                node.events().tell(Told { node: name.to_owned(), image: image.to_owned(), ..event });
            }
            if let Ok(heard) = tokio::time::timeout(Duration::from_secs(1), heard.next()).await {
                break heard.unwrap();
            }
        }
    };
    let first = tokio::time::timeout(WAIT, first).await.unwrap();
    assert_eq!((first.node.as_str(), first.image.as_str()), ("n1", "own"));
}

/// Whoever carries or overhears a request reads no credential, and only the fetcher that signed the key opens it.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_cross_sealed() {
    let mesh = Mesh::start();
    let (fetcher, node) = (mesh.bus(Role::Fetcher).await, mesh.bus(Role::Frontend).await);
    let (own, thief) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
    let sealing = Arc::new(tls::sealing::SealingKey::derive(own.as_bytes()).unwrap());
    let key = proto::SealingKey { x25519: sealing.public().to_vec() }.encode_to_vec();
    let signed = proto::signed::sign(&own, Domain::SealingKey, key);
    let _names = fetcher
        .answer(once(), move |_: SealingRequest| {
            std::future::ready(Ok(SealingReply { key: Some(signed.clone()) }))
        })
        .await
        .unwrap();
    let basic = proto::credential::Basic { username: "me".to_owned(), password: "hunter2".to_owned() };
    let credential = proto::Credential { kind: Some(proto::credential::Kind::Basic(basic)) };
    let request = ResolveRequest {
        reference: "registry.example/app:1".to_owned(),
        credential: Some(credential.clone()),
        ..resolve("default", "n1")
    };
    let sealer = bus::Sealer::new(node.clone(), vec![own.verifying_key()].into());
    let sealed = sealer.resolve(request.clone()).await.unwrap();
    assert_eq!(sealed.credential, None);
    assert!(!sealed.encode_to_vec().windows(7).any(|part| part == b"hunter2"));
    let context = proto::sealed::context("default", "registry.example/app:1", "n1");
    let opened = sealing.open(&sealed.sealed_credential, &context).unwrap();
    assert_eq!(proto::Credential::decode(&*opened).unwrap(), credential);
    let other = proto::sealed::context("default", "evil.example/app:1", "n1");
    assert!(sealing.open(&sealed.sealed_credential, &other).is_err(), "it is for one request");
    // Who believes another fetcher sends none.
    let sealer = bus::Sealer::new(node.clone(), vec![thief.verifying_key()].into());
    assert_eq!(sealer.resolve(request).await.unwrap_err().code(), Code::PermissionDenied);
}

/// Whoever is connected, and which subjects the server has refused it.
struct Raw {
    client: Client,
    refused: Arc<Mutex<Vec<String>>>,
    sentinels: usize,
}

impl Raw {
    async fn connect(folder: &Path) -> Raw {
        let config = config(folder);
        let refused: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = refused.clone();
        let tls = tls::nats_config(
            config.ca_file.as_deref().unwrap(),
            Some((config.certificate_file.as_ref().unwrap(), config.key_file.as_ref().unwrap())),
        );
        let client = ConnectOptions::with_credentials(
            &std::fs::read_to_string(config.credentials_file.unwrap()).unwrap(),
        )
        .unwrap()
        .require_tls(true)
        .tls_client_config(tls.unwrap())
        .event_callback(move |event| {
            if let Event::ServerError(error) = &event {
                noted.lock().unwrap().push(error.to_string());
            }
            std::future::ready(())
        })
        .connect(config.url)
        .await
        .unwrap();
        Raw { client, refused, sentinels: 0 }
    }

    /// Returns once everything before was taken or refused: by then the server has refused this as well.
    async fn settle(&mut self) {
        self.sentinels += 1;
        let sentinel = format!("nobody.{}", self.sentinels);
        self.client.publish(sentinel.clone(), "".into()).await.unwrap();
        self.client.flush().await.unwrap();
        let refused = async {
            while !self.refused.lock().unwrap().iter().any(|text| mentions(text, &sentinel)) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(WAIT, refused).await.unwrap();
    }

    fn was_refused(&self, kind: &str, subject: &str) -> bool {
        let refused = self.refused.lock().unwrap();
        refused.iter().any(|text| text.to_lowercase().contains(kind) && mentions(text, subject))
    }
}

fn mentions(text: &str, subject: &str) -> bool {
    text.to_lowercase().contains(&format!("\"{}\"", subject.to_lowercase()))
}

/// Each subject, each role, both directions: what the table does not say is refused.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_table_does_not_say_is_refused() {
    let mesh = Mesh::start();
    let mut wrong = Vec::new();
    for role in Role::ALL {
        let mut raw = Raw::connect(&mesh.identity(role)).await;
        let mut published: HashMap<String, bool> = HashMap::new();
        let mut subscribed: HashMap<String, bool> = HashMap::new();
        for asked in CONVERSATION {
            let may = asked.by.contains(&role);
            let own = |node: &str| speaker::subject(asked.subject, "default", node);
            match role {
                Role::Frontend => {
                    published.insert(asked.subject.to_owned(), false);
                    published.insert(own("n1"), may);
                    published.insert(own("n2"), false);
                    published.insert(speaker::subject(asked.subject, "other", "n1"), false);
                }
                _ => {
                    published.insert(asked.subject.to_owned(), may);
                    published.insert(format!("{}.all", asked.subject), may);
                    published.insert(own("n1"), false);
                }
            }
            subscribed.insert(asked.subject.to_owned(), asked.of == role);
            subscribed.insert(format!("{}.all", asked.subject), asked.of == role);
        }
        for told in TOLD {
            let concrete = told.subject.replace('*', "streaming");
            let may = told.by.contains(&role) && role != Role::Frontend;
            published.insert(concrete.clone(), may);
            subscribed.insert(told.subject.to_owned(), told.to.contains(&role));
        }
        for other in Role::ALL {
            let inbox = format!("{}.UOTHER.1", speaker::inbox(other));
            subscribed.insert(format!("{}.>", speaker::inbox(other)), false);
            let asks = CONVERSATION.iter().any(|asked| asked.of == role && asked.by.contains(&other));
            let greets = proto::conversation::is_service(role) && other == Role::Operator;
            published.insert(inbox, asks || greets);
        }
        for everything in [">", "_INBOX.>", "$JS.API.STREAM.LIST", "$SYS.>", "sluice.v1.>"] {
            subscribed.insert(everything.to_owned(), false);
        }
        for forbidden in
            ["$JS.API.STREAM.LIST", "$JS.API.STREAM.DELETE.KV_sluice-leases", "$SYS.REQ.SERVER.PING"]
        {
            published.insert(forbidden.to_owned(), false);
        }
        // A few at a time: the client drops what it is told faster than it can hand it on.
        let (to_publish, to_hear): (Vec<_>, Vec<_>) =
            (published.keys().collect(), subscribed.keys().collect());
        for some in to_publish.chunks(AT_ONCE) {
            for subject in some {
                raw.client.publish((*subject).clone(), "x".into()).await.unwrap();
            }
            raw.settle().await;
        }
        for some in to_hear.chunks(AT_ONCE) {
            for subject in some {
                // Kept: a dropped one would be taken back before it was refused.
                Box::leak(Box::new(raw.client.subscribe((*subject).clone()).await.unwrap()));
            }
            raw.settle().await;
        }
        for (kind, subjects) in [("publish", published), ("subscription", subscribed)] {
            for (subject, may) in subjects {
                if raw.was_refused(kind, &subject) == may {
                    wrong.push(format!(
                        "{role:?} {kind} {subject}: expected {}",
                        if may { "allowed" } else { "refused" }
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_revoked_is_put_out_and_nobody_comes_in_without_keys() {
    let mut mesh = Mesh::start();
    let node = mesh.bus(Role::Frontend).await;
    node.connected().unwrap();
    mesh.set.revoke("n1").unwrap();
    let (jwt, credentials) = mesh.set.account_jwt().unwrap();
    let (url, ca, certificate, key) = mesh.set.nats();
    let system = NatsConfig {
        url,
        credentials_file: Some(credentials),
        ca_file: Some(ca),
        certificate_file: Some(certificate),
        key_file: Some(key),
        ..NatsConfig::default()
    };
    bus::update_account(&system, jwt).await.unwrap();
    let out = async {
        while node.connected().is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(WAIT, out).await.expect("the server closes its connection");
    mesh.bus(Role::Fetcher).await.connected().unwrap();

    let short = Duration::from_secs(2);
    let revoked = Bus::connect_within(&config(&mesh.identity(Role::Frontend)), short).await;
    assert!(revoked.is_err(), "a revoked user comes back");
    // Another mesh's keys, no credentials, no TLS.
    let other = tempfile::tempdir().unwrap();
    let options = Options {
        name: "other".to_owned(),
        hosts: Vec::new(),
        nats_url: mesh.set.nats().0,
        listen: "127.0.0.1:4222".to_owned(),
        at: None,
    };
    let other = Set::init(&other.path().join("mesh"), &options).unwrap();
    let foreign = config(&other.folder().join("services/fetcher"));
    assert!(Bus::connect_within(&foreign, short).await.is_err(), "another authority");
    let own = config(&mesh.identity(Role::Fetcher));
    let forged = NatsConfig { credentials_file: foreign.credentials_file.clone(), ..own.clone() };
    assert!(Bus::connect_within(&forged, short).await.is_err(), "another operator's user");
    let nobody = NatsConfig { credentials_file: None, inbox_prefix: None, ..own.clone() };
    assert!(Bus::connect_within(&nobody, short).await.is_err(), "no user");
    let plain = NatsConfig { url: own.url.replace("tls://", "nats://"), ..NatsConfig::default() };
    assert!(Bus::connect_within(&plain, short).await.is_err(), "no TLS");
    drop(mesh.folder);
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_credentials_are_used_at_the_next_connection() {
    let mut mesh = Mesh::start();
    let fetcher = mesh.bus(Role::Fetcher).await;
    let before = std::fs::read_to_string(mesh.identity(Role::Fetcher).join("nats.creds")).unwrap();
    mesh.set.rotate(Some("fetcher")).unwrap();
    assert_ne!(std::fs::read_to_string(mesh.identity(Role::Fetcher).join("nats.creds")).unwrap(), before);
    // The old ones are revoked; the connection is made again with the new ones, by itself.
    fetcher.connected().unwrap();
    mesh.bus(Role::Fetcher).await.connected().unwrap();
}

/// The epoch of revocations and the projects' switches: fetchers write, a cache reads what it must know and changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_fetchers_keep_others_only_read() {
    let mesh = Mesh::start();
    let (fetcher, cache) = (mesh.bus(Role::Fetcher).await, mesh.bus(Role::Cache).await);
    let watched = cache.table_to_read("revocations");
    let mut changes = watched.watch();
    fetcher.table("revocations").put("epoch", "7".into()).await.unwrap();
    fetcher.table("projects").put("team", "off".into()).await.unwrap();
    let told = tokio::time::timeout(WAIT, changes.next()).await.unwrap().unwrap();
    assert!(matches!(&told, bus::Change::Put(entry) if &entry.value[..] == b"7"), "{told:?}");
    assert!(watched.put("epoch", "0".into()).await.is_err(), "a cache changes it");
    assert_eq!(&watched.get("epoch").await.unwrap().unwrap().value[..], b"7");
    for role in [Role::Policy, Role::Quota, Role::Events, Role::Operator, Role::Frontend] {
        let bus = mesh.bus(role).await;
        for table in ["revocations", "projects"] {
            let read = tokio::time::timeout(WAIT, bus.table_to_read(table).get("epoch")).await;
            assert!(!matches!(read, Ok(Ok(_))), "{role:?} reads {table}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_says_that_it_is_there_in_no_other_name() {
    let mesh = Mesh::start();
    let fetcher = mesh.bus(Role::Fetcher).await;
    let mut heard = Box::pin(fetcher.nodes_present().await.unwrap());
    let (node, other) =
        (mesh.bus(Role::Frontend).await, mesh.bus_of(&mesh.set.folder().join("nodes/n.2")).await);
    let about = || Introduction { version: "1", ready: Box::new(|| Ok(())), insecure: Vec::new() };
    // The other node says that it is this one, again and again.
    let forging = async {
        loop {
            let forged =
                proto::Presence { node: "n1".to_owned(), version: "forged".to_owned(), ..Default::default() };
            other.teller(proto::subjects::PRESENCE).tell(&forged);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let own = async {
        loop {
            // Told again: a subscription is known to the server only a moment after it was made.
            let _ = tokio::time::timeout(Duration::from_secs(1), node.be_present("n1", about())).await;
        }
    };
    let first = tokio::select! {
        heard = tokio::time::timeout(WAIT, heard.next()) => heard.unwrap().unwrap(),
        () = forging => unreachable!("it goes on for ever"),
        () = own => unreachable!("it goes on for ever"),
    };
    assert_eq!((first.node.as_str(), first.project.as_str(), first.version.as_str()), ("n1", "default", "1"));
}
