//! The right to read what is still missing of an image: renewed in time for as long as that takes.
//!
//! What has expired is renewed before it is used, also while an image is being opened ([`Images::renewer`]). A grant is kept beside the image's record, so that a restarted frontend goes on without anybody's credential.

use std::sync::Arc;
use std::time::Duration;

use image::ImageRecord;
use prost::Message as _;
use proto::{Grant, ResolveRequest, Signed};
use tokio::time::{Instant, sleep};
use tonic::Status;

use super::resolve::{Patience, away, manifest_digest};
use super::{Images, Node};
use crate::content::{Content, Renewer, left_of};

/// How often a grant is looked at, at least: an image that is complete, or gone, needs none.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Between two looks, at least.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

impl Images {
    /// How the grant of an image is renewed: for the grant of before, or as if the image were asked for anew.
    pub(super) fn renewer(&self, record: &ImageRecord, request: &ResolveRequest) -> Renewer {
        // The credential is of whoever asked first; not ours to keep.
        let request = Arc::new(ResolveRequest { credential: None, ..request.clone() });
        // An image is part of the node, and this is part of the image.
        let (node, record) = (Arc::downgrade(&self.node), Arc::new(record.clone()));
        Arc::new(move |grant| {
            let (node, record, request) = (node.clone(), record.clone(), request.clone());
            Box::pin(async move {
                let node = node.upgrade().ok_or_else(|| Status::unavailable("the node is ending"))?;
                Images { node }.renewed(&record, grant, &request).await
            })
        })
    }

    /// Renews the grant of an image that was just opened, until nothing is missing of it or it is closed.
    pub(super) fn keep_granted(&self, manifest: &str, content: Content) {
        let (images, manifest, shutdown) = (self.clone(), manifest.to_owned(), self.node.shutdown.clone());
        let work = async move { images.renew_while_open(&manifest, &content).await };
        self.node.tasks.spawn(async move { shutdown.run_until_cancelled_owned(work).await });
    }

    async fn renew_while_open(&self, manifest: &str, content: &Content) {
        let (mut grant, mut pause) = (content.grant(), LOOK_PAUSE);
        let mut due = Some(Instant::now() + left_of(&grant) / 2);
        loop {
            if due.is_some_and(|due| due <= Instant::now()) {
                match content.renewed().await {
                    // By this machine's clock it has expired already: no use in asking every second.
                    Ok(newer) if left_of(&newer).is_zero() => pause = LOOK_EVERY.min(pause * 2),
                    Ok(_) => pause = LOOK_PAUSE,
                    Err(error) => {
                        tracing::warn!(image = manifest, %error, "no grant for an image of this node");
                        pause = LOOK_EVERY.min(pause * 2);
                        // Refused, until somebody pulls it again with a credential that counts.
                        due = away(&error).then(|| Instant::now() + pause);
                    }
                }
            }
            let now = content.grant();
            if now != grant {
                self.keep_grant(manifest, &now).await;
                due = Some(Instant::now() + pause.max(left_of(&now) / 2));
                grant = now;
            }
            let wait = due.map_or(LOOK_EVERY, |due| due.saturating_duration_since(Instant::now()));
            sleep(wait.clamp(LOOK_PAUSE, LOOK_EVERY)).await;
            if !self.is_open(manifest, content) {
                return;
            }
        }
    }

    /// Whether bytes are still to come for the image, by this way.
    fn is_open(&self, manifest: &str, content: &Content) -> bool {
        let open =
            self.get(manifest).ok().and_then(|image| image.content).is_some_and(|open| open.is(content));
        open && !self.progress_of(manifest).is_ok_and(|progress| progress.complete)
    }

    /// For the grant of before; without one that counts, with what the node has for the registry.
    async fn renewed(
        &self,
        record: &ImageRecord,
        grant: Signed,
        request: &ResolveRequest,
    ) -> Result<Signed, Status> {
        let timeout = self.node.config.resolve_timeout;
        if !grant.payload.is_empty() {
            let node = &self.node.config.node;
            let image = self.in_registry(record, &grant, request).await;
            match self.node.resolver.renew(record, node, grant, image, timeout).await {
                Err(error) if !away(&error) => {
                    tracing::info!(image = record.manifest_digest, %error, "asking for a grant as for a new image");
                }
                other => return other,
            }
        }
        let credential = self.credential(&request.reference).await;
        let request = ResolveRequest { credential, ..request.clone() };
        let answered = self.node.resolver.resolve(&request, Patience::of(timeout), |_| ()).await?;
        if answered.record.manifest_digest != record.manifest_digest {
            let message = format!("{} means another image by now", request.reference);
            return Err(Status::failed_precondition(message));
        }
        Ok(answered.grant)
    }

    /// How an image is reached in the registry that showed it, with what this node has for that now.
    async fn in_registry(
        &self,
        record: &ImageRecord,
        grant: &Signed,
        request: &ResolveRequest,
    ) -> ResolveRequest {
        let repository =
            Grant::decode(&*grant.payload).map_or_else(|_| String::new(), |grant| grant.repository);
        let reference = if repository.is_empty() { request.reference.clone() } else { repository };
        ResolveRequest {
            project: record.project.clone(),
            node: self.node.config.node.clone(),
            credential: self.credential(&reference).await,
            plain_http: request.plain_http,
            reference,
            ..ResolveRequest::default()
        }
    }

    /// The grant that an image of this node is read under, or was.
    pub(super) async fn grant_of(&self, manifest: &str, content: Option<&Content>) -> Result<Signed, Status> {
        if let Some(content) = content {
            return Ok(content.grant());
        }
        let hex = manifest_digest(manifest)?.hex().to_owned();
        self.blocking(move |node| Ok(node.kept_grant(&hex))).await
    }

    async fn keep_grant(&self, manifest: &str, grant: &Signed) {
        let (name, grant) = (manifest.to_owned(), grant.encode_to_vec());
        let kept = self.blocking(move |node| {
            let digest = manifest_digest(&name)?;
            let hex = digest.hex();
            node.objects.put_grant(hex, &grant).map_err(|error| super::disk_status("keep the grant", &error))
        });
        if let Err(error) = kept.await {
            // It counts until the next restart.
            tracing::warn!(image = manifest, %error, "the grant is not kept");
        }
    }
}

impl Node {
    /// The grant that is on the disk; an empty one when there is none.
    pub(super) fn kept_grant(&self, manifest_hex: &str) -> Signed {
        let kept = self.objects.grant(manifest_hex).ok().flatten();
        kept.and_then(|kept| Signed::decode(&*kept).ok()).unwrap_or_default()
    }
}
