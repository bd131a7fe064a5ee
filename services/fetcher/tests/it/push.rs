//! Registries tell what was pushed, and it is imported before anybody asks for it.

use std::net::SocketAddr;
use std::time::Duration;

use fetcher::{Config, PushConfig, PushRegistryConfig};
use proto::InspectRequest;
use quota::{Amount, MetricLimits, ProjectLimits, Quota};
use reqwest::StatusCode;
use serde_json::{Value, json};
use testkit::registry::Listener;
use testkit::{Certificates, ImageSpec, Registry};

use crate::harness::{DEADLINE, Harness, layer};

const SECRET: &str = "correct horse battery";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A fetcher that listens to a registry at `host`.
async fn listening(host: &str, adjust: impl FnOnce(&mut Config)) -> (Harness, String) {
    let port = testkit::port::free().unwrap();
    listening_at(port, host, adjust).await
}

async fn listening_at(port: u16, host: &str, adjust: impl FnOnce(&mut Config)) -> (Harness, String) {
    let registry = PushRegistryConfig {
        host: host.to_owned(),
        repositories: vec!["team/**".to_owned()],
        platforms: vec!["linux/amd64".to_owned()],
        ..PushRegistryConfig::default()
    };
    let push = PushConfig {
        listen: Some(SocketAddr::from(([127, 0, 0, 1], port))),
        registries: [("main".to_owned(), registry)].into(),
        ..PushConfig::default()
    };
    let host = host.to_owned();
    let harness = Harness::start_with(|config| {
        config.push = push;
        let secret_file = config.signing_key_file.with_file_name("push.secret");
        std::fs::write(&secret_file, format!("an older secret of it\n{SECRET}\n")).unwrap();
        for registry in config.push.registries.values_mut() {
            registry.secret_file.clone_from(&secret_file);
        }
        config.source.plain_http = vec![host];
        adjust(config);
    })
    .await;
    let bound = harness.fetcher.as_ref().unwrap().listen_for_pushes(&harness.config).await.unwrap();
    let scheme = if harness.config.push.tls.ca_file.is_some() { "https" } else { "http" };
    (harness, format!("{scheme}://{}/push/main", bound.unwrap()))
}

fn event(repository: &str, digest: &str) -> Value {
    json!({ "events": [{ "action": "push", "target": { "mediaType": MANIFEST, "repository": repository,
        "digest": digest, "tag": "v1", "url": "http://127.0.0.1:1/v2/" }, "request": { "host": "127.0.0.1:1" } }] })
}

fn some_digest(digit: &str) -> String {
    format!("sha256:{}", digit.repeat(64))
}

async fn tell(url: &str, secret: &str, body: impl Into<reqwest::Body>) -> (StatusCode, Value) {
    let request = reqwest::Client::new().post(url).header("authorization", format!("Bearer {secret}"));
    let response = request.body(body).send().await.unwrap();
    let status = response.status();
    (status, serde_json::from_str(&response.text().await.unwrap()).unwrap_or_default())
}

/// Waits until that many images are in the store.
async fn images(harness: &Harness, count: usize) -> Vec<String> {
    let looked = async {
        loop {
            let images = harness.project().images().await.unwrap();
            if images.len() == count {
                return images;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(DEADLINE, looked).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_registry_tells_and_what_was_pushed_is_there_before_anybody_pulls() {
    let port = testkit::port::free().unwrap();
    let listener = Listener {
        url: format!("http://127.0.0.1:{port}/push/main"),
        authorization: format!("Bearer {SECRET}"),
    };
    let registry = Registry::start_telling(listener).unwrap();
    // The registry keeps what it could not tell: the fetcher comes later.
    let folder = tempfile::tempdir().unwrap();
    let mut layout = testkit::LayoutWriter::create(folder.path()).unwrap();
    let manifest = layout.image("v1", &ImageSpec::new([layer(1)])).unwrap();
    let source = layout.reference("v1");
    registry.push(&source, "other/app:v1").unwrap();
    let reference = registry.push(&source, "team/app:v1").unwrap();
    let (harness, _) = listening_at(port, &registry.host(), |_| {}).await;

    assert_eq!(images(&harness, 1).await, [manifest.as_str()]);
    let (resolved, progress) = harness.resolve(harness.request(&reference)).await.unwrap();
    assert!(resolved.imported.is_none() && progress.is_empty(), "nothing was left to import");
    let record = harness.record(&resolved);
    assert_eq!(record.references, [reference.as_str()], "other/app is not allowed");

    // The same again, and under another tag: told, found, noted.
    registry.push(&source, "team/app:v2").unwrap();
    let second = registry.reference("team/app:v2");
    let noted = async {
        loop {
            let request = InspectRequest {
                reference: reference.clone(),
                platform: harness.request("").platform,
                ..InspectRequest::default()
            };
            let image = harness.bus.call(request, DEADLINE).await.unwrap().image.unwrap();
            if image.references == [reference.clone(), second.clone()] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(DEADLINE, noted).await.expect("the other tag was not noted");
    let read = format!("GET /v2/team/app/blobs/{}", record.layers[0].digest);
    assert_eq!(registry.log().matches(&read).count(), 1, "the layer was read once");

    // A pull that shows nothing of its own is judged as ever.
    let private = harness.request(&registry.reference("team/none:v1"));
    assert!(harness.resolve(private).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_notification_of_ours_is_refused_with_a_reason() {
    let (harness, url) = listening("127.0.0.1:9", |_| {}).await;
    let good = event("team/app", &some_digest("1")).to_string();
    for (secret, body, status, said) in [
        ("wrong horse battery", good.clone(), 401, "Bearer SECRET"),
        ("", good.clone(), 401, "Bearer SECRET"),
        (SECRET, "{".to_owned(), 400, "not JSON"),
        (SECRET, "{}".to_owned(), 400, "no format"),
        (SECRET, "x".repeat(600_000), 413, "longer than"),
    ] {
        let (answered, told) = tell(&url, secret, body).await;
        assert_eq!(answered.as_u16(), status, "{told}");
        assert!(told["error"].as_str().is_some_and(|error| error.contains(said)), "{told}");
    }
    // Without a length that says it.
    let stream = futures::stream::iter((0..100).map(|_| Ok::<_, std::io::Error>(vec![b' '; 10_000])));
    let (answered, _) = tell(&url, SECRET, reqwest::Body::wrap_stream(stream)).await;
    assert_eq!(answered.as_u16(), 413);
    let (answered, _) = tell(&url.replace("main", "other"), SECRET, good.clone()).await;
    assert_eq!(answered.as_u16(), 404);
    let got = reqwest::get(&url).await.unwrap();
    assert_eq!(got.status().as_u16(), 405);
    // As a registry tells of everything, that is no error.
    for (repository, reason) in [("other/app", "not-allowed"), ("team/../app", "malformed")] {
        let (answered, told) = tell(&url, SECRET, event(repository, &some_digest("1")).to_string()).await;
        assert_eq!((answered.as_u16(), &told["accepted"]), (200, &json!(0)), "{told}");
        assert_eq!(told["ignored"], json!({ reason: 1 }));
    }
    // The older secret counts as well; a file that went away opens nothing.
    let (answered, _) =
        tell(&url, "an older secret of it", event("other/a", &some_digest("1")).to_string()).await;
    assert_eq!(answered.as_u16(), 200);
    std::fs::remove_file(&harness.config.push.registries["main"].secret_file).unwrap();
    let (answered, _) = tell(&url, SECRET, good).await;
    assert_eq!(answered.as_u16(), 503);
    assert_eq!(images(&harness, 0).await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_waits_in_a_queue_of_a_bound_and_each_image_once() {
    // Takes connections and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = silent.local_addr().unwrap().to_string();
    let (_harness, url) = listening(&host, |config| config.push.queue = 3).await;
    let digests: Vec<String> = ["1", "2", "3"].map(some_digest).into();
    for digest in &digests {
        let (answered, told) = tell(&url, SECRET, event("team/app", digest).to_string()).await;
        assert_eq!((answered.as_u16(), &told["accepted"]), (202, &json!(1)), "{told}");
    }
    let client = reqwest::Client::new();
    for number in 0..50_u32 {
        let digest = format!("sha256:{number:064x}");
        let request = client.post(&url).header("authorization", SECRET);
        let response = request.body(event("team/app", &digest).to_string()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers().get("retry-after").unwrap(), "10");
    }
    // What waits already needs no place.
    for digest in &digests {
        let (answered, told) = tell(&url, SECRET, event("team/app", digest).to_string()).await;
        assert_eq!((answered.as_u16(), &told["ignored"]), (200, &json!({ "duplicate": 1 })), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_registrys_pushes_are_paid_for_by_their_project() {
    let registry = Registry::start().unwrap();
    let (harness, url) = listening(&registry.host(), |config| {
        config.push.registries.get_mut("main").unwrap().project = "team-a".parse().unwrap();
    })
    .await;
    let imports = MetricLimits { day: Some(Amount::Limit(4)), ..MetricLimits::default() };
    let limits = ProjectLimits { imports, ..ProjectLimits::default() };
    let config = quota::Config { limits, ..quota::Config::default() };
    let (bus, shutdown) = (harness.bus.clone(), harness.shutdown.clone());
    let quota = Quota::start(config, bus, &harness.tasks, shutdown).await.unwrap();
    while quota.probe()().await.is_err() {
        tokio::task::yield_now().await;
    }
    let mut layout = harness.layout();
    let mut manifests = Vec::new();
    for number in 0..6 {
        let tag = format!("v{number}");
        manifests.push(layout.image(&tag, &ImageSpec::new([layer(number)])).unwrap());
        registry.push(&layout.reference(&tag), &format!("team/app:{tag}")).unwrap();
    }
    for manifest in &manifests {
        let (answered, told) = tell(&url, SECRET, event("team/app", manifest).to_string()).await;
        assert_eq!(answered.as_u16(), 202, "{told}");
    }
    // Until nothing waits any more: what is told again is taken again.
    let settled = async {
        for manifest in &manifests {
            while tell(&url, SECRET, event("team/app", manifest).to_string()).await.0.as_u16() != 202 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    tokio::time::timeout(DEADLINE, settled).await.expect("the queue does not end");
    let here = harness.store.project("team-a").unwrap().images().await.unwrap();
    // A quarter of the limit is left to pulls.
    assert!((1..=4).contains(&here.len()), "{here:?}");
    assert!(harness.project().images().await.unwrap().is_empty(), "of another project");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_machines_are_listened_to_over_tls_alone() {
    let folder = tempfile::tempdir().unwrap();
    let made = Certificates::make(folder.path()).unwrap();
    let tls = tls::Config {
        ca_file: Some(made.ca.clone()),
        certificate_file: Some(made.server),
        key_file: Some(made.server_key),
        insecure: false,
    };
    let (mut harness, url) = listening("127.0.0.1:9", |config| config.push.tls = tls).await;
    let authority = reqwest::Certificate::from_pem(&std::fs::read(&made.ca).unwrap()).unwrap();
    let client = reqwest::Client::builder().tls_certs_only([authority]).build().unwrap();
    let request = client.post(&url).header("authorization", SECRET);
    let response = request.body(event("other/app", &some_digest("1")).to_string()).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    // Over plain HTTP nobody answers there.
    assert!(reqwest::get(url.replace("https", "http")).await.is_err());

    harness.config.push.tls = tls::Config::default();
    harness.config.push.listen = Some(SocketAddr::from(([0, 0, 0, 0], 0)));
    let fetcher = harness.fetcher.as_ref().unwrap();
    let error = fetcher.listen_for_pushes(&harness.config).await.unwrap_err();
    assert!(error.to_string().contains("fetcher.push.tls.ca_file"), "{error:#}");
    // Off unless it is set.
    harness.config.push.listen = None;
    assert_eq!(fetcher.listen_for_pushes(&harness.config).await.unwrap(), None);
}
