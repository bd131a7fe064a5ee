//! Speaks to registries, by the OCI distribution protocol: manifests and blobs, taken and given.
//!
//! A [`Client`] is made once per process and holds what is shared (the HTTP client, how registries are reached); a
//! [`Repository`] is one repository as one caller may see it. What is asked for by digest is checked against that digest
//! here, all but the bytes of [`Repository::blob`], which whoever reads them hashes anyway.
//!
//! What images and plugins are is not known here: that is for the fetcher and the policy service.

pub mod config;
pub mod digest;
pub mod document;
pub mod error;

mod answers;
mod auth;
mod blob;
mod challenge;
mod endpoint;
mod push;
mod reach;
mod repository;
mod retry;
mod transfer;

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use names::Reference;

pub use answers::Answered;
pub use config::{Config, RetryConfig};
pub use credentials::Credential;
pub use digest::{BlobDigest, NotABlobDigest};
pub use document::Descriptor;
pub use error::{Error, brief};
pub use repository::Repository;

/// A blob's bytes, in order, without gaps.
pub type ByteStream = BoxStream<'static, Result<Bytes, Error>>;

/// Opens repositories. One per process: connections are shared by all of them.
#[derive(Clone, Debug)]
pub struct Client {
    config: Arc<Config>,
    reach: reach::Reach,
}

/// What a caller brings along when it asks a registry.
///
/// The default is what a stranger brings: nothing.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// For the registry itself, never for a mirror.
    pub credential: Option<Credential>,
    /// Speak plain HTTP to the registry: only because the user asked. Of a caller who is somebody else it counts for registries on
    /// this machine and those that the configuration names.
    pub plain_http: bool,
    /// Whoever asks is who this process works for: where no credential came along, what the docker config holds is his.
    pub own: bool,
}

impl Access {
    /// What this process itself brings along, for its own purposes.
    pub fn own() -> Access {
        Access { own: true, ..Access::default() }
    }
}

impl Client {
    pub fn new(config: Config) -> anyhow::Result<Client> {
        let config = Arc::new(config);
        Ok(Client { reach: reach::Reach::new(config.clone())?, config })
    }

    /// The repository that `reference` is in. Asks nobody yet.
    pub fn repository(&self, reference: &Reference, access: Access) -> Result<Repository, Error> {
        Repository::new(self, reference, access)
    }
}
