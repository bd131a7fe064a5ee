//! Giving a repository blobs and manifests.
//!
//! To the registry itself, never to a mirror. A blob goes up in one piece: what sluice pushes is small.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use url::Url;

use crate::endpoint::Endpoint;
use crate::repository::Repository;
use crate::transfer::{Failure, Request, target};
use crate::{BlobDigest, Error};

const BYTES: &str = "application/octet-stream";

impl Repository {
    /// Uploads a blob. One that is there already is uploaded again, which changes nothing.
    pub async fn put_blob(&self, bytes: Bytes) -> Result<BlobDigest, Error> {
        let (endpoint, digest) = (self.itself()?, BlobDigest::of(&bytes));
        let what = format!("the blob {digest}");
        let uploaded = self.tries(endpoint, &what, || self.upload(endpoint, digest, bytes.clone())).await;
        match uploaded {
            Ok(()) => Ok(digest),
            Err(failure) => Err(self.error(endpoint, &what, failure).await),
        }
    }

    /// Uploads a manifest, whose blobs are there, under a tag or its own digest.
    pub async fn put_manifest(
        &self,
        name: &str,
        media_type: &'static str,
        bytes: Bytes,
    ) -> Result<BlobDigest, Error> {
        let endpoint = self.itself()?;
        let what = format!("the manifest {name}");
        let url = endpoint.url(self.reference.repository(), &format!("manifests/{name}"));
        let put = || self.put(endpoint, url.clone(), media_type, bytes.clone());
        match self.tries(endpoint, &what, put).await {
            Ok(()) => Ok(BlobDigest::of(&bytes)),
            Err(failure) => Err(self.error(endpoint, &what, failure).await),
        }
    }

    async fn upload(&self, endpoint: &Endpoint, digest: BlobDigest, body: Bytes) -> Result<(), Failure> {
        let url = endpoint.url(self.reference.repository(), "blobs/uploads/");
        let begin = Request { method: Method::POST, url, headers: HeaderMap::new(), body: Bytes::new() };
        let response = self.authorised(endpoint, &begin).await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(self.transfer.failure(response).await);
        }
        let mut url = target(&begin.url, response.headers())?;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        self.put(endpoint, url, BYTES, body).await
    }

    async fn put(
        &self,
        endpoint: &Endpoint,
        url: Url,
        media_type: &'static str,
        body: Bytes,
    ) -> Result<(), Failure> {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(media_type))]);
        let request = Request { method: Method::PUT, url, headers, body };
        let response = self.authorised(endpoint, &request).await?;
        match response.status() {
            status if status.is_success() => Ok(()),
            _ => Err(self.transfer.failure(response).await),
        }
    }

    fn itself(&self) -> Result<&Endpoint, Error> {
        let none = || self.unreachable(self.reference.registry(), "it has no endpoint");
        self.endpoints.last().ok_or_else(none)
    }
}
