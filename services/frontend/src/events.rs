//! What this node tells operators of: every event, its reason and its details.
//!
//! Reasons are stable: `docs/events.md` lists them for users.

use std::sync::Arc;
use std::time::Duration;

use bus::{Events, go_duration};
use image::Digest;
use names::Reference;
use proto::quota::Refused;
use proto::signed::VerifyError;
use proto::{DownloadProgress, Event, EventKind, ImportProgress, ImportTicket, Pod};

use crate::downloads::ReadError;
use crate::known::KnownImages;
use crate::snapshots::Ordinary;

/// Tells events in the node's name. Cheap to clone.
#[derive(Clone, Debug)]
pub struct NodeEvents {
    events: Events,
    node: String,
    known: Arc<KnownImages>,
}

impl NodeEvents {
    pub fn new(events: Events, node: impl Into<String>) -> NodeEvents {
        NodeEvents { events, node: node.into(), known: Arc::default() }
    }

    pub(crate) fn all(&self) -> &Events {
        &self.events
    }

    /// A pod pulls the image: what happens to it from now on concerns this pod.
    pub(crate) fn pulled(&self, image: &str, pod: Pod) {
        self.known.pulled(image, pod);
    }

    /// From now on the image's files come as they are read. `took`: since somebody asked for it.
    pub(crate) fn streaming(&self, reference: &str, manifest: &str, took: Duration) {
        let message = format!("Image {} is backed by image streaming.", as_asked(reference));
        let event = Event::new(EventKind::Streaming, "image-streaming", message);
        self.tell(reference, manifest, event.with("pulled_in", go_duration(took)));
    }

    /// The image is being made streamable. Told now and again when it takes long.
    pub(crate) fn importing(&self, reference: &str, ticket: &ImportTicket) {
        let progress = ticket.progress.clone().unwrap_or_default();
        if !self.known.is_news(&ticket.manifest_digest, progress.compressed_done) {
            return;
        }
        let (reason, message) = how_far(&as_asked(reference), &progress);
        let event = Event::new(EventKind::Importing, reason, message)
            .with("compressed_done", progress.compressed_done)
            .with("compressed_total", progress.compressed_total);
        self.tell(reference, &ticket.manifest_digest, event);
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

    /// A process has waited for a read for so long, and still does.
    pub(crate) fn read_stalls(
        &self,
        manifest: &str,
        object: &Digest,
        offset: u64,
        size: usize,
        waited: Duration,
    ) {
        let waited = go_duration(waited);
        let message =
            format!("a process waits for more than {waited} for a read of content that is not here");
        let event = Event::new(EventKind::Degraded, "read-stalled", message)
            .with("object", object)
            .with("offset", offset)
            .with("size", size)
            .with("waited", waited);
        self.tell("", manifest, event);
    }

    /// What somebody signed is not believed.
    pub(crate) fn untrusted(&self, what: &str, error: &VerifyError) {
        let reason = match error {
            VerifyError::UnknownKey(_) => "untrusted-key",
            VerifyError::Mismatch => "wrong-signature",
        };
        let message = format!(
            "{what} is not believed: {error}. If it is your fetcher's, add its public key (`sluice config key`) to \
             frontend.trusted_keys"
        );
        self.tell("", "", Event::new(EventKind::Degraded, reason, message));
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

    /// Content is refused for want of quota: who reads it waits.
    pub(crate) fn quota(&self, manifest: &str, refused: &Refused) {
        let event = Event::new(EventKind::Quota, "content-quota", refused.message.clone())
            .with("metric", &refused.metric)
            .with("limit", &refused.limit)
            .with("retry_seconds", refused.retry.as_secs());
        self.tell("", manifest, event);
    }

    /// What arrived is not what was asked for; it was dropped.
    pub(crate) fn corrupt(&self, manifest: &str, digest: &Digest) {
        let message = format!("content {digest} arrived corrupt: dropped, and fetched again elsewhere");
        let event = Event::new(EventKind::Degraded, "corrupt-content", message).with("digest", digest);
        self.tell("", manifest, event);
    }

    fn tell(&self, reference: &str, manifest: &str, event: Event) {
        let image = self.known.name_of(&as_asked(reference), manifest);
        self.events.tell(Event {
            service: "frontend".to_owned(),
            node: self.node.clone(),
            pods: self.known.pods_of(&image),
            image,
            manifest_digest: manifest.to_owned(),
            ..event
        });
    }
}

/// Reason and message.
fn how_far(image: &str, progress: &ImportProgress) -> (&'static str, String) {
    let (done, total) = (u128::from(progress.compressed_done), u128::from(progress.compressed_total));
    match (done * 100).checked_div(total) {
        _ if progress.queued => {
            ("import-queued", format!("Image {image} waits for its import: others are imported first."))
        }
        Some(percent) => {
            let message =
                format!("Image {image} is being imported: {percent} % of {total} bytes have been read.");
            ("image-importing", message)
        }
        None => ("image-importing", format!("Image {image} is being imported.")),
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
    fn how_far_an_import_is_is_told_in_percent_whatever_the_numbers() {
        let told = |compressed_done, compressed_total, queued| {
            let progress =
                ImportProgress { compressed_done, compressed_total, queued, ..ImportProgress::default() };
            how_far("a:1", &progress).1
        };
        assert_eq!(told(30, 120, false), "Image a:1 is being imported: 25 % of 120 bytes have been read.");
        let all = "Image a:1 is being imported: 100 % of 18446744073709551615 bytes have been read.";
        assert_eq!(told(u64::MAX, u64::MAX, false), all);
        assert_eq!(told(5, 0, false), "Image a:1 is being imported.");
        assert_eq!(told(0, 0, true), "Image a:1 waits for its import: others are imported first.");
    }

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
