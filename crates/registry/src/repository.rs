//! One repository, and how it is asked.
//!
//! A [`Repository`] is one repository as one caller may read it, behind one or more endpoints: the
//! registry's mirrors in the configured order, then the registry itself. Every request goes
//! through the same three layers:
//!
//! 1. endpoints: what a mirror cannot give is asked of the next one; the registry's own answer counts;
//! 2. tries: what may pass (a broken connection, 429, 5xx) is tried again after a pause;
//! 3. one exchange: authorised, redirected, judged; a refused authorisation is renewed once.
//!
//! Docker Hub's names are normalised by the reference; only its host name is special here.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use names::Reference;
use reqwest::Response;

use crate::auth::Met;
use crate::challenge::Challenge;
use crate::document::{CONFIG_MAX, Descriptor, MANIFEST_MAX};
use crate::endpoint::Endpoint;
use crate::reach::is_loopback_name;
use crate::retry::Retry;
use crate::transfer::{Failure, Request, Transfer, is_redirect, is_refusal};
use crate::{Access, BlobDigest, ByteStream, Client, Config, Error, blob};

#[derive(Debug)]
pub struct Repository {
    pub(super) image: Arc<str>,
    pub(super) reference: Reference,
    pub(super) transfer: Transfer,
    /// Mirrors first, the registry itself last.
    pub(super) endpoints: Vec<Endpoint>,
}

/// One thing to get.
#[derive(Debug)]
struct Ask {
    /// For messages: `layer sha256:…`.
    what: String,
    /// `manifests/latest`, `blobs/sha256:…`
    path: String,
    accept: Option<&'static str>,
    body: Body,
}

#[derive(Debug)]
enum Body {
    /// All of it, at most so many bytes; verified when it was asked for by digest.
    Whole { max: u64, digest: Option<BlobDigest> },
    /// As it comes, from this byte on.
    Stream { from: u64 },
    /// Only whether it is there for us.
    Shown,
}

#[derive(Debug)]
enum Answer {
    Shown,
    Whole { media_type: Option<String>, bytes: Bytes },
    Stream { response: Response, host: String },
}

impl Repository {
    pub(super) fn new(client: &Client, reference: &Reference, access: Access) -> Result<Repository, Error> {
        let image: Arc<str> = reference.to_string().into();
        let registry = reference.registry();
        let repository = reference.repository();
        let config = &client.config;
        let mut endpoints = Vec::new();
        for base in config.mirrors.get(registry).into_iter().flatten() {
            endpoints.push(Endpoint::mirror(base, registry, repository).ok_or_else(|| {
                Error::unsupported(&image, format!("the mirror {base} of {registry} is not an HTTP URL"))
            })?);
        }
        let plain_http =
            plain_http(config, registry, &access).map_err(|reason| Error::unsupported(&image, reason))?;
        let access = Access { own: access.own || config.shares(registry, repository), ..access };
        let nearest = client.reach.of_named();
        let origin = Endpoint::origin(registry, repository, access, plain_http, nearest);
        endpoints.push(origin.ok_or_else(|| {
            Error::unsupported(&image, format!("{registry:?} is not the host of a registry"))
        })?);
        let transfer = Transfer::new(client.reach.clone(), config.clone());
        Ok(Repository { image, reference: reference.clone(), transfer, endpoints })
    }

    /// What the reference names, and its media type as the registry says it. With a digest, that is what must come.
    /// `what` it is, for messages.
    pub async fn root(&self, what: &str, accept: &'static str) -> Result<(Descriptor, Bytes), Error> {
        let name = self.reference.digest().or(self.reference.tag()).unwrap_or("latest");
        // Digests of other kinds are refused by whoever reads names.
        let digest = self.reference.digest().and_then(|digest| digest.parse().ok());
        self.named(what, name, digest, accept).await
    }

    /// What a tag of this repository names; `what` it is, for messages.
    pub async fn tagged(
        &self,
        what: &str,
        tag: &str,
        accept: &'static str,
    ) -> Result<(Descriptor, Bytes), Error> {
        self.named(what, tag, None, accept).await
    }

    async fn named(
        &self,
        what: &str,
        name: &str,
        digest: Option<BlobDigest>,
        accept: &'static str,
    ) -> Result<(Descriptor, Bytes), Error> {
        let ask = Ask {
            what: what.to_owned(),
            path: format!("manifests/{name}"),
            accept: Some(accept),
            body: Body::Whole { max: MANIFEST_MAX, digest },
        };
        let (media_type, bytes) = self.whole(&ask).await?;
        let descriptor = Descriptor::of(media_type.as_deref().unwrap_or_default(), &bytes);
        Ok((descriptor, bytes))
    }

    /// A manifest or an index that another document names; verified.
    pub async fn manifest(&self, descriptor: &Descriptor, accept: &'static str) -> Result<Bytes, Error> {
        self.described("the manifest", "manifests", descriptor, MANIFEST_MAX, Some(accept)).await
    }

    /// An image's config; verified.
    pub async fn config(&self, descriptor: &Descriptor) -> Result<Bytes, Error> {
        self.whole_blob("the config", descriptor, CONFIG_MAX).await
    }

    /// A blob of at most `max` bytes, in memory; verified.
    pub async fn whole_blob(&self, what: &str, descriptor: &Descriptor, max: u64) -> Result<Bytes, Error> {
        self.described(what, "blobs", descriptor, max, None).await
    }

    /// The bytes of a blob of `size` bytes, from byte `from` on, whatever connections do meanwhile. Exactly those, or an
    /// error; whether they are the right ones is for the reader to hash.
    pub async fn blob(
        self: &Arc<Self>,
        digest: BlobDigest,
        size: u64,
        from: u64,
    ) -> Result<ByteStream, Error> {
        blob::open(self.clone(), digest, size, from).await
    }

    /// Whether the registry shows this blob to this caller: by its word alone, so what it says is worth something only where its
    /// word is. An error: nobody could say.
    pub async fn shows(&self, digest: &BlobDigest) -> Result<bool, Error> {
        match self.show(digest).await {
            Ok(()) => Ok(true),
            Err(Error::NotFound { .. } | Error::Denied { .. } | Error::Unauthorized { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The same; an error says why not.
    pub async fn show(&self, digest: &BlobDigest) -> Result<(), Error> {
        let ask = Ask {
            what: format!("layer {digest}"),
            path: format!("blobs/{digest}"),
            accept: None,
            body: Body::Shown,
        };
        self.answer(&ask).await.map(drop)
    }

    async fn described(
        &self,
        what: &str,
        kind: &str,
        descriptor: &Descriptor,
        max: u64,
        accept: Option<&'static str>,
    ) -> Result<Bytes, Error> {
        descriptor.within(&self.image, max)?;
        let ask = Ask {
            what: format!("{what} {}", descriptor.digest),
            path: format!("{kind}/{}", descriptor.digest),
            accept,
            body: Body::Whole { max, digest: Some(descriptor.digest) },
        };
        let (_, bytes) = self.whole(&ask).await?;
        match descriptor.check(&bytes) {
            Ok(()) => Ok(bytes),
            Err(reason) => Err(Error::corrupt(&self.image, ask.what, reason)),
        }
    }

    async fn whole(&self, ask: &Ask) -> Result<(Option<String>, Bytes), Error> {
        match self.answer(ask).await? {
            Answer::Whole { media_type, bytes } => Ok((media_type, bytes)),
            Answer::Stream { host, .. } => Err(self.unreachable(&host, "it answers with part of a document")),
            Answer::Shown => Err(Error::corrupt(&self.image, &*ask.what, "it came without its bytes")),
        }
    }

    /// A blob's bytes from `from` on, or from the start when the server knows no ranges.
    pub(super) async fn stream(&self, digest: &BlobDigest, from: u64) -> Result<(Response, String), Error> {
        let ask = Ask {
            what: format!("layer {digest}"),
            path: format!("blobs/{digest}"),
            accept: None,
            body: Body::Stream { from },
        };
        match self.answer(&ask).await? {
            Answer::Stream { response, host } => Ok((response, host)),
            Answer::Whole { .. } | Answer::Shown => {
                Err(Error::corrupt(&self.image, ask.what, "it came as a document"))
            }
        }
    }

    /// The first endpoint's answer that is one; of failures, the registry's own.
    async fn answer(&self, ask: &Ask) -> Result<Answer, Error> {
        let mut failed = None;
        for endpoint in self.endpoints.iter().filter(|endpoint| !endpoint.down.load(Ordering::Relaxed)) {
            match self.tries(endpoint, &ask.what, || self.exchange(endpoint, ask)).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => {
                    let error = self.error(endpoint, &ask.what, failure).await;
                    if endpoint.mirror_of.is_some() {
                        tracing::warn!(mirror = endpoint.host, %error, "a mirror failed: asking the next one");
                        let gone = matches!(error, Error::Unreachable { .. } | Error::Limited { .. });
                        endpoint.down.fetch_or(gone, Ordering::Relaxed);
                    }
                    failed = Some(error);
                }
            }
        }
        Err(failed.unwrap_or_else(|| self.unreachable(self.reference.registry(), "it has no endpoint")))
    }

    /// Attempts, until one succeeds or there is no use in another.
    pub(super) async fn tries<T, F>(
        &self,
        endpoint: &Endpoint,
        what: &str,
        attempt: impl Fn() -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut retry = Retry::new(&self.transfer.config.retry);
        loop {
            let failure = match attempt().await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let (Failure::Passing { reason, wait } | Failure::Limited { reason, wait }) = &failure else {
                return Err(failure);
            };
            // Behind a mirror there is always somebody else to ask.
            let pause = if endpoint.mirror_of.is_some() { None } else { retry.pause(*wait) };
            let Some(pause) = pause else { return Err(failure) };
            tracing::debug!(host = endpoint.host, what, reason, ?pause, "trying again");
            tokio::time::sleep(pause).await;
        }
    }

    async fn exchange(&self, endpoint: &Endpoint, ask: &Ask) -> Result<Answer, Failure> {
        let url = endpoint.url(self.reference.repository(), &ask.path);
        let method = if let Body::Shown = ask.body { Method::HEAD } else { Method::GET };
        let request = Request { method, url, headers: ask.headers(), body: Bytes::new() };
        let response = self.authorised(endpoint, &request).await?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => self.accept(endpoint, ask, response).await,
            status if request.method == Method::HEAD && !is_plain_no(status) => {
                self.first_byte(endpoint, request).await
            }
            _ => Err(self.transfer.failure(response).await),
        }
    }

    /// The question whether something is there, put as everybody gets it: where a registry redirects, it may not know itself, and its
    /// storage may have been told to expect nothing else.
    async fn first_byte(&self, endpoint: &Endpoint, head: Request) -> Result<Answer, Failure> {
        let mut headers = head.headers;
        headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
        let request = Request { method: Method::GET, headers, ..head };
        let response = self.authorised(endpoint, &request).await?;
        match response.status() {
            // The last one: it is there, and empty.
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                Ok(Answer::Shown)
            }
            _ => Err(self.transfer.failure(response).await),
        }
    }

    /// One request and its answer, whatever that is; a second one when the authorisation had to be renewed.
    pub(super) async fn authorised(
        &self,
        endpoint: &Endpoint,
        request: &Request,
    ) -> Result<Response, Failure> {
        let mut authorisation = endpoint.login.authorisation(&self.transfer).await?;
        let mut renewed = false;
        loop {
            let header = authorisation.as_ref().map(|authorisation| &authorisation.header);
            let answered = self.transfer.exchange(request, endpoint, header).await?;
            let (response, nearest) = (answered.response, answered.nearness);
            if !is_refusal(response.status()) || renewed {
                return Ok(response);
            }
            renewed = true;
            // The registry's own: a refusal of anybody else is no answer.
            let challenge = Challenge::of(response.headers()).map(|challenge| Met { challenge, nearest });
            let fresh = endpoint.login.renew(&self.transfer, authorisation.as_ref(), challenge).await?;
            if fresh.is_none() {
                return Ok(response);
            }
            authorisation = fresh;
        }
    }

    async fn accept(&self, endpoint: &Endpoint, ask: &Ask, response: Response) -> Result<Answer, Failure> {
        let (max, digest) = match ask.body {
            Body::Whole { max, digest } => (max, digest),
            Body::Stream { .. } => return Ok(Answer::Stream { response, host: endpoint.host.clone() }),
            Body::Shown => return Ok(Answer::Shown),
        };
        let media_type =
            response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let bytes = self.transfer.body(response, max).await?;
        let content = BlobDigest::of(&bytes);
        if digest.is_some_and(|digest| digest != content) {
            return Err(Failure::Corrupt(format!("its content is {content}")));
        }
        Ok(Answer::Whole { media_type, bytes })
    }

    pub(super) async fn error(&self, endpoint: &Endpoint, what: &str, failure: Failure) -> Error {
        let (image, host, what) = (self.image.to_string(), endpoint.host.clone(), what.to_owned());
        match failure {
            Failure::Passing { reason, .. } => Error::Unreachable { image, host, reason },
            Failure::Limited { reason: detail, .. } => Error::Limited { image, host, detail },
            Failure::Absent(detail) => Error::NotFound { image, what, detail: format!("{host}: {detail}") },
            Failure::Denied(detail) => Error::Denied { image, host, detail },
            Failure::Unauthorized(detail) => {
                let detail = match endpoint.login.trouble().await {
                    Some(trouble) => format!("{detail}; the docker config gave none: {trouble}"),
                    None => detail,
                };
                Error::Unauthorized { image, host, detail }
            }
            Failure::OutOfRange => {
                Error::Corrupt { image, what, reason: "it is shorter than the manifest says".into() }
            }
            Failure::Corrupt(reason) => Error::Corrupt { image, what, reason: format!("{host}: {reason}") },
            Failure::Refused(reason) => {
                Error::Unsupported { image, reason: format!("{what}: {host}: {reason}") }
            }
        }
    }

    pub(super) fn unreachable(&self, host: &str, reason: impl Into<String>) -> Error {
        Error::Unreachable { image: self.image.to_string(), host: host.to_owned(), reason: reason.into() }
    }
}

impl Ask {
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(accept) = self.accept {
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
        }
        if let Body::Stream { from: from @ 1.. } = self.body
            && let Ok(range) = HeaderValue::try_from(format!("bytes={from}-"))
        {
            headers.insert(RANGE, range);
        }
        headers
    }
}

/// An answer to the question whether something is there that no other way of asking changes.
fn is_plain_no(status: StatusCode) -> bool {
    let later = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
    !is_redirect(status) && (status == StatusCode::NOT_FOUND || is_refusal(status) || later)
}

/// Whether plain HTTP is spoken to a registry. Asked for by somebody else, it could be meant to make a password readable on the way.
fn plain_http(config: &Config, registry: &str, access: &Access) -> Result<bool, String> {
    let told = config.plain_http.iter().any(|host| host == registry);
    let believed = access.own || config.plain_http_on_request || is_loopback_name(registry);
    match access.plain_http {
        true if !told && !believed => Err(format!(
            "plain HTTP was asked for, and it is spoken to {registry} only when `plain_http` of the registries' settings names it"
        )),
        asked => Ok(told || asked),
    }
}
