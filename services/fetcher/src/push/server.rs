//! The listener: `POST /push/NAME`, over HTTP/1.1.
//!
//! An answer of 2xx says that the request was understood and need not come again, whether or not anything of it is imported: registries
//! send what is refused until it is taken, and most of them nothing else meanwhile. So only what can be mended, or will pass, is refused.
//!
//! | answer | when |
//! |---|---|
//! | 202, 200 | something of it is imported; nothing of it, with the reasons |
//! | 400 | the body is in no known format |
//! | 401 | no secret, or a wrong one |
//! | 404 | no registry of that name in the configuration |
//! | 408, 413 | the body does not come; it is too long |
//! | 503 | the queue is full, or the secrets cannot be read: to be sent again |

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::StreamExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tls::{Connection, Incoming, Tls};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Registry;
use super::queue::{Entered, Queue};
use super::told::{self, Ignored, Unread};
use crate::import::unix_now;

/// Connections at a time; who comes then waits.
const CONNECTIONS_MAX: usize = 64;
/// How long the head of a request may take, and the next one of a connection.
const HEAD_MAX: Duration = Duration::from_secs(20);
/// The same of a body.
const BODY_WAIT_MAX: Duration = Duration::from_secs(20);
/// Of a body, in bytes: a registry sends some kilobytes.
const BODY_MAX: usize = 512 * 1024;
/// When to come again where the queue is full, in seconds.
const FULL_RETRY: &str = "10";
/// A wrong secret is logged no more often, in seconds.
const WARN_EVERY: u64 = 60;
/// What was told, by registry and outcome.
const PUSHES: &str = "sluice_fetcher_pushes_total";
/// Requests that were refused, by registry and reason.
const REFUSED: &str = "sluice_fetcher_push_refused_total";
const SIGNATURE: &str = "x-hub-signature-256";
const EVENT_TYPE: &str = "ce-type";
/// By which whoever sends CloudEvents asks whether it may, and the answer.
const ORIGIN: &str = "webhook-request-origin";
const ALLOWED_ORIGIN: &str = "webhook-allowed-origin";

#[derive(Clone)]
struct Door {
    registries: Arc<BTreeMap<String, Arc<Registry>>>,
    queue: Queue,
    warned: Arc<AtomicU64>,
}

/// Why a request is not taken.
enum Refused {
    Unknown,
    Unauthorized,
    Slow,
    TooLarge,
    Unread(Unread),
    Full,
    /// Of ours.
    Broken,
}

pub(super) async fn start(
    address: SocketAddr,
    tls: Tls,
    registries: BTreeMap<String, Arc<Registry>>,
    queue: Queue,
    tasks: &TaskTracker,
    shutdown: CancellationToken,
) -> anyhow::Result<SocketAddr> {
    let binding = || format!("binding to {address}, where pushes are told (fetcher.push.listen)");
    let listener = TcpListener::bind(address).await.with_context(binding)?;
    let bound = listener.local_addr().with_context(binding)?;
    let incoming = tls.listen_http("fetcher.push", "fetcher.push.tls", listener)?;
    let names: Vec<&str> = registries.keys().map(String::as_str).collect();
    tracing::info!(address = %bound, registries = names.join(", "), "images are imported when they are pushed");
    let door = Door { registries: Arc::new(registries), queue, warned: Arc::default() };
    let router = Router::new().route("/push/{name}", post(take).options(allow)).with_state(door);
    tasks.spawn(accept(incoming, router, tasks.clone(), shutdown));
    Ok(bound)
}

async fn accept(mut incoming: Incoming, router: Router, tasks: TaskTracker, shutdown: CancellationToken) {
    let turns = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let next = async {
            let turn = turns.clone().acquire_owned().await.ok()?;
            Some((turn, incoming.next().await?))
        };
        let Some(Some((turn, connection))) = shutdown.run_until_cancelled(next).await else { return };
        let Ok(connection) = connection else { continue };
        let (router, shutdown) = (router.clone(), shutdown.clone());
        tasks.spawn(async move {
            let _turn = turn;
            let _ = shutdown.run_until_cancelled(serve(connection, router)).await;
        });
    }
}

async fn serve(connection: Connection, router: Router) {
    let mut server = Builder::new(TokioExecutor::new()).http1_only();
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_MAX);
    let served = server.serve_connection(TokioIo::new(connection), TowerToHyperService::new(router)).await;
    if let Err(error) = served {
        tracing::debug!(error = error.to_string(), "a connection that tells of pushes broke off");
    }
}

/// As CloudEvents' webhooks ask before they send. It allows nothing: each request shows its secret.
async fn allow(headers: HeaderMap) -> Response {
    let origin = headers.get(ORIGIN).cloned();
    let mut response = StatusCode::OK.into_response();
    if let Some(origin) = origin {
        response.headers_mut().insert(ALLOWED_ORIGIN, origin);
    }
    response
}

async fn take(
    State(door): State<Door>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let Some(registry) = door.registries.get(&name) else {
        return Refused::Unknown.answer("");
    };
    match door.request(registry, &headers, body).await {
        Ok(response) => response,
        Err(refused) => refused.answer(&registry.name),
    }
}

impl Door {
    async fn request(
        &self,
        registry: &Arc<Registry>,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response, Refused> {
        let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > BODY_MAX as u64) {
            return Err(Refused::TooLarge);
        }
        let body = self.admitted(registry, headers, body).await?;
        let kind = headers.get(EVENT_TYPE).and_then(|kind| kind.to_str().ok());
        let events = told::read(registry, &body, kind).map_err(|unread| {
            let reason = unread.to_string();
            tracing::warn!(registry = registry.name, reason, "a notification is not understood");
            Refused::Unread(unread)
        })?;
        let (mut accepted, mut ignored) = (0_usize, BTreeMap::<&str, usize>::new());
        for told in events {
            match self.one(registry, told) {
                Ok(Entered::New) => {
                    accepted += 1;
                    count(&registry.name, "accepted");
                }
                // What was taken of it waits; sent again, it is known.
                Ok(Entered::Full) => return Err(Refused::Full),
                Ok(Entered::Known) => *ignored.entry(Ignored::Duplicate.code()).or_default() += 1,
                Err(reason) => *ignored.entry(reason.code()).or_default() += 1,
            }
        }
        for (reason, times) in &ignored {
            metrics::counter!(PUSHES, "registry" => registry.name.clone(), "outcome" => (*reason).to_owned())
                .increment(*times as u64);
        }
        let status = if accepted > 0 { StatusCode::ACCEPTED } else { StatusCode::OK };
        Ok(answer(status, &json!({ "accepted": accepted, "ignored": ignored })))
    }

    /// The body of a request that shows a secret.
    async fn admitted(
        &self,
        registry: &Arc<Registry>,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Bytes, Refused> {
        let (of, name) = (registry.clone(), &registry.name);
        let secrets = tokio::task::spawn_blocking(move || of.secrets()).await.map_err(|_| Refused::Broken)?;
        let secrets = secrets.map_err(|error| {
            tracing::error!(registry = name, error = format!("{error:#}"), "nobody can tell of pushes");
            Refused::Broken
        })?;
        let signature = headers.get(SIGNATURE).and_then(|value| value.to_str().ok());
        let admitted = headers.get(AUTHORIZATION).is_some_and(|shown| secrets.admit(shown.as_bytes()));
        if !admitted && signature.is_none() {
            return Err(self.unauthorized(name));
        }
        let read = timeout(BODY_WAIT_MAX, axum::body::to_bytes(body, BODY_MAX)).await;
        let body = read.map_err(|_| Refused::Slow)?.map_err(|_| Refused::TooLarge)?;
        match admitted || signature.is_some_and(|signature| secrets.signed(signature, &body)) {
            true => Ok(body),
            false => Err(self.unauthorized(name)),
        }
    }

    fn unauthorized(&self, registry: &str) -> Refused {
        let (now, before) = (unix_now(), self.warned.load(Ordering::Relaxed));
        if now >= before.saturating_add(WARN_EVERY) {
            self.warned.store(now, Ordering::Relaxed);
            tracing::warn!(registry, "a notification shows no secret of this registry, or a wrong one");
        }
        Refused::Unauthorized
    }

    fn one(&self, registry: &Arc<Registry>, told: told::Told) -> Result<Entered, Ignored> {
        let pushed = told?;
        if registry.reference(&pushed).is_none() {
            return Err(Ignored::Malformed);
        }
        if !registry.allows(&pushed.repository) {
            return Err(Ignored::NotAllowed);
        }
        Ok(self.queue.enter(registry, pushed))
    }
}

impl Refused {
    fn answer(self, registry: &str) -> Response {
        let (status, reason, message) = match self {
            Refused::Unknown => {
                let message =
                    "no registry of that name: the address ends with one of fetcher.push.registries";
                (StatusCode::NOT_FOUND, "unknown", message.to_owned())
            }
            Refused::Unauthorized => {
                let message =
                    "Authorization: Bearer SECRET expected, with a secret of fetcher.push.registries";
                (StatusCode::UNAUTHORIZED, "unauthorized", message.to_owned())
            }
            Refused::Slow => {
                (StatusCode::REQUEST_TIMEOUT, "slow", "the body did not come in time".to_owned())
            }
            Refused::TooLarge => {
                let message = format!("the body is longer than {BODY_MAX} bytes, or broke off");
                (StatusCode::PAYLOAD_TOO_LARGE, "too-large", message)
            }
            Refused::Unread(unread) => (StatusCode::BAD_REQUEST, "not-understood", unread.to_string()),
            Refused::Full => {
                (StatusCode::SERVICE_UNAVAILABLE, "full", "too many images wait: send it again".to_owned())
            }
            Refused::Broken => {
                let message = "the fetcher cannot read its secrets: its log says why";
                (StatusCode::SERVICE_UNAVAILABLE, "broken", message.to_owned())
            }
        };
        metrics::counter!(REFUSED, "registry" => registry.to_owned(), "reason" => reason).increment(1);
        let mut response = answer(status, &json!({ "error": message }));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, axum::http::HeaderValue::from_static(FULL_RETRY));
        }
        response
    }
}

fn answer(status: StatusCode, body: &serde_json::Value) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

fn count(registry: &str, outcome: &'static str) {
    metrics::counter!(PUSHES, "registry" => registry.to_owned(), "outcome" => outcome).increment(1);
}
