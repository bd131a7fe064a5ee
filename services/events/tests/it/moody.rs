//! Stands before a real API server, and spoils some of what passes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};

#[derive(Clone, Copy, Debug)]
pub(crate) enum Mood {
    Well,
    /// Answers so, and hands nothing on.
    Refuse(u16),
    /// Hands it on, and answers so.
    Lose(u16),
    /// Hands it on, and then waits.
    Slow(Duration),
    Hang,
}

pub(crate) struct Moody {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

struct Shared {
    to: String,
    client: reqwest::Client,
    moods: Vec<Mood>,
    /// After so many requests all is well.
    until: AtomicUsize,
    seen: AtomicUsize,
}

impl Moody {
    pub(crate) async fn start(to: &str, authority: &Path, moods: &[Mood]) -> Moody {
        let authority = reqwest::Certificate::from_pem(&std::fs::read(authority).unwrap()).unwrap();
        let client = reqwest::Client::builder().tls_certs_only([authority]).build().unwrap();
        let (moods, until, seen) = (moods.to_vec(), AtomicUsize::new(0), AtomicUsize::new(0));
        let shared = Arc::new(Shared { to: to.to_owned(), client, moods, until, seen });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(pass).with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Moody { url, shared }
    }

    /// Spoils the next so many requests.
    pub(crate) fn spoil(&self, requests: usize) {
        self.shared.until.store(self.shared.seen.load(Ordering::Relaxed) + requests, Ordering::Relaxed);
    }

    /// Whether it did.
    pub(crate) fn has_spoilt(&self) -> bool {
        self.shared.seen.load(Ordering::Relaxed) >= self.shared.until.load(Ordering::Relaxed)
    }
}

async fn pass(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let number = shared.seen.fetch_add(1, Ordering::Relaxed);
    let mood = if number < shared.until.load(Ordering::Relaxed) {
        shared.moods[number % shared.moods.len()]
    } else {
        Mood::Well
    };
    let status = |code| StatusCode::from_u16(code).unwrap();
    match mood {
        Mood::Refuse(429) => return (status(429), [("retry-after", "1")]).into_response(),
        Mood::Refuse(code) => return status(code).into_response(),
        Mood::Hang => std::future::pending().await,
        Mood::Well | Mood::Lose(_) | Mood::Slow(_) => {}
    }
    let mut request = shared.client.request(method, format!("{}{uri}", shared.to)).body(body);
    for name in ["authorization", "content-type", "accept"] {
        if let Some(value) = headers.get(name) {
            request = request.header(name, value);
        }
    }
    let answer = request.send().await.unwrap();
    let (code, bytes) = (answer.status(), answer.bytes().await.unwrap());
    match mood {
        Mood::Lose(code) => return status(code).into_response(),
        Mood::Slow(pause) => tokio::time::sleep(pause).await,
        _ => {}
    }
    (code, [("content-type", "application/json")], Body::from(bytes)).into_response()
}
