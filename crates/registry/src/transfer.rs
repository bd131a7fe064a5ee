//! One HTTP exchange: sent, redirected, and its failure put into words.
//!
//! Redirects are followed here and not by the client: the `Authorization` header never leaves the
//! registry's own origin (blobs usually come from somebody else's storage), and HTTPS is never
//! given up for plain HTTP.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::{RequestBuilder, Response};
use serde::Deserialize;
use url::Url;

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
    client: reqwest::Client,
    pub(super) config: Arc<Config>,
}

/// The client for all registries of a process.
pub(super) fn client(config: &Config) -> anyhow::Result<reqwest::Client> {
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
        .connect_timeout(config.connect_timeout);
    for path in &config.certificates {
        let context = || format!("reading the certificates in {}", path.display());
        let pem = std::fs::read(path).with_context(context)?;
        builder = builder.tls_certs_merge(reqwest::Certificate::from_pem_bundle(&pem).with_context(context)?);
    }
    builder.build().context("preparing the HTTP client for registries")
}

impl Transfer {
    pub(super) fn new(client: reqwest::Client, config: Arc<Config>) -> Transfer {
        Transfer { client, config }
    }

    pub(super) fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// One request, through redirects when it asks for something. The answer's status is for the caller to judge. The
    /// authorisation is for `home` alone.
    pub(super) async fn exchange(
        &self,
        request: &Request,
        home: &Url,
        authorisation: Option<&HeaderValue>,
    ) -> Result<Response, Failure> {
        let mut url = request.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let mut builder = self.client.request(request.method.clone(), url.clone());
            builder = builder.headers(request.headers.clone()).body(request.body.clone());
            if let Some(value) = authorisation.filter(|_| url.origin() == home.origin()) {
                builder = builder.header(AUTHORIZATION, value.clone());
            }
            let response = self.send(builder, request.body.len()).await?;
            if !is_redirect(response.status()) {
                return Ok(response);
            }
            if request.method != Method::GET {
                return Err(Failure::refused("it redirects an upload"));
            }
            url = target(&url, response.headers())?;
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

fn is_redirect(status: StatusCode) -> bool {
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
