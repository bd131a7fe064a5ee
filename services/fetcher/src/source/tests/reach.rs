//! What others may make a fetcher ask, and send: nothing that only it can reach, and a password to nobody but the registry.

use http::StatusCode;

use super::fake::{Fake, Seen, status, with_header};
use super::*;
use crate::source::Credential;

fn access() -> Access {
    let credential = Credential::Basic { username: "user".into(), password: "pa:ss".into() };
    Access { credential: Some(credential), plain_http: true, own: false }
}

fn redirect(target: &str) -> axum::response::Response {
    with_header(status(StatusCode::TEMPORARY_REDIRECT, ""), "location", target)
}

fn challenge(realm: &str) -> axum::response::Response {
    let challenge = format!(r#"Bearer realm="{realm}",service="s",scope="repository:app:pull""#);
    with_header(status(StatusCode::UNAUTHORIZED, "NO"), "www-authenticate", &challenge)
}

async fn manifest(
    config: &SourceConfig,
    name: &str,
    access: Access,
) -> Result<super::super::Found, SourceError> {
    open(config, name, access).await?.manifest(&amd64()).await
}

#[tokio::test]
async fn a_redirect_target_asks_for_a_password_in_vain() {
    let thief = Fake::hooked(|seen| {
        let realm = format!("http://{}/token", seen.header("host").unwrap());
        (seen.path != "/token").then(|| challenge(&realm))
    })
    .await;
    let target = format!("http://{}/stored", thief.address);
    let lost = crate::source::BlobDigest::of(b"layer").to_string();
    let registry =
        Fake::hooked(move |seen: &Seen| seen.path.ends_with(&lost).then(|| redirect(&target))).await;
    registry.image("app", "latest", "linux/amd64", &[b"layer"]);
    let source = open(&config(), &registry.reference("app"), access()).await.unwrap();
    let found = source.manifest(&amd64()).await.unwrap();
    let error = read(&source, &found.layers[0], 0).await.unwrap_err();
    assert!(matches!(&error, SourceError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("where it redirects to, answers 401"), "{error}");
    let asked = thief.seen();
    assert!(!asked.is_empty() && asked.iter().all(|seen| seen.path == "/stored"), "{asked:?}");
    assert!(asked.iter().all(|seen| seen.header("authorization").is_none()), "{asked:?}");
}

#[tokio::test]
async fn a_redirect_that_was_refused_is_asked_of_the_registry_anew() {
    // As storage does with a signed URL that has expired.
    let storage =
        Fake::hooked(|seen| (seen.earlier == 0).then(|| status(StatusCode::FORBIDDEN, "EXPIRED"))).await;
    storage.put("/stored", "", "layer");
    let target = format!("http://{}/stored", storage.address);
    let stored = crate::source::BlobDigest::of(b"layer").to_string();
    let registry =
        Fake::hooked(move |seen: &Seen| seen.path.ends_with(&stored).then(|| redirect(&target))).await;
    registry.image("app", "latest", "linux/amd64", &[b"layer"]);
    let source = open(&config(), &registry.reference("app"), access()).await.unwrap();
    let found = source.manifest(&amd64()).await.unwrap();
    assert_eq!(read(&source, &found.layers[0], 0).await.unwrap(), b"layer");
}

#[tokio::test]
async fn neither_redirect_nor_realm_leads_to_a_machines_own_metadata() {
    for address in ["169.254.169.254", "[fe80::1]", "0.0.0.0", "[::ffff:169.254.169.254]", "2852039166"] {
        let url = format!("http://{address}:1/latest/meta-data");
        let (by_redirect, by_realm) = (url.clone(), url);
        let redirecting = Fake::hooked(move |_| Some(redirect(&by_redirect))).await;
        let challenging = Fake::hooked(move |_| Some(challenge(&by_realm))).await;
        for fake in [redirecting, challenging] {
            let error = manifest(&config(), &fake.reference("app"), access()).await.unwrap_err();
            assert!(error.to_string().contains("allowed_addresses"), "{address}: {error}");
            assert_eq!(fake.seen().len(), 1, "it is not tried again");
        }
        let named = format!("{address}:1/app");
        if named.parse::<ImageName>().is_ok()
            && let Err(error) = manifest(&config(), &named, Access::default()).await
        {
            assert!(!matches!(error, SourceError::Unreachable { .. }), "{named} was asked: {error}");
        }
    }
}

#[tokio::test]
async fn registries_at_private_addresses_are_asked_only_where_they_may_be() {
    let fake = Fake::start().await;
    fake.image("app", "latest", "linux/amd64", &[]);
    let public = SourceConfig { private_registries: false, ..config() };
    let port = fake.address.port();
    // One meets the check before the connection, the other the one of the resolver.
    for host in ["127.0.0.1", "localhost"] {
        let error = manifest(&public, &format!("{host}:{port}/app"), plain_http()).await.unwrap_err();
        assert!(error.to_string().contains("allowed_addresses"), "{error}");
        assert!(matches!(error, SourceError::Unsupported { .. }), "{error:?}");
    }
    assert_eq!(fake.seen().len(), 0);
    let allowed_addresses = vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
    let told = SourceConfig { allowed_addresses, ..public };
    manifest(&told, &format!("localhost:{port}/app"), plain_http()).await.unwrap();
}

#[tokio::test]
async fn plain_http_is_spoken_to_other_machines_only_where_the_fetcher_is_told() {
    let name = "registry.invalid:5000/app";
    let error = manifest(&config(), name, access()).await.unwrap_err();
    assert!(matches!(&error, SourceError::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("`plain_http` of the registries' settings"), "{error}");
    let told = SourceConfig { plain_http: vec!["registry.invalid:5000".into()], ..config() };
    let alone = SourceConfig { plain_http_on_request: true, ..config() };
    for config in [told, alone] {
        // Asked for, and not there.
        let error = manifest(&config, name, access()).await.unwrap_err();
        assert!(matches!(&error, SourceError::Unreachable { .. }), "{error}");
    }
}

#[tokio::test]
async fn whether_a_blob_is_there_is_asked_as_the_registry_answers_it() {
    let digest = crate::source::BlobDigest::of(b"layer").to_string();
    let shows = async |hook: fn(&Seen) -> Option<axum::response::Response>| {
        let blob = digest.clone();
        let fake =
            Fake::hooked(move |seen: &Seen| if seen.path.ends_with(&blob) { hook(seen) } else { None }).await;
        fake.image("app", "latest", "linux/amd64", &[b"layer"]);
        let source = open(&config(), &fake.reference("app"), access()).await.unwrap();
        let found = source.manifest(&amd64()).await.unwrap();
        let shown = source.shows(&found.layers[0]).await;
        let asked = fake.seen_for(&digest);
        (shown, asked.iter().map(|seen| seen.header("range").map(str::to_owned)).collect::<Vec<_>>())
    };
    assert!(matches!(shows(|_| None).await, (Ok(true), asked) if asked == [None]));
    assert!(
        matches!(shows(|_| Some(status(StatusCode::NOT_FOUND, "NO"))).await, (Ok(false), asked) if asked.len() == 1)
    );
    assert!(matches!(shows(|_| Some(status(StatusCode::FORBIDDEN, "NO"))).await.0, Ok(false)));
    assert!(shows(|_| Some(status(StatusCode::BAD_GATEWAY, "NO"))).await.0.is_err());
    // Some do not take the question, and where one redirects its storage may not: it is put as everybody puts it.
    let first = Some("bytes=0-0".to_owned());
    let odd =
        shows(|seen| seen.header("range").is_none().then(|| status(StatusCode::METHOD_NOT_ALLOWED, "NO")));
    assert!(matches!(odd.await, (Ok(true), asked) if asked == [None, first.clone()]));
    let gone = shows(|seen| {
        let elsewhere = || redirect("/elsewhere");
        Some(if seen.header("range").is_none() { elsewhere() } else { redirect("/v2/app/blobs/none") })
    });
    assert!(matches!(gone.await, (Ok(false), asked) if asked == [None, first]));
}
