//! Brings verified content to the node: from cache replicas, or at last from the object store.
//!
//! [`Mesh`] is the node's: it knows the replicas and holds the connections to them. [`Content`] is one
//! image's: the mesh with the project and the grant that the image is read under.
//!
//! What failed on a replica (an error, a stall, a corrupt chunk) is asked of the next one in
//! rendezvous order; after [`STORE_AFTER_CYCLES`] rounds over all of them also of the object store
//! directly; then again with back-off, until the caller's patience ends. A replica that says that the grant does not count is
//! asked once more under a newer one ([`right`]). Nothing leaves here that was
//! not inflated within bounds and hashed, on a blocking thread.
//!
//! Requests for which a process waits have connections of their own: a full pipe of prefetched bytes
//! must not stand before them.

mod chunks;
mod endpoints;
mod frames;
mod index;
mod right;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bus::Bus;
use image::Digest;
use proto::Signed;
use proto::chunks_request::Priority;
use proto::gatekeeper::GRANT_METADATA;
use store::{ProjectStore, Store};
use tokio::sync::Semaphore;
use tonic::metadata::{BinaryMetadataValue, MetadataMap};

use crate::events::NodeEvents;
use endpoints::Endpoints;
use right::Right;

pub(crate) use chunks::{Fetched, Gate, Plain};
pub use index::IndexError;
pub(crate) use right::{Renewer, left_of};

/// The name of the metadata that carries an encoded grant.
/// Rounds over all replicas before the store is asked directly: a replica that restarts is back by then,
/// and a hiccup of the caches must not send every node to the store.
const STORE_AFTER_CYCLES: u32 = 2;
/// The wait after a first failed round over all replicas, and the longest one.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Who waits for a chunk. A lower class never delays a higher one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A read of a process.
    Demand,
    /// The start that is under way will probably read it.
    Prefetch,
    /// Everything else of a present image.
    Background,
}

/// How patient the client is.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// A replica that sends nothing for this long is left for the next. One frame is at most 1 MiB, so
    /// this is also the slowest link that can be used.
    pub stall_timeout: Duration,
    /// How long content that a process or a mount waits for is tried for, all retries included.
    pub demand_patience: Duration,
    /// Trees and maps that are inflated at once, each in up to 10 MiB.
    pub indexes_at_once: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            stall_timeout: Duration::from_secs(10),
            demand_patience: Duration::from_secs(120),
            indexes_at_once: 8,
        }
    }
}

/// The replicas and the store, as this node sees them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Mesh {
    endpoints: Arc<Endpoints>,
    store: Option<Store>,
    events: NodeEvents,
    options: Options,
    /// The turns of [`Options::indexes_at_once`].
    opening: Arc<Semaphore>,
}

/// What an image is read under.
#[derive(Clone, Debug)]
pub struct Access {
    pub project: String,
    pub grant: Signed,
    /// `sha256:<hex>`: tells a replica which image to have repaired when a chunk is corrupt.
    pub manifest_digest: String,
}

/// One image's way to its content. Cheap to clone; the clones share the grant.
#[derive(Clone, Debug)]
pub struct Content {
    mesh: Mesh,
    store: Option<ProjectStore>,
    project: Arc<str>,
    manifest_digest: Arc<str>,
    right: Arc<Right>,
}

/// Why content did not come, after everything was tried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    #[error("{0} is in no replica and not in the store")]
    Missing(Digest),
    #[error("every copy of {0} is corrupt")]
    Corrupt(Digest),
    /// `ungranted`: under a newer grant it may come.
    #[error("no access to {digest}: {reason}")]
    Denied { digest: Digest, reason: String, ungranted: bool },
    #[error("failed to fetch {digest}: {reason}")]
    Unavailable { digest: Digest, reason: String },
    #[error("nobody needs {0} any more")]
    Cancelled(Digest),
}

impl Mesh {
    pub fn new(bus: Bus, store: Option<Store>, events: NodeEvents, options: Options) -> Mesh {
        let opening = Arc::new(Semaphore::new(options.indexes_at_once.max(1)));
        Mesh { endpoints: Arc::new(Endpoints::new(bus)), store, events, options, opening }
    }

    /// Finds the replicas, unless they are known, for who will soon need them.
    pub async fn locate(&self) {
        self.endpoints.current().await;
    }

    /// The content of one image.
    pub fn content(&self, access: Access) -> Result<Content, store::StoreError> {
        let store = self.store.as_ref().map(|store| store.project(&access.project)).transpose()?;
        Ok(Content {
            mesh: self.clone(),
            store,
            project: access.project.into(),
            manifest_digest: access.manifest_digest.into(),
            right: Arc::new(Right::new(access.grant)),
        })
    }
}

impl Content {
    /// What it is read under; empty where there is none.
    pub fn grant(&self) -> Signed {
        self.right.grant()
    }

    /// Reads under another grant from now on.
    pub fn renew(&self, grant: &Signed) {
        self.right.replace(grant);
    }

    /// How a grant that has expired is renewed.
    pub(crate) fn renew_by(&self, renewer: Renewer) {
        self.right.renew_by(renewer);
    }

    /// Renews the grant.
    pub(crate) async fn renewed(&self) -> Result<Signed, tonic::Status> {
        self.right.renewed().await
    }

    /// Whether this is the same way to the same image, and not one that was opened later.
    pub fn is(&self, other: &Content) -> bool {
        Arc::ptr_eq(&self.right, &other.right)
    }

    fn tell_corrupt(&self, error: &FetchError) {
        if let FetchError::Corrupt(digest) = error {
            self.mesh.events.corrupt(&self.manifest_digest, digest);
        }
    }

    fn request<T>(&self, message: T, grant: BinaryMetadataValue) -> tonic::Request<T> {
        let mut metadata = MetadataMap::new();
        metadata.insert_bin(GRANT_METADATA, grant);
        tonic::Request::from_parts(metadata, Default::default(), message)
    }
}

impl From<Class> for Priority {
    fn from(class: Class) -> Priority {
        match class {
            Class::Demand => Priority::Demand,
            Class::Prefetch => Priority::Prefetch,
            Class::Background => Priority::Background,
        }
    }
}

impl FetchError {
    pub(crate) fn unavailable(digest: Digest, reason: impl std::fmt::Display) -> FetchError {
        FetchError::Unavailable { digest, reason: reason.to_string() }
    }

    fn from_status(digest: Digest, status: &tonic::Status) -> FetchError {
        let reason = format!("{:?}: {}", status.code(), status.message());
        match status.code() {
            tonic::Code::NotFound => FetchError::Missing(digest),
            tonic::Code::DataLoss => FetchError::Corrupt(digest),
            code @ (tonic::Code::PermissionDenied | tonic::Code::Unauthenticated) => {
                let ungranted = code == tonic::Code::Unauthenticated;
                FetchError::Denied { digest, reason, ungranted }
            }
            _ => FetchError::Unavailable { digest, reason },
        }
    }

    fn from_store(digest: Digest, error: &store::StoreError) -> FetchError {
        match error.is_not_found() {
            true => FetchError::Missing(digest),
            false => FetchError::unavailable(digest, error),
        }
    }
}

/// The wait before cycle `cycle` over all replicas (the first is 0).
fn backoff(cycle: u32) -> Duration {
    match cycle.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => BACKOFF_FIRST.saturating_mul(1 << doublings.min(16)).min(BACKOFF_MAX),
    }
}
