//! What this node tells operators of: every event, its reason and its details.
//!
//! Reasons are stable: `docs/events.md` lists them for users.

use bus::Events;
use image::Digest;
use names::Reference;
use proto::{DownloadProgress, Event, EventKind};

use crate::downloads::ReadError;
use crate::snapshots::Ordinary;

/// Tells events in the node's name. Cheap to clone.
#[derive(Clone, Debug)]
pub struct NodeEvents {
    events: Events,
    node: String,
}

impl NodeEvents {
    pub fn new(events: Events, node: impl Into<String>) -> NodeEvents {
        NodeEvents { events, node: node.into() }
    }

    pub(crate) fn all(&self) -> &Events {
        &self.events
    }

    /// From now on the image's files come as they are read.
    pub(crate) fn streaming(&self, reference: &str, manifest: &str) {
        let message = format!("Image {} is backed by image streaming.", as_asked(reference));
        self.tell(reference, manifest, Event::new(EventKind::Streaming, "image-streaming", message));
    }

    pub(crate) fn complete(&self, reference: &str, manifest: &str, progress: &DownloadProgress) {
        let message = format!("Image {} is on this node as a whole.", as_asked(reference));
        let event = Event::new(EventKind::Complete, "image-complete", message)
            .with("objects", progress.objects_total)
            .with("bytes", progress.bytes_total)
            .with("received_bytes", progress.received_bytes);
        self.tell(reference, manifest, event);
    }

    /// A layer is pulled as ever. `layer_id`: its chain id.
    pub(crate) fn ordinary(&self, reference: &str, manifest: &str, layer_id: &str, why: &Ordinary) {
        let event = Event::new(why.kind(), why.reason.code(), why.message.clone()).with("layer_id", layer_id);
        let event = match &why.refused_by {
            Some(refusal) => event.with("policy", &refusal.policy).with("policy_reason", &refusal.code),
            None => event,
        };
        self.tell(reference, manifest, event);
    }

    /// The mesh did not answer for an image that this node knows already.
    pub(crate) fn mesh_away(&self, reference: &str, manifest: &str, error: &tonic::Status) {
        let message = format!("the mesh is away: what this name meant last is used ({})", error.message());
        self.tell(reference, manifest, Event::new(EventKind::Degraded, "mesh-away", message));
    }

    /// A process got an I/O error.
    pub(crate) fn read_failed(
        &self,
        manifest: &str,
        object: &Digest,
        offset: u64,
        size: usize,
        error: &ReadError,
    ) {
        let error = format!("{:#}", anyhow::Error::new(error.clone()));
        let event = Event::new(EventKind::Degraded, "read-failed", format!("a read failed: {error}"))
            .with("object", object)
            .with("offset", offset)
            .with("size", size);
        self.tell("", manifest, event);
    }

    pub(crate) fn disk_full(&self) {
        let message = "the disk is full: nothing more is kept, reads go on from memory";
        self.tell("", "", Event::new(EventKind::Degraded, "disk-full", message));
    }

    pub(crate) fn over_budget(&self) {
        let message =
            "what containers and their images need is more than frontend.disk_budget: the background waits";
        self.tell("", "", Event::new(EventKind::Degraded, "disk-budget", message));
    }

    /// Chunks came from the object store itself.
    pub(crate) fn past_caches(&self, manifest: &str) {
        let message = "no cache has what is read: it is read from the object store itself";
        self.tell("", manifest, Event::new(EventKind::Degraded, "past-caches", message));
    }

    /// What arrived is not what was asked for; it was dropped.
    pub(crate) fn corrupt(&self, manifest: &str, digest: &Digest) {
        let message = format!("content {digest} arrived corrupt: dropped, and fetched again elsewhere");
        let event = Event::new(EventKind::Degraded, "corrupt-content", message).with("digest", digest);
        self.tell("", manifest, event);
    }

    fn tell(&self, reference: &str, manifest: &str, event: Event) {
        self.events.tell(Event {
            service: "frontend".to_owned(),
            node: self.node.clone(),
            image: as_asked(reference),
            manifest_digest: manifest.to_owned(),
            ..event
        });
    }
}

/// The name without the digest that a pull through containerd puts behind its tag.
fn as_asked(reference: &str) -> String {
    Reference::parse(reference).map_or_else(|| reference.to_owned(), |name| name.as_asked().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_name_images_as_they_were_asked_for() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (reference, name) in [
            (format!("r.io:5000/a:1@{digest}"), "r.io:5000/a:1".to_owned()),
            (format!("r.io:5000/a@{digest}"), format!("r.io:5000/a@{digest}")),
            ("r.io/a:1".to_owned(), "r.io/a:1".to_owned()),
            ("oci:dir:tag".to_owned(), "oci:dir:tag".to_owned()),
            (String::new(), String::new()),
        ] {
            assert_eq!(as_asked(&reference), name);
        }
    }
}
