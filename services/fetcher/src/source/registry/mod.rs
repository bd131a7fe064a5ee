//! Images in registries, by the OCI distribution protocol.
//!
//! A [`Registry`] is one repository as one caller may read it, behind one or more endpoints: the
//! registry's mirrors in the configured order, then the registry itself. Every request goes
//! through the same three layers:
//!
//! 1. endpoints: what a mirror cannot give is asked of the next one; the registry's own answer counts;
//! 2. tries: what may pass (a broken connection, 429, 5xx) is tried again after a pause;
//! 3. one exchange: authorised, redirected, judged; a refused authorisation is renewed once.
//!
//! Docker Hub's names are normalised by the reference; only its host name is special here.

pub(super) mod blob;

mod auth;
mod challenge;
mod endpoint;
mod retry;
mod transfer;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, RANGE};
use http::{HeaderMap, HeaderValue, StatusCode};
use oci_spec::distribution::Reference;
use reqwest::Response;

use super::document::{ACCEPT as MANIFESTS, CONFIG_MAX, Descriptor, MANIFEST_MAX};
use super::{Access, BlobDigest, SourceError, Sources};
use challenge::Challenge;
use endpoint::Endpoint;
use retry::Retry;
use transfer::{Failure, Transfer};

pub(super) use transfer::client;

#[derive(Debug)]
pub(super) struct Registry {
    image: Arc<str>,
    reference: Reference,
    transfer: Transfer,
    /// Mirrors first, the registry itself last.
    endpoints: Vec<Endpoint>,
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
}

#[derive(Debug)]
enum Answer {
    Whole { media_type: Option<String>, bytes: Bytes },
    Stream { response: Response, host: String },
}

impl Registry {
    pub(super) fn new(
        sources: &Sources,
        reference: &Reference,
        access: Access,
    ) -> Result<Registry, SourceError> {
        let image: Arc<str> = reference.to_string().into();
        let registry = reference.registry();
        let repository = reference.repository();
        let config = &sources.config;
        let mut endpoints = Vec::new();
        for base in config.mirrors.get(registry).into_iter().flatten() {
            endpoints.push(Endpoint::mirror(base, registry, repository).ok_or_else(|| {
                SourceError::unsupported(
                    &image,
                    format!("the mirror {base} of {registry} is not an HTTP URL"),
                )
            })?);
        }
        let plain_http = access.plain_http || config.plain_http.iter().any(|host| host == registry);
        endpoints.push(Endpoint::origin(registry, repository, access, plain_http).ok_or_else(|| {
            SourceError::unsupported(&image, format!("{registry:?} is not the host of a registry"))
        })?);
        let transfer = Transfer::new(sources.client.clone(), config.clone());
        Ok(Registry { image, reference: reference.clone(), transfer, endpoints })
    }

    /// What the reference names. With a digest, that is what must come.
    pub(super) async fn root(&self) -> Result<(Descriptor, Bytes), SourceError> {
        let name = self.reference.digest().or(self.reference.tag()).unwrap_or("latest");
        // A reference with a digest of another kind was refused when its name was read.
        let digest = self.reference.digest().and_then(|digest| digest.parse().ok());
        let ask = Ask {
            what: "the image".into(),
            path: format!("manifests/{name}"),
            accept: Some(MANIFESTS),
            body: Body::Whole { max: MANIFEST_MAX, digest },
        };
        let (media_type, bytes) = self.whole(&ask).await?;
        let descriptor = Descriptor::of(media_type.as_deref().unwrap_or_default(), &bytes);
        Ok((descriptor, bytes))
    }

    pub(super) async fn manifest_document(&self, descriptor: &Descriptor) -> Result<Bytes, SourceError> {
        self.described("manifests", descriptor, MANIFEST_MAX, Some(MANIFESTS)).await
    }

    pub(super) async fn config_document(&self, descriptor: &Descriptor) -> Result<Bytes, SourceError> {
        self.described("blobs", descriptor, CONFIG_MAX, None).await
    }

    async fn described(
        &self,
        kind: &str,
        descriptor: &Descriptor,
        max: u64,
        accept: Option<&'static str>,
    ) -> Result<Bytes, SourceError> {
        descriptor.within(&self.image, max)?;
        let ask = Ask {
            what: format!(
                "{} {}",
                if kind == "blobs" { "the config" } else { "the manifest" },
                descriptor.digest
            ),
            path: format!("{kind}/{}", descriptor.digest),
            accept,
            body: Body::Whole { max, digest: Some(descriptor.digest) },
        };
        let (_, bytes) = self.whole(&ask).await?;
        match descriptor.check(&bytes) {
            Ok(()) => Ok(bytes),
            Err(reason) => Err(SourceError::corrupt(&self.image, ask.what, reason)),
        }
    }

    async fn whole(&self, ask: &Ask) -> Result<(Option<String>, Bytes), SourceError> {
        match self.answer(ask).await? {
            Answer::Whole { media_type, bytes } => Ok((media_type, bytes)),
            Answer::Stream { host, .. } => Err(self.unreachable(&host, "it answers with part of a document")),
        }
    }

    /// A blob's bytes from `from` on, or from the start when the server knows no ranges.
    async fn stream(&self, digest: &BlobDigest, from: u64) -> Result<(Response, String), SourceError> {
        let ask = Ask {
            what: format!("layer {digest}"),
            path: format!("blobs/{digest}"),
            accept: None,
            body: Body::Stream { from },
        };
        match self.answer(&ask).await? {
            Answer::Stream { response, host } => Ok((response, host)),
            Answer::Whole { .. } => Err(SourceError::corrupt(&self.image, ask.what, "it came as a document")),
        }
    }

    /// The first endpoint's answer that is one; of failures, the registry's own.
    async fn answer(&self, ask: &Ask) -> Result<Answer, SourceError> {
        let mut failed = None;
        for endpoint in self.endpoints.iter().filter(|endpoint| !endpoint.down.load(Ordering::Relaxed)) {
            match self.tries(endpoint, ask).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => {
                    let error = self.error(endpoint, ask, failure).await;
                    if endpoint.mirror_of.is_some() {
                        tracing::warn!(mirror = endpoint.host, %error, "a mirror failed: asking the next one");
                        let gone =
                            matches!(error, SourceError::Unreachable { .. } | SourceError::Limited { .. });
                        endpoint.down.fetch_or(gone, Ordering::Relaxed);
                    }
                    failed = Some(error);
                }
            }
        }
        Err(failed.unwrap_or_else(|| self.unreachable(self.reference.registry(), "it has no endpoint")))
    }

    async fn tries(&self, endpoint: &Endpoint, ask: &Ask) -> Result<Answer, Failure> {
        let mut retry = Retry::new(&self.transfer.config.retry);
        loop {
            let failure = match self.exchange(endpoint, ask).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let (Failure::Passing { reason, wait } | Failure::Limited { reason, wait }) = &failure else {
                return Err(failure);
            };
            // Behind a mirror there is always somebody else to ask.
            let pause = if endpoint.mirror_of.is_some() { None } else { retry.pause(*wait) };
            let Some(pause) = pause else { return Err(failure) };
            tracing::debug!(host = endpoint.host, what = ask.what, reason, ?pause, "trying again");
            tokio::time::sleep(pause).await;
        }
    }

    /// One request and its answer; a second one when the authorisation had to be renewed.
    async fn exchange(&self, endpoint: &Endpoint, ask: &Ask) -> Result<Answer, Failure> {
        let url = endpoint.url(self.reference.repository(), &ask.path);
        let mut authorisation = endpoint.login.authorisation(&self.transfer).await?;
        let mut renewed = false;
        loop {
            let header = authorisation.as_ref().map(|authorisation| &authorisation.header);
            let response = self.transfer.get(&url, ask.headers(), header).await?;
            let status = response.status();
            if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
                return self.accept(endpoint, ask, response).await;
            }
            if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) && !renewed {
                renewed = true;
                let challenge = Challenge::of(response.headers());
                let fresh = endpoint.login.renew(&self.transfer, authorisation.as_ref(), challenge).await?;
                if fresh.is_some() {
                    authorisation = fresh;
                    continue;
                }
            }
            return Err(self.transfer.failure(response).await);
        }
    }

    async fn accept(&self, endpoint: &Endpoint, ask: &Ask, response: Response) -> Result<Answer, Failure> {
        let Body::Whole { max, digest } = ask.body else {
            return Ok(Answer::Stream { response, host: endpoint.host.clone() });
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

    async fn error(&self, endpoint: &Endpoint, ask: &Ask, failure: Failure) -> SourceError {
        let (image, host, what) = (self.image.to_string(), endpoint.host.clone(), ask.what.clone());
        match failure {
            Failure::Passing { reason, .. } => SourceError::Unreachable { image, host, reason },
            Failure::Limited { reason: detail, .. } => SourceError::Limited { image, host, detail },
            Failure::Absent(detail) => {
                SourceError::NotFound { image, what, detail: format!("{host}: {detail}") }
            }
            Failure::Denied(detail) => SourceError::Denied { image, host, detail },
            Failure::Unauthorized(detail) => {
                let detail = match endpoint.login.trouble().await {
                    Some(trouble) => format!("{detail}; the docker config gave none: {trouble}"),
                    None => detail,
                };
                SourceError::Unauthorized { image, host, detail }
            }
            Failure::OutOfRange => {
                SourceError::Corrupt { image, what, reason: "it is shorter than the manifest says".into() }
            }
            Failure::Corrupt(reason) => {
                SourceError::Corrupt { image, what, reason: format!("{host}: {reason}") }
            }
            Failure::Refused(reason) => {
                SourceError::Unsupported { image, reason: format!("{what}: {host}: {reason}") }
            }
        }
    }

    fn unreachable(&self, host: &str, reason: impl Into<String>) -> SourceError {
        SourceError::Unreachable {
            image: self.image.to_string(),
            host: host.to_owned(),
            reason: reason.into(),
        }
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
