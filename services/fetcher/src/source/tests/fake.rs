//! A registry in this process that does what a test tells it to.
//!
//! It serves what it holds, with ranges; a hook sees every request first and may answer instead.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use futures::{StreamExt, stream};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use crate::source::BlobDigest;

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

type Hook = Box<dyn Fn(&Seen) -> Option<Response> + Send + Sync>;

pub(super) struct Fake {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
    server: AbortHandle,
}

struct Shared {
    /// By path: the media type and the bytes.
    content: Mutex<HashMap<String, (String, Bytes)>>,
    seen: Mutex<Vec<Seen>>,
    hook: Hook,
}

/// A request as it came in.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) path: String,
    pub(super) query: String,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
    /// How many requests for this path came before.
    pub(super) earlier: usize,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

impl Fake {
    pub(super) async fn start() -> Fake {
        Fake::hooked(|_| None).await
    }

    pub(super) async fn hooked(hook: impl Fn(&Seen) -> Option<Response> + Send + Sync + 'static) -> Fake {
        let shared =
            Arc::new(Shared { content: Mutex::default(), seen: Mutex::default(), hook: Box::new(hook) });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback({
            let shared = shared.clone();
            move |request| answer(shared.clone(), request)
        });
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Fake { address, shared, server: server.abort_handle() }
    }

    pub(super) fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    pub(super) fn put(&self, path: &str, media_type: &str, bytes: impl Into<Bytes>) {
        self.shared.content.lock().unwrap().insert(path.into(), (media_type.into(), bytes.into()));
    }

    /// Puts a blob; returns its descriptor.
    pub(super) fn blob(&self, repository: &str, media_type: &str, bytes: &[u8]) -> Value {
        let digest = BlobDigest::of(bytes);
        self.put(&format!("/v2/{repository}/blobs/{digest}"), "application/octet-stream", bytes.to_vec());
        json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() })
    }

    /// Puts a manifest or an index under its digest and under `tag`; returns its descriptor.
    pub(super) fn manifest(&self, repository: &str, tag: &str, document: &Value) -> Value {
        let bytes = serde_json::to_vec(document).unwrap();
        let media_type = document["mediaType"].as_str().unwrap_or_default();
        let digest = BlobDigest::of(&bytes).to_string();
        for name in [tag, &digest] {
            self.put(&format!("/v2/{repository}/manifests/{name}"), media_type, bytes.clone());
        }
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// Puts an image of plain layers for a platform; returns its manifest's descriptor.
    pub(super) fn image(&self, repository: &str, tag: &str, platform: &str, layers: &[&[u8]]) -> Value {
        let (os, architecture) = platform.split_once('/').unwrap();
        let diff_ids: Vec<String> = layers.iter().map(|layer| BlobDigest::of(layer).to_string()).collect();
        let config = json!({
            "os": os, "architecture": architecture,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.blob(repository, OCI_CONFIG, &serde_json::to_vec(&config).unwrap());
        let layers: Vec<Value> = layers.iter().map(|layer| self.blob(repository, OCI_LAYER, layer)).collect();
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers });
        self.manifest(repository, tag, &manifest)
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// The requests whose path holds `part`.
    pub(super) fn seen_for(&self, part: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.path.contains(part)).collect()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(shared: Arc<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let path = parts.uri.path().to_owned();
    let seen = {
        let mut all = shared.seen.lock().unwrap();
        let seen = Seen {
            earlier: all.iter().filter(|seen| seen.path == path).count(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers,
            body: String::from_utf8_lossy(&body).into_owned(),
            path,
        };
        all.push(seen.clone());
        seen
    };
    if let Some(response) = (shared.hook)(&seen) {
        return response;
    }
    let content = shared.content.lock().unwrap().get(&seen.path).cloned();
    match content {
        Some((media_type, bytes)) => ranged(&seen, &media_type, bytes),
        None => status(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
    }
}

fn ranged(seen: &Seen, media_type: &str, bytes: Bytes) -> Response {
    let response = Response::builder().header("content-type", media_type);
    let from: Option<usize> =
        seen.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match from {
        Some(from) if from >= bytes.len() => status(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE"),
        Some(from) => response
            .status(StatusCode::PARTIAL_CONTENT)
            .header("content-range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len()))
            .body(Body::from(bytes.slice(from..)))
            .unwrap(),
        None => response.body(Body::from(bytes)).unwrap(),
    }
}

/// An answer without content, with the specification's error body.
pub(super) fn status(status: StatusCode, code: &str) -> Response {
    let body = json!({ "errors": [{ "code": code, "message": "as the test wants it" }] });
    Response::builder().status(status).body(Body::from(body.to_string())).unwrap()
}

pub(super) fn with_header(mut response: Response, name: &'static str, value: &str) -> Response {
    response.headers_mut().append(name, value.parse().unwrap());
    response
}

/// One piece of a body that breaks. The server buffers less than ten of them.
const PIECE: usize = 64 * 1024;

/// The whole of `bytes`, promised with its length; the connection breaks after `delivered`.
/// Exactly so for a few kilobytes; of more, what the server still buffers then is lost as well.
pub(super) fn breaking(bytes: &[u8], delivered: usize) -> Response {
    let pieces: Vec<_> =
        bytes[..delivered].chunks(PIECE).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let broken = stream::once(async {
        // The server sends what it has whenever there is nothing to add.
        tokio::task::yield_now().await;
        Err(std::io::Error::other("broken by the test"))
    });
    Response::builder()
        .header("content-length", bytes.len())
        .body(Body::from_stream(stream::iter(pieces).chain(broken)))
        .unwrap()
}

/// Like [`breaking`], but the connection stays and nothing more comes.
pub(super) fn stalling(bytes: &[u8], delivered: usize) -> Response {
    let part = Ok::<_, std::io::Error>(Bytes::copy_from_slice(&bytes[..delivered]));
    let body = stream::iter([part]).chain(stream::pending());
    Response::builder().header("content-length", bytes.len()).body(Body::from_stream(body)).unwrap()
}
