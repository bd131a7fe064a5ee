//! One HTTP exchange: sent, redirected, and its failure put into words.
//!
//! Redirects are followed here and not by the client: the `Authorization` header never leaves the
//! registry's own origin (blobs usually come from somebody else's storage), what that storage says of
//! authorisation is none of the registry's words, and HTTPS is never given up for plain HTTP.
//! [`crate::reach`] says where a redirect may lead.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::dns::Resolve;
use reqwest::{RequestBuilder, Response};
use serde::Deserialize;
use url::Url;

use crate::endpoint::Endpoint;
use crate::reach::{Nearness, Reach, Unreached};
use crate::{Config, brief};

/// Redirects followed for one request; registries use one or two.
const REDIRECTS_MAX: usize = 8;
/// What is read of an error's body, in bytes.
const ERROR_BODY_MAX: u64 = 16 * 1024;
/// The slowest upload that is waited for, in bytes a second.
const UPLOAD_RATE_MIN: u64 = 64 * 1024;

/// What is asked of a registry, or given to it.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Why an exchange did not give what was asked. The kinds say what can be done about it.
#[derive(Debug)]
pub(super) enum Failure {
    /// Worth another try.
    Passing {
        reason: String,
        wait: Option<Duration>,
    },
    /// Worth another try, when the server says so.
    Limited {
        reason: String,
        wait: Option<Duration>,
    },
    Absent(String),
    Unauthorized(String),
    Denied(String),
    /// The object ends before the range begins.
    OutOfRange,
    /// The answer makes no sense, whoever asks.
    Corrupt(String),
    Refused(String),
}

impl Failure {
    pub(super) fn passing(reason: impl Into<String>) -> Failure {
        Failure::Passing { reason: reason.into(), wait: None }
    }

    pub(super) fn refused(reason: impl Into<String>) -> Failure {
        Failure::Refused(reason.into())
    }

    pub(super) fn reason(self) -> String {
        match self {
            Failure::Passing { reason, .. } | Failure::Limited { reason, .. } => reason,
            Failure::OutOfRange => "the range is not there".to_owned(),
            Failure::Absent(reason)
            | Failure::Unauthorized(reason)
            | Failure::Denied(reason)
            | Failure::Corrupt(reason)
            | Failure::Refused(reason) => reason,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Transfer {
    reach: Reach,
    pub(super) config: Arc<Config>,
}

/// The answer of the registry itself, or a success of the storage that it redirected to.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) response: Response,
    /// How near the registry is to this machine.
    pub(super) nearness: Nearness,
}

/// A client for the registries of a process.
pub(super) fn client(config: &Config, resolver: impl Resolve + 'static) -> anyhow::Result<reqwest::Client> {
    let mut headers = HeaderMap::new();
    // A blob's digest is that of its stored bytes: nobody may encode it on the way.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("sluice/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .redirect(reqwest::redirect::Policy::none())
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate()
        .dns_resolver(Arc::new(resolver))
        .connect_timeout(config.connect_timeout);
    for path in &config.certificates {
        let context = || format!("reading the certificates in {}", path.display());
        let pem = std::fs::read(path).with_context(context)?;
        builder = builder.tls_certs_merge(reqwest::Certificate::from_pem_bundle(&pem).with_context(context)?);
    }
    builder.build().context("preparing the HTTP client for registries")
}

impl Transfer {
    pub(super) fn new(reach: Reach, config: Arc<Config>) -> Transfer {
        Transfer { reach, config }
    }

    /// What asks `url`, if its server may be as near as `nearest`, and is no nearer.
    pub(super) fn client(&self, url: &Url, nearest: Nearness) -> Result<&reqwest::Client, Failure> {
        self.reach.check(url, nearest)?;
        self.reach.client(nearest).map_err(|error| Failure::refused(format!("{error:#}")))
    }

    /// One request, through redirects when it gets something. The status of the registry's own answer is for the caller to judge.
    /// The authorisation is for the endpoint alone, and nobody else may ask for one: the realm in a challenge is where the password goes.
    pub(super) async fn exchange(
        &self,
        request: &Request,
        endpoint: &Endpoint,
        authorisation: Option<&HeaderValue>,
    ) -> Result<Answered, Failure> {
        let mut url = request.url.clone();
        // What is uploaded may begin where the registry sent it.
        let mut nearness = endpoint.nearest;
        for _ in 0..=REDIRECTS_MAX {
            let at_home = url.origin() == endpoint.home().origin();
            let client = self.client(&url, if at_home { endpoint.nearest } else { nearness })?;
            let mut builder = client.request(request.method.clone(), url.clone());
            builder = builder.headers(request.headers.clone()).body(request.body.clone());
            if let Some(value) = authorisation.filter(|_| at_home) {
                builder = builder.header(AUTHORIZATION, value.clone());
            }
            let response = self.send(builder, request.body.len()).await?;
            let status = response.status();
            if at_home {
                nearness = self.reach.nearness(&url, response.remote_addr());
            }
            match request.method {
                _ if !is_redirect(status) => {
                    if !at_home && is_refusal(status) {
                        // A signed URL that has expired, as a rule: the registry gives another one.
                        let host = url.host_str().unwrap_or_default();
                        return Err(Failure::passing(format!(
                            "{host}, where it redirects to, answers {status}"
                        )));
                    }
                    return Ok(Answered { response, nearness });
                }
                Method::GET => url = target(&url, response.headers())?,
                // Whoever asks whether something is there is told by that as well.
                Method::HEAD => return Ok(Answered { response, nearness }),
                _ => return Err(Failure::refused("it redirects an upload")),
            }
        }
        Err(Failure::refused(format!("it redirects more than {REDIRECTS_MAX} times")))
    }

    /// A request whose answer is small and must be a success.
    pub(super) async fn small(
        &self,
        request: RequestBuilder,
        max: u64,
        what: &str,
    ) -> Result<Bytes, Failure> {
        let response = self.send(request, 0).await?;
        let status = response.status();
        if status.is_success() {
            return self.body(response, max).await;
        }
        Err(match self.failure(response).await {
            // A token server refuses a wrong password in any of these ways.
            Failure::Refused(reason) | Failure::Denied(reason) | Failure::Unauthorized(reason) => {
                Failure::Unauthorized(format!("the token server refuses {what}: {reason}"))
            }
            other => other,
        })
    }

    /// A whole body of at most `max` bytes.
    pub(super) async fn body(&self, mut response: Response, max: u64) -> Result<Bytes, Failure> {
        let mut body = BytesMut::new();
        while let Some(bytes) = self.chunk(&mut response).await? {
            if body.len() as u64 + bytes.len() as u64 > max {
                return Err(Failure::Corrupt(format!("the answer has more than {max} bytes")));
            }
            body.extend_from_slice(&bytes);
        }
        Ok(body.freeze())
    }

    /// The next bytes of a body, none at its end.
    pub(super) async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, Failure> {
        let stall = self.config.stall_timeout;
        match tokio::time::timeout(stall, response.chunk()).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error)) => Err(Failure::passing(in_words(error))),
            Err(_) => Err(Failure::passing(format!("nothing arrived for {stall:?}"))),
        }
    }

    /// What an answer that is no success means.
    pub(super) async fn failure(&self, response: Response) -> Failure {
        let status = response.status();
        let wait = retry_after(response.headers());
        let said = self.body(response, ERROR_BODY_MAX).await.unwrap_or_default();
        let reason = format!("it answers {status}{}", message(&said));
        match status {
            StatusCode::NOT_FOUND => Failure::Absent(reason),
            StatusCode::UNAUTHORIZED => Failure::Unauthorized(reason),
            StatusCode::FORBIDDEN => Failure::Denied(reason),
            StatusCode::RANGE_NOT_SATISFIABLE => Failure::OutOfRange,
            StatusCode::TOO_MANY_REQUESTS => Failure::Limited { reason, wait },
            StatusCode::REQUEST_TIMEOUT => Failure::Passing { reason, wait },
            status if status.is_server_error() => Failure::Passing { reason, wait },
            _ => Failure::Refused(reason),
        }
    }

    /// Up to the answer's head; `uploaded` bytes go first.
    async fn send(&self, request: RequestBuilder, uploaded: usize) -> Result<Response, Failure> {
        let upload = Duration::from_secs(uploaded as u64 / UPLOAD_RATE_MIN);
        let limit =
            self.config.connect_timeout.saturating_add(self.config.stall_timeout).saturating_add(upload);
        match tokio::time::timeout(limit, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(unsent(error)),
            Err(_) => Err(Failure::passing(format!("no answer within {limit:?}"))),
        }
    }
}

/// A request that got no answer. Trying again does not change what a server is.
fn unsent(error: reqwest::Error) -> Failure {
    if let Some(unreached) = unreached(&error) {
        return Failure::refused(unreached.to_string());
    }
    let builder = error.is_builder();
    let reason = in_words(error);
    if reason.contains("InvalidContentType") {
        return Failure::refused("it does not speak HTTPS; plain HTTP must be asked for");
    }
    if builder || reason.contains("invalid peer certificate") {
        return Failure::refused(reason);
    }
    Failure::passing(reason)
}

/// The reason among the causes, when a name was resolved to what is not asked.
fn unreached(error: &reqwest::Error) -> Option<&Unreached> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(unreached) = error.downcast_ref() {
            return Some(unreached);
        }
        cause = error.source();
    }
    None
}

pub(super) fn is_refusal(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

pub(super) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where an answer sends to: HTTPS is never given up for plain HTTP.
pub(super) fn target(from: &Url, headers: &HeaderMap) -> Result<Url, Failure> {
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let url = location.and_then(|location| from.join(location).ok());
    let url = url
        .filter(|url| matches!(url.scheme(), "http" | "https"))
        .ok_or_else(|| Failure::refused("it redirects to nowhere"))?;
    if url.scheme() != "https" && from.scheme() == "https" {
        let host = url.host_str().unwrap_or_default();
        return Err(Failure::refused(format!("it redirects to {host} without HTTPS")));
    }
    Ok(url)
}

/// Only the form in seconds: registries do not send dates.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// The error with its causes; without its URL, which may be a signed one.
fn in_words(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}

/// `: CODE: message` of the specification's error body, if it is one.
fn message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Message>,
    }
    #[derive(Deserialize)]
    struct Message {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let first = serde_json::from_slice(body).ok().and_then(|body: Errors| body.errors.into_iter().next());
    first.map_or(String::new(), |first| {
        format!(", {}", brief(format!("{} {}", first.code, first.message).trim()))
    })
}
