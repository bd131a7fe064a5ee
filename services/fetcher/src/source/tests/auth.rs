//! Being let in, and being thrown out again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};

use super::fake::{Fake, Seen, status, with_header};
use super::*;
use crate::source::Credential;

/// A registry with a token server of its own, which gives `token-1`, `token-2`, …
struct Guarded {
    fake: Fake,
    /// The number of the only token that is accepted.
    valid: Arc<AtomicUsize>,
    issued: Arc<AtomicUsize>,
}

struct Rules {
    /// The answer to a token that is not (any more) accepted.
    refusal: StatusCode,
    /// Beside the token in the token server's answer.
    answer: Value,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules { refusal: StatusCode::UNAUTHORIZED, answer: json!({ "expires_in": 300 }) }
    }
}

impl Guarded {
    async fn start(rules: Rules) -> Guarded {
        let valid = Arc::new(AtomicUsize::new(1));
        let issued = Arc::new(AtomicUsize::new(0));
        let hook = {
            let (valid, issued) = (valid.clone(), issued.clone());
            move |seen: &Seen| match seen.path.as_str() {
                "/token" => Some(token(seen, &issued, &rules)),
                _ => refusal(seen, &valid, &rules),
            }
        };
        let fake = Fake::hooked(hook).await;
        fake.image("app", "latest", "linux/amd64", &[b"one", b"two", b"three"]);
        Guarded { fake, valid, issued }
    }

    async fn open(&self, credential: Option<Credential>) -> Source {
        let access = Access { credential, plain_http: true, own: false };
        open(&config(), &self.fake.reference("app"), access).await.unwrap()
    }

    fn issued(&self) -> usize {
        self.issued.load(Ordering::SeqCst)
    }
}

fn token(seen: &Seen, issued: &AtomicUsize, rules: &Rules) -> Response {
    let basic = seen.header("authorization") == Some("Basic dXNlcjpwYTpzcw==");
    if !basic && !seen.body.contains("refresh_token=refresh") {
        return status(StatusCode::UNAUTHORIZED, "WRONG_PASSWORD");
    }
    let mut answer = rules.answer.clone();
    answer["token"] = json!(format!("token-{}", issued.fetch_add(1, Ordering::SeqCst) + 1));
    Response::new(Body::from(answer.to_string()))
}

fn refusal(seen: &Seen, valid: &AtomicUsize, rules: &Rules) -> Option<Response> {
    let expected = format!("Bearer token-{}", valid.load(Ordering::SeqCst));
    match seen.header("authorization") {
        Some(sent) if sent == expected => None,
        Some(_) if rules.refusal == StatusCode::FORBIDDEN => Some(status(rules.refusal, "EXPIRED")),
        _ => {
            let host = seen.header("host").unwrap();
            let challenge = format!(
                r#"Bearer realm="http://{host}/token",service="the registry",scope="repository:app:pull""#
            );
            Some(with_header(status(StatusCode::UNAUTHORIZED, "NO_TOKEN"), "www-authenticate", &challenge))
        }
    }
}

fn password() -> Option<Credential> {
    Some(Credential::Basic { username: "user".into(), password: "pa:ss".into() })
}

#[tokio::test]
async fn one_token_serves_all_requests_of_an_image() {
    let guarded = Guarded::start(Rules::default()).await;
    let source = guarded.open(password()).await;
    let found = source.manifest(&amd64()).await.unwrap();
    let reads = found.layers.iter().map(|layer| read(&source, layer, 0));
    assert_eq!(futures::future::try_join_all(reads).await.unwrap().concat(), b"onetwothree");
    assert_eq!(guarded.issued(), 1);
    let asked = &guarded.fake.seen_for("/token")[0];
    assert_eq!(asked.query, "service=the+registry&scope=repository%3Aapp%3Apull");
}

#[tokio::test]
async fn an_identity_token_is_exchanged() {
    let guarded = Guarded::start(Rules::default()).await;
    let source = guarded.open(Some(Credential::IdentityToken("refresh".into()))).await;
    source.manifest(&amd64()).await.unwrap();
    let asked = &guarded.fake.seen_for("/token")[0];
    assert!(asked.body.contains("grant_type=refresh_token") && asked.body.contains("service=the+registry"));
    assert_eq!(asked.header("authorization"), None);
}

#[tokio::test]
async fn credentials_come_from_the_docker_config() {
    let guarded = Guarded::start(Rules::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let auths = json!({ "auths": { guarded.fake.address.to_string(): { "auth": "dXNlcjpwYTpzcw==" } } });
    std::fs::write(folder.path().join("config.json"), auths.to_string()).unwrap();
    let config = SourceConfig { docker_config: Some(folder.path().into()), ..config() };
    let source = open(&config, &guarded.fake.reference("app"), own()).await.unwrap();
    source.manifest(&amd64()).await.unwrap();
    // Whoever else asks has what he brings along, unless the operator says that all may read it.
    let error =
        open(&config, &guarded.fake.reference("app"), plain_http()).await.unwrap().manifest(&amd64()).await;
    assert!(matches!(error, Err(SourceError::Unauthorized { .. })), "{error:?}");
    let sent = guarded.fake.seen_for("/token");
    assert_eq!(sent.last().unwrap().header("authorization"), None, "the fetcher's own password was sent");
    let shared_credentials = vec![format!("{}/app", guarded.fake.address)];
    let shared = SourceConfig { shared_credentials, ..config };
    let source = open(&shared, &guarded.fake.reference("app"), plain_http()).await.unwrap();
    guarded.valid.store(2, Ordering::SeqCst);
    source.manifest(&amd64()).await.unwrap();
}

#[tokio::test]
async fn wrong_or_no_credentials_are_told_apart_from_absence() {
    let guarded = Guarded::start(Rules::default()).await;
    let wrong = Credential::Basic { username: "user".into(), password: "hunter2".into() };
    for credential in [None, Some(wrong), Some(Credential::IdentityToken("hunter2".into()))] {
        let error = guarded.open(credential).await.manifest(&amd64()).await.unwrap_err();
        assert!(matches!(&error, SourceError::Unauthorized { .. }), "{error}");
        assert!(
            error.to_string().contains("WRONG_PASSWORD") && !error.to_string().contains("hunter2"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_helper_that_fails_is_named_when_access_is_refused() {
    let guarded = Guarded::start(Rules::default()).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{ "credsStore": "absent" }"#).unwrap();
    let config = SourceConfig { docker_config: Some(folder.path().into()), ..config() };
    let source = open(&config, &guarded.fake.reference("app"), own()).await.unwrap();
    let error = source.manifest(&amd64()).await.unwrap_err().to_string();
    assert!(error.contains("docker-credential-absent is not installed"), "{error}");
}

#[tokio::test]
async fn a_token_that_expired_is_renewed_whether_401_or_403_says_so() {
    for refusal in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
        let guarded = Guarded::start(Rules { refusal, ..Rules::default() }).await;
        let source = guarded.open(password()).await;
        let found = source.manifest(&amd64()).await.unwrap();
        guarded.valid.store(2, Ordering::SeqCst);
        let reads = found.layers.iter().map(|layer| read(&source, layer, 0));
        assert_eq!(futures::future::try_join_all(reads).await.unwrap().concat(), b"onetwothree");
        assert_eq!(guarded.issued(), 2, "those who were refused together share the new token");
    }
}

#[tokio::test]
async fn a_token_is_renewed_before_it_expires() {
    // Expired at once: each request gets one of its own, and none is sent in vain.
    let answer = json!({ "expires_in": 0 });
    let guarded = Guarded::start(Rules { answer, ..Rules::default() }).await;
    let source = guarded.open(password()).await;
    let error = source.manifest(&amd64()).await.unwrap_err();
    assert!(matches!(error, SourceError::Unauthorized { .. }), "token-2 is not accepted: {error}");
    let blobs: Vec<_> = guarded.fake.seen_for("/blobs/");
    assert_eq!(blobs[0].header("authorization"), Some("Bearer token-2"));
}

#[tokio::test]
async fn a_refusal_that_stays_ends() {
    for refusal in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
        let guarded = Guarded::start(Rules { refusal, ..Rules::default() }).await;
        guarded.valid.store(1000, Ordering::SeqCst);
        let error = guarded.open(password()).await.manifest(&amd64()).await.unwrap_err();
        match refusal {
            StatusCode::FORBIDDEN => assert!(matches!(&error, SourceError::Denied { .. }), "{error}"),
            _ => assert!(matches!(&error, SourceError::Unauthorized { .. }), "{error}"),
        }
        assert_eq!(guarded.fake.seen_for("/manifests/").len(), 2);
    }
}

#[tokio::test]
async fn basic_authentication() {
    let hook = |seen: &Seen| match seen.header("authorization") {
        Some("Basic dXNlcjpwYTpzcw==") => None,
        _ => {
            let refused = status(StatusCode::UNAUTHORIZED, "NO");
            Some(with_header(refused, "www-authenticate", r#"Basic realm="here""#))
        }
    };
    let fake = Fake::hooked(hook).await;
    fake.image("app", "latest", "linux/amd64", &[]);
    let access = Access { credential: password(), plain_http: true, own: false };
    open(&config(), &fake.reference("app"), access).await.unwrap().manifest(&amd64()).await.unwrap();
    let error = open(&config(), &fake.reference("app"), plain_http()).await.unwrap().manifest(&amd64()).await;
    assert!(matches!(error, Err(SourceError::Unauthorized { .. })), "{error:?}");
}

#[tokio::test]
async fn a_token_server_that_fails_in_passing_is_asked_again() {
    let failures = Arc::new(AtomicUsize::new(2));
    let hook = move |seen: &Seen| match (seen.path.as_str(), seen.header("authorization")) {
        ("/token", _)
            if failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() =>
        {
            Some(status(StatusCode::BAD_GATEWAY, "LATER"))
        }
        ("/token", _) => Some(Response::new(Body::from(r#"{"access_token":"t"}"#))),
        (_, Some("Bearer t")) => None,
        _ => {
            let challenge = format!("Bearer realm=http://{}/token", seen.header("host").unwrap());
            Some(with_header(status(StatusCode::UNAUTHORIZED, "NO"), "www-authenticate", &challenge))
        }
    };
    let fake = Fake::hooked(hook).await;
    fake.image("app", "latest", "linux/amd64", &[]);
    open(&config(), &fake.reference("app"), plain_http()).await.unwrap().manifest(&amd64()).await.unwrap();
}
