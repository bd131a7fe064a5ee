//! Whether a layer streams. Whatever the answer, the pull goes on: what does not stream is fetched by
//! containerd as ever, and the reason is kept where an operator looks.

use std::sync::Arc;

use image::ImageRecord;
use proto::EventKind;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::wanted::{Layer, Place};
use crate::images::NOT_IMPORTED;

/// Why a layer is an ordinary one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    /// The layer below is ordinary: of the same pull, which told its own reason, or of another image.
    OverOrdinary,
    /// containerd does not hand annotations on.
    NoAnnotations,
    /// This machine cannot stream any image.
    Machine,
    /// An operator wants none to stream.
    SwitchedOff,
    /// Its import takes longer than a pull may wait; it goes on.
    NotImportedYet,
    /// The image cannot stream, or may not.
    NotEligible,
    /// The registry refused us, or the mesh did.
    Denied,
    /// A quota of the mesh is used up.
    Quota,
    /// The mesh did not answer in time.
    MeshAway,
    /// No memory or no disk for it now.
    NoRoom,
    /// The image is not as containerd sees it: other layers, or another order.
    Mismatch,
    /// Anything else; the message says what.
    Failed,
}

impl Reason {
    /// Stable: for metrics, events and scripts.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Reason::OverOrdinary => "over-ordinary-layer",
            Reason::NoAnnotations => "no-annotations",
            Reason::Machine => "machine-cannot-stream",
            Reason::SwitchedOff => "switched-off",
            Reason::NotImportedYet => NOT_IMPORTED,
            Reason::NotEligible => "not-eligible",
            Reason::Denied => "denied",
            Reason::Quota => "quota",
            Reason::MeshAway => "mesh-away",
            Reason::NoRoom => "no-room",
            Reason::Mismatch => "layers-differ",
            Reason::Failed => "failed",
        }
    }

    fn of(status: &Status) -> Reason {
        let info = status.get_details_error_info();
        match status.code() {
            Code::FailedPrecondition if info.is_some_and(|info| info.reason == NOT_IMPORTED) => {
                Reason::NotImportedYet
            }
            Code::InvalidArgument | Code::FailedPrecondition | Code::Unimplemented => Reason::NotEligible,
            Code::PermissionDenied | Code::Unauthenticated => Reason::Denied,
            Code::ResourceExhausted if status.get_details_quota_failure().is_some() => Reason::Quota,
            Code::Unavailable | Code::DeadlineExceeded => Reason::MeshAway,
            Code::ResourceExhausted => Reason::NoRoom,
            _ => Reason::Failed,
        }
    }
}

/// An ordinary layer, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ordinary {
    pub(crate) reason: Reason,
    pub(crate) message: String,
    pub(crate) refused_by: Option<Refusal>,
}

/// The policy that refused an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) policy: String,
    /// Its own stable code.
    pub(crate) code: String,
}

impl Ordinary {
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Ordinary {
        Ordinary { reason, message: message.into(), refused_by: None }
    }

    /// What of it an operator is told.
    pub(crate) fn kind(&self) -> EventKind {
        match self.reason {
            Reason::Denied => EventKind::Denied,
            Reason::NotEligible if self.refused_by.is_some() => EventKind::Denied,
            Reason::Quota => EventKind::Quota,
            _ => EventKind::Fallback,
        }
    }
}

impl From<&Status> for Ordinary {
    fn from(status: &Status) -> Ordinary {
        let refusal = status.get_details_error_info().and_then(|info| {
            let policy = info.metadata.get("policy")?.clone();
            Some(Refusal { policy, code: info.reason })
        });
        Ordinary { refused_by: refusal, ..Ordinary::new(Reason::of(status), status.message()) }
    }
}

/// What the mesh said about the image, put to the layer that is wanted: it, and those above it.
pub(super) fn decide(
    layer: &Layer,
    parent: Option<&str>,
    answer: Result<Arc<ImageRecord>, Status>,
) -> Result<Vec<Place>, Ordinary> {
    let record = answer.map_err(|status| Ordinary::from(&status))?;
    layer.places_in(&record, parent).ok_or_else(|| {
        let (image, target) = (&record.manifest_digest, &layer.target);
        Ordinary::new(
            Reason::Mismatch,
            format!("image {image} has no layer {target} over {}", parent.unwrap_or("nothing")),
        )
    })
}
