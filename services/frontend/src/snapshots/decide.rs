//! Whether a layer streams. Whatever the answer, the pull goes on: what does not stream is fetched by
//! containerd as ever, and the reason is kept where an operator looks.

use std::sync::Arc;

use image::ImageRecord;
use proto::refusal::{POLICY, POLICY_REASON};
use proto::{EventKind, Refusal};
use tonic::Status;
use tonic_types::StatusExt;

use super::wanted::{Layer, Place};

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
    /// All who could have answered had too much to do for as long as a pull may wait.
    MeshBusy,
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
            Reason::NotImportedYet => "not-imported-yet",
            Reason::NotEligible => "not-eligible",
            Reason::Denied => "denied",
            Reason::Quota => "quota",
            Reason::MeshAway => "mesh-away",
            Reason::MeshBusy => "mesh-busy",
            Reason::NoRoom => "no-room",
            Reason::Mismatch => "layers-differ",
            Reason::Failed => "failed",
        }
    }

    /// What a refusal of the mesh means to a pull; of a fault, that it failed.
    fn of(refusal: Option<Refusal>) -> Reason {
        match refusal {
            Some(Refusal::Busy) => Reason::MeshBusy,
            Some(Refusal::Quota) => Reason::Quota,
            Some(Refusal::NoRoom) => Reason::NoRoom,
            Some(Refusal::Denied) => Reason::Denied,
            Some(Refusal::NotImported) => Reason::NotImportedYet,
            Some(Refusal::Unreachable) => Reason::MeshAway,
            Some(Refusal::Invalid) => Reason::NotEligible,
            None => Reason::Failed,
        }
    }
}

/// An ordinary layer, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ordinary {
    pub(crate) reason: Reason,
    pub(crate) message: String,
    pub(crate) refused_by: Option<RefusedBy>,
}

/// The policy that refused an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RefusedBy {
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
            let policy = info.metadata.get(POLICY)?.clone();
            Some(RefusedBy { policy, code: info.metadata.get(POLICY_REASON)?.clone() })
        });
        Ordinary { refused_by: refusal, ..Ordinary::new(Reason::of(Refusal::of(status)), status.message()) }
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

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    /// All that the mesh may answer, and what the node makes of it: an image is pulled the ordinary way, and an operator reads this.
    #[test]
    fn each_refusal_has_its_reason_and_its_event() {
        for (refusal, code, kind) in [
            (Refusal::Busy, "mesh-busy", EventKind::Fallback),
            (Refusal::Quota, "quota", EventKind::Quota),
            (Refusal::NoRoom, "no-room", EventKind::Fallback),
            (Refusal::Denied, "denied", EventKind::Denied),
            (Refusal::NotImported, "not-imported-yet", EventKind::Fallback),
            (Refusal::Unreachable, "mesh-away", EventKind::Fallback),
            (Refusal::Invalid, "not-eligible", EventKind::Fallback),
        ] {
            let ordinary = Ordinary::from(&refusal.status("because"));
            assert_eq!((ordinary.reason.code(), ordinary.kind()), (code, kind), "{refusal:?}");
            assert_eq!(ordinary.message, "because");
        }
        let fault = Ordinary::from(&Status::new(Code::DataLoss, "corrupt"));
        assert_eq!((fault.reason.code(), fault.kind()), ("failed", EventKind::Fallback));
    }

    #[test]
    fn a_policy_that_refused_is_named() {
        let details = [(POLICY, "mine"), (POLICY_REASON, "too-large")];
        let details = details.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let ordinary = Ordinary::from(&Refusal::Invalid.with("it is too large", details, None));
        assert_eq!(ordinary.kind(), EventKind::Denied);
        let refused_by = ordinary.refused_by.unwrap();
        assert_eq!((&*refused_by.policy, &*refused_by.code), ("mine", "too-large"));
    }
}
