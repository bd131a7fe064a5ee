//! What snapshots ask of streamed images, on nodes that can stream and on those that cannot: there all images are ordinary ones,
//! and say why. Where streaming is switched off, only those are ordinary that are pulled from then on.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use image::ImageRecord;
use proto::ResolveRequest;
use tonic::Status;

use super::decide::{Ordinary, Reason};
use crate::events::NodeEvents;
use crate::images::{Claims, Images, Need};
use crate::mount::Above;

#[derive(Clone, Debug)]
pub(crate) enum Streaming {
    Possible {
        images: Images,
        switched_on: bool,
    },
    Impossible {
        /// What this machine lacks.
        why: String,
        events: NodeEvents,
    },
}

impl Streaming {
    pub(super) fn events(&self) -> &NodeEvents {
        match self {
            Streaming::Possible { images, .. } => images.events(),
            Streaming::Impossible { events, .. } => events,
        }
    }

    /// Whether this process ends: what cannot stream now may, once the next one is there.
    pub(super) fn is_ending(&self) -> bool {
        self.images().is_ok_and(Images::is_ending)
    }

    /// Whether layers stream that the ledger has already.
    pub(super) fn goes_on(&self) -> bool {
        matches!(self, Streaming::Possible { .. })
    }

    /// Why no image that is pulled now streams; none: it may.
    pub(super) fn ordinary(&self) -> Option<Ordinary> {
        match self {
            Streaming::Possible { switched_on: true, .. } => None,
            Streaming::Possible { switched_on: false, .. } => {
                let message = "streaming is switched off on this node (frontend.streaming)";
                Some(Ordinary::new(Reason::SwitchedOff, message))
            }
            Streaming::Impossible { why, .. } => Some(Ordinary::new(Reason::Machine, why)),
        }
    }

    fn images(&self) -> Result<&Images, Status> {
        match self {
            Streaming::Possible { images, .. } => Ok(images),
            // Of a snapshot that was streamed before this machine changed.
            Streaming::Impossible { why, .. } => Err(Status::failed_precondition(why.clone())),
        }
    }

    pub(super) async fn stream(
        &self,
        request: ResolveRequest,
        need: Need,
    ) -> Result<Arc<ImageRecord>, Status> {
        self.images()?.stream(request, need).await
    }

    pub(super) async fn stays(&self, manifest: &str) -> bool {
        match self.images() {
            Ok(images) => images.stays(manifest).await,
            Err(_) => false,
        }
    }

    pub(super) fn is_here(&self, manifest: &str) -> bool {
        self.images().is_ok_and(|images| images.is_here(manifest))
    }

    pub(super) async fn stack(&self, manifest: &str, above: Option<Above>) -> Result<PathBuf, Status> {
        self.images()?.stack(manifest, above).await
    }

    pub(super) async fn stack_part(
        &self,
        manifest: &str,
        layers: u32,
        part: &str,
        above: Option<Above>,
    ) -> Result<PathBuf, Status> {
        self.images()?.stack_part(manifest, layers, part, above).await
    }

    /// Takes away what was stacked for the snapshot of this number.
    pub(super) fn unstack(&self, id: u64) -> io::Result<()> {
        // On a machine that cannot stream nothing is mounted.
        self.images().map_or(Ok(()), |images| images.unstack(id))
    }

    pub(super) fn begin_start(&self, manifest: &str) {
        if let Ok(images) = self.images() {
            images.begin_start(manifest);
        }
    }

    pub(super) fn local_bytes(&self, manifest: &str) -> u64 {
        self.images().map_or(0, |images| images.local_bytes(manifest))
    }

    pub(super) fn claim(&self, claims: Claims) {
        if let Ok(images) = self.images() {
            images.claim(claims);
        }
    }
}
