//! What a registry sees of a push: who is told the password and the token, what is tried again, what is not followed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use http::{Method, StatusCode};
use registry::document::OCI_MANIFEST;
use registry::{Access, BlobDigest, Client, Config, Credential, Error, Repository, RetryConfig};
use tokio::net::TcpListener;

#[derive(Clone, Debug)]
struct Seen {
    method: Method,
    /// With the query.
    path: String,
    authorization: Option<String>,
    body: Bytes,
}

#[derive(Clone)]
struct Server {
    host: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// Answers as `answer` says of a request and of how many of its path came before.
    async fn start(answer: impl Fn(&Seen, usize) -> Response + Clone + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let server = Server { host: listener.local_addr().unwrap().to_string(), seen: Arc::default() };
        let all = server.seen.clone();
        let router = Router::new().fallback(move |request: Request| {
            let (all, answer) = (all.clone(), answer.clone());
            async move {
                let (parts, body) = request.into_parts();
                let authorization = parts.headers.get("authorization");
                let seen = Seen {
                    authorization: authorization.map(|value| value.to_str().unwrap().to_owned()),
                    method: parts.method,
                    path: parts.uri.to_string(),
                    body: axum::body::to_bytes(body, 1 << 20).await.unwrap(),
                };
                let mut all = all.lock().unwrap();
                let earlier = all.iter().filter(|other| other.path == seen.path).count();
                all.push(seen.clone());
                answer(&seen, earlier)
            }
        });
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        server
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn repository(&self) -> Repository {
        let pause = Duration::from_millis(1);
        let retry = RetryConfig { attempts: 3, first_pause: pause, ..RetryConfig::default() };
        let config = Config { docker_config: Some("/nonexistent".into()), retry, ..Config::default() };
        let credential = Credential::Basic { username: "user".into(), password: "pass".into() };
        let access = Access { credential: Some(credential), plain_http: true };
        let reference = names::Reference::parse(&format!("{}/team/app:1", self.host)).unwrap();
        Client::new(config).unwrap().repository(&reference, access).unwrap()
    }
}

fn status(status: StatusCode, headers: &[(&str, &str)]) -> Response {
    let builder = Response::builder().status(status);
    headers
        .iter()
        .fold(builder, |builder, (name, value)| builder.header(*name, *value))
        .body(Body::empty())
        .unwrap()
}

/// A registry whose token server is another one, and which stores elsewhere.
#[tokio::test]
async fn password_and_token_go_where_they_belong_and_nowhere_else() {
    let storage = Server::start(|_, _| status(StatusCode::CREATED, &[])).await;
    let tokens = Server::start(|_, _| Response::new(Body::from(r#"{"token": "t"}"#))).await;
    let challenge =
        format!(r#"Bearer realm="http://{}/token",scope="repository:team/app:pull,push""#, tokens.host);
    let place = format!("http://{}/upload?state=1", storage.host);
    let server = Server::start(move |seen, _| match seen.authorization.as_deref() {
        Some("Bearer t") => status(StatusCode::ACCEPTED, &[("location", &place)]),
        _ => status(StatusCode::UNAUTHORIZED, &[("www-authenticate", &challenge)]),
    })
    .await;
    server.repository().put_blob("blob".into()).await.unwrap();
    let sent = |server: &Server| server.seen().into_iter().map(|seen| seen.authorization).collect::<Vec<_>>();
    assert_eq!(sent(&server), [None, Some("Bearer t".to_owned())]);
    assert_eq!(sent(&tokens), [Some("Basic dXNlcjpwYXNz".to_owned())]);
    assert_eq!(sent(&storage), [None]);
    let asked = &tokens.seen()[0].path;
    assert!(asked.contains("pull%2Cpush"), "{asked}");
    let stored = &storage.seen()[0];
    assert!(stored.path.starts_with("/upload?state=1&digest=sha256") && stored.body == "blob", "{stored:?}");
}

#[tokio::test]
async fn what_passes_is_tried_again_from_the_start_of_the_upload() {
    let server = Server::start(|seen, earlier| match (seen.method.as_str(), earlier) {
        ("POST", _) => status(StatusCode::ACCEPTED, &[("location", "/v2/team/app/blobs/uploads/here")]),
        ("PUT", 0) => status(StatusCode::SERVICE_UNAVAILABLE, &[]),
        _ => status(StatusCode::CREATED, &[]),
    })
    .await;
    let digest = server.repository().put_blob("blob".into()).await.unwrap();
    assert_eq!(digest, BlobDigest::of(b"blob"));
    let seen: Vec<_> = server.seen().into_iter().map(|seen| (seen.method.to_string(), seen.body)).collect();
    let expected = [("POST", ""), ("PUT", "blob"), ("POST", ""), ("PUT", "blob")];
    assert_eq!(seen, expected.map(|(method, body)| (method.to_owned(), Bytes::from(body))));
    let path = &server.seen()[1].path;
    assert!(path.starts_with("/v2/team/app/blobs/uploads/here?digest=sha256"), "{path}");
}

#[tokio::test]
async fn an_upload_is_not_redirected_and_a_refusal_is_told() {
    let server = Server::start(|seen, _| match seen.method.as_str() {
        "PUT" => status(StatusCode::TEMPORARY_REDIRECT, &[("location", "/elsewhere")]),
        _ => status(StatusCode::FORBIDDEN, &[]),
    })
    .await;
    let repository = server.repository();
    let error = repository.put_manifest("1", OCI_MANIFEST, "{}".into()).await.unwrap_err();
    assert!(
        matches!(&error, Error::Unsupported { .. }) && error.to_string().contains("redirects an upload"),
        "{error}"
    );
    let error = repository.put_blob("blob".into()).await.unwrap_err();
    assert!(matches!(&error, Error::Denied { .. }), "{error}");
    assert_eq!(server.seen().len(), 2, "neither is tried again");
}
