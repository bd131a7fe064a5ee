//! Bytes over connections that break, stall, lie and lead elsewhere.

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;

use super::fake::{Fake, Seen, breaking, stalling, status, with_header};
use super::*;
use crate::source::Credential;

/// Larger than one frame of the connection, not a multiple of anything.
fn content() -> Vec<u8> {
    (0..300_007_u32).map(|at| (at % 251) as u8).collect()
}

/// A registry whose answers to requests for blobs of layers come from `hook`.
async fn layered(hook: impl Fn(&Seen, &[u8]) -> Option<Response> + Send + Sync + 'static) -> Fake {
    let content = content();
    let layer = format!("/v2/app/blobs/{}", crate::source::BlobDigest::of(&content));
    let bytes = content.clone();
    let fake = Fake::hooked(move |seen| if seen.path == layer { hook(seen, &bytes) } else { None }).await;
    fake.image("app", "latest", "linux/amd64", &[&content]);
    fake
}

async fn read_layer(config: &SourceConfig, fake: &Fake, from: u64) -> Result<Vec<u8>, SourceError> {
    let source = open(config, &fake.reference("app"), plain_http()).await?;
    let found = source.manifest(&amd64()).await?;
    read(&source, &found.layers[0], from).await
}

fn ranges(fake: &Fake) -> Vec<Option<String>> {
    let layer = crate::source::BlobDigest::of(&content()).to_string();
    fake.seen_for(&layer).iter().map(|seen| seen.header("range").map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_broken_connection_is_resumed_where_it_broke() {
    let fake = layered(|seen, bytes| (seen.earlier == 0).then(|| breaking(bytes, 10_000))).await;
    assert_eq!(read_layer(&config(), &fake, 0).await.unwrap(), content());
    assert_eq!(ranges(&fake), [None, Some("bytes=10000-".into())]);
}

#[tokio::test]
async fn a_stalled_connection_is_resumed_too() {
    let fake = layered(|seen, bytes| (seen.earlier == 0).then(|| stalling(bytes, 100_000))).await;
    let config = SourceConfig { stall_timeout: Duration::from_millis(300), ..config() };
    assert_eq!(read_layer(&config, &fake, 0).await.unwrap(), content());
}

#[tokio::test]
async fn a_server_without_ranges_is_read_from_the_start_and_skipped() {
    let fake = layered(|seen, bytes| match seen.earlier {
        0 => Some(breaking(bytes, 10_000)),
        _ => Some(Response::new(Body::from(bytes.to_vec()))),
    })
    .await;
    assert_eq!(read_layer(&config(), &fake, 0).await.unwrap(), content());
    assert_eq!(read_layer(&config(), &fake, 299_999).await.unwrap(), content()[299_999..]);
    assert_eq!(read_layer(&config(), &fake, 300_007).await.unwrap(), b"");
    assert!(read_layer(&config(), &fake, 300_008).await.is_err());
}

#[tokio::test]
async fn a_transfer_that_never_gets_on_ends() {
    let fake = layered(|_, bytes| Some(breaking(bytes, 10))).await;
    let error = read_layer(&config(), &fake, 0).await.unwrap_err();
    assert!(matches!(&error, SourceError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("broke off at byte 10 of 300007"), "{error}");
}

#[tokio::test]
async fn progress_earns_new_tries() {
    // Breaks more often than there are tries, each time after more than enough progress.
    const PART: usize = 2_000_000;
    let whole: Vec<u8> = (0..8 * PART).map(|at| (at % 241) as u8).collect();
    let served = whole.clone();
    let digest = crate::source::BlobDigest::of(&whole).to_string();
    let fake = Fake::hooked(move |seen| {
        let range = seen.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        let from: usize = range.map_or(0, |from| from.parse().unwrap());
        let part =
            seen.path.contains(&digest).then(|| breaking(&served[from..], PART.min(served.len() - from)))?;
        Some(match from {
            0 => part,
            from => {
                let range = format!("bytes {from}-{}/{}", served.len() - 1, served.len());
                let mut part = with_header(part, "content-range", &range);
                *part.status_mut() = StatusCode::PARTIAL_CONTENT;
                part
            }
        })
    })
    .await;
    fake.image("app", "latest", "linux/amd64", &[&whole]);
    assert!(read_layer(&config(), &fake, 0).await.unwrap() == whole);
}

#[tokio::test]
async fn answers_that_contradict_the_manifest_are_refused() {
    type Lie = fn(&Seen, &[u8]) -> Option<Response>;
    let lies: [(&str, Lie); 5] = [
        ("has 300006 bytes of it", |_, bytes| Some(Response::new(Body::from(bytes[1..].to_vec())))),
        ("has 300008 bytes of it", |_, bytes| Some(Response::new(Body::from([bytes, b"x"].concat())))),
        ("another range", |seen, bytes| match seen.earlier {
            0 => Some(breaking(bytes, 1000)),
            _ => {
                let mut part = Response::new(Body::from(bytes[999..].to_vec()));
                *part.status_mut() = StatusCode::PARTIAL_CONTENT;
                Some(with_header(part, "content-range", "bytes 999-300006/300007"))
            }
        }),
        ("shorter than the manifest says", |seen, bytes| match seen.earlier {
            0 => Some(breaking(bytes, 1000)),
            _ => Some(status(StatusCode::RANGE_NOT_SATISFIABLE, "NO")),
        }),
        // Without a length, what is too much shows only when it comes.
        ("more than the 300007 bytes", |_, bytes| {
            let body = [bytes, &[0; 100]].concat();
            let whole = futures::stream::iter([Ok::<_, std::io::Error>(body)]);
            Some(Response::new(Body::from_stream(whole)))
        }),
    ];
    for (expected, lie) in lies {
        let fake = layered(lie).await;
        let error = read_layer(&config(), &fake, 0).await.unwrap_err();
        assert!(matches!(&error, SourceError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error} (expected {expected})");
    }
}

#[tokio::test]
async fn too_many_requests_are_repeated_as_the_registry_asks() {
    let fake = layered(|seen, _| {
        (seen.earlier < 2)
            .then(|| with_header(status(StatusCode::TOO_MANY_REQUESTS, "SLOW"), "retry-after", "0"))
    })
    .await;
    assert_eq!(read_layer(&config(), &fake, 0).await.unwrap(), content());

    let fake = layered(|_, _| {
        Some(with_header(status(StatusCode::TOO_MANY_REQUESTS, "SLOW"), "retry-after", "86400"))
    })
    .await;
    let error = read_layer(&config(), &fake, 0).await.unwrap_err();
    assert!(matches!(&error, SourceError::Limited { .. }), "{error}");
    assert_eq!(ranges(&fake).len(), 1, "a day is too long to wait");
}

#[tokio::test]
async fn server_errors_are_tried_again_as_often_as_configured() {
    let fake = layered(|_, _| Some(status(StatusCode::SERVICE_UNAVAILABLE, "LATER"))).await;
    let error = read_layer(&config(), &fake, 0).await.unwrap_err();
    assert!(matches!(&error, SourceError::Unreachable { .. }), "{error}");
    assert_eq!(ranges(&fake).len(), config().retry.attempts as usize);
}

#[tokio::test]
async fn redirects_lead_elsewhere_without_the_authorisation() {
    let storage = Fake::hooked(|seen| {
        let leaked = seen.header("authorization").is_some();
        leaked.then(|| status(StatusCode::BAD_REQUEST, "AUTHORIZATION_LEAKED"))
    })
    .await;
    storage.put("/stored", "", content());
    let target = format!("http://{}/stored?signature=abc", storage.address);
    let fake = layered(move |seen, _| match seen.header("authorization") {
        Some("Basic dXNlcjpwYTpzcw==") => {
            Some(with_header(status(StatusCode::TEMPORARY_REDIRECT, ""), "location", &target))
        }
        _ => {
            let refused = status(StatusCode::UNAUTHORIZED, "NO");
            Some(with_header(refused, "www-authenticate", "Basic realm=here"))
        }
    })
    .await;
    let credential = Credential::Basic { username: "user".into(), password: "pa:ss".into() };
    let access = Access { credential: Some(credential), plain_http: true, own: false };
    let source = open(&config(), &fake.reference("app"), access).await.unwrap();
    let found = source.manifest(&amd64()).await.unwrap();
    assert_eq!(read(&source, &found.layers[0], 300_000).await.unwrap(), content()[300_000..]);
    assert_eq!(storage.seen()[0].header("range"), Some("bytes=300000-"));
}

#[tokio::test]
async fn redirects_end() {
    for (location, expected) in
        [("/v2/app/manifests/latest", "redirects more than"), ("ftp://elsewhere/", "redirects to nowhere")]
    {
        let fake =
            Fake::hooked(move |_| Some(with_header(status(StatusCode::FOUND, ""), "location", location)))
                .await;
        let source = open(&config(), &fake.reference("app"), plain_http()).await.unwrap();
        let error = source.manifest(&amd64()).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn plain_http_is_spoken_only_when_asked_for() {
    let fake = Fake::start().await;
    fake.image("app", "latest", "linux/amd64", &[]);
    let source = open(&config(), &fake.reference("app"), Access::default()).await.unwrap();
    let error = source.manifest(&amd64()).await.unwrap_err();
    assert!(error.to_string().contains("plain HTTP must be asked for"), "{error}");
    assert_eq!(fake.seen().len(), 0);

    let config = SourceConfig { plain_http: vec![fake.address.to_string()], ..config() };
    open(&config, &fake.reference("app"), Access::default()).await.unwrap().manifest(&amd64()).await.unwrap();
}

/// The config for `registry.test`, which only its mirrors can be.
fn mirrored(mirrors: &[&Fake]) -> SourceConfig {
    let urls = mirrors.iter().map(|mirror| format!("http://{}/prefix", mirror.address).parse().unwrap());
    SourceConfig { mirrors: [("registry.test".to_owned(), urls.collect())].into(), ..config() }
}

#[tokio::test]
async fn mirrors_are_asked_in_order() {
    let broken = Fake::hooked(|_| Some(status(StatusCode::BAD_GATEWAY, "DOWN"))).await;
    let empty = Fake::start().await;
    let good = Fake::start().await;
    good.image("app", "latest", "linux/amd64", &[b"layer"]);
    let good = relocated(&good).await;

    let config = mirrored(&[&broken, &empty, &good]);
    let credential = Credential::Basic { username: "user".into(), password: "pass".into() };
    let access = Access { credential: Some(credential), plain_http: false, own: false };
    let source = open(&config, "registry.test/app", access).await.unwrap();
    let found = source.manifest(&amd64()).await.unwrap();
    assert_eq!(read(&source, &found.layers[0], 0).await.unwrap(), b"layer");
    assert_eq!(broken.seen().len(), 1, "a mirror that is down is asked once");
    assert_eq!(empty.seen().len(), 3, "one that lacks something may have the next thing");
    for mirror in [&broken, &empty, &good] {
        for seen in mirror.seen() {
            assert_eq!(seen.query, "ns=registry.test");
            assert_eq!(seen.header("authorization"), None, "the caller's credential is not the mirror's");
        }
    }
}

#[tokio::test]
async fn a_mirror_gets_its_own_credential_and_never_the_callers() {
    let mirror = Fake::hooked(|seen| match seen.header("authorization") {
        // mirror:mirror
        Some("Basic bWlycm9yOm1pcnJvcg==") => None,
        _ => {
            let refused = status(StatusCode::UNAUTHORIZED, "NO");
            Some(with_header(refused, "www-authenticate", "Basic realm=mirror"))
        }
    })
    .await;
    mirror.image("app", "latest", "linux/amd64", &[]);
    let folder = tempfile::tempdir().unwrap();
    let auths =
        format!(r#"{{"auths":{{"{}":{{"username":"mirror","password":"mirror"}}}}}}"#, mirror.address);
    std::fs::write(folder.path().join("config.json"), auths).unwrap();
    let urls = vec![format!("http://{}", mirror.address).parse().unwrap()];
    let mirrors = [("registry.test".to_owned(), urls)].into();
    let config = SourceConfig { mirrors, docker_config: Some(folder.path().into()), ..config() };
    let credential = Credential::Basic { username: "user".into(), password: "pa:ss".into() };
    let access = Access { credential: Some(credential), plain_http: false, own: false };
    open(&config, "registry.test/app", access).await.unwrap().manifest(&amd64()).await.unwrap();
    let sent: Vec<_> =
        mirror.seen().iter().map(|seen| seen.header("authorization").map(str::to_owned)).collect();
    let own = Some("Basic bWlycm9yOm1pcnJvcg==".to_owned());
    assert_eq!(sent, [None, own.clone(), own]);
}

/// A server that has below `/prefix` what the other one has at its root.
async fn relocated(fake: &Fake) -> Fake {
    let client = reqwest::Client::new();
    let relocated = Fake::start().await;
    let manifest =
        client.get(format!("http://{}/v2/app/manifests/latest", fake.address)).send().await.unwrap();
    let manifest = manifest.bytes().await.unwrap();
    let parsed: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    relocated.put("/prefix/v2/app/manifests/latest", parsed["mediaType"].as_str().unwrap(), manifest);
    for blob in [&parsed["config"], &parsed["layers"][0]] {
        let path = format!("/v2/app/blobs/{}", blob["digest"].as_str().unwrap());
        let bytes =
            client.get(format!("http://{}{path}", fake.address)).send().await.unwrap().bytes().await.unwrap();
        relocated.put(&format!("/prefix{path}"), "", bytes);
    }
    relocated
}

#[tokio::test]
async fn a_mirror_that_serves_something_else_is_passed_over() {
    let lying = Fake::start().await;
    let good = Fake::start().await;
    let image = good.image("app", "latest", "linux/amd64", &[]);
    let digest = image["digest"].as_str().unwrap();
    lying.put(&format!("/prefix/v2/app/manifests/{digest}"), "application/json", "{}");
    let urls = vec![format!("http://{}/prefix", lying.address).parse().unwrap()];
    let config = SourceConfig { mirrors: [(good.address.to_string(), urls)].into(), ..config() };
    let name = good.reference(&format!("app@{digest}"));
    let source = open(&config, &name, plain_http()).await.unwrap();
    assert_eq!(source.manifest(&amd64()).await.unwrap().manifest_digest, digest);
    assert_eq!(lying.seen_for("/manifests/").len(), 1);
}
