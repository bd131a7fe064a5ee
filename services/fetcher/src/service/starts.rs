//! report: what one start read; and the profile that is learned from all of them.
//!
//! A profile is a hint: one that cannot be read is begun anew, and none is no failure. Who writes a history at the same moment
//! as another, a report or the work on what starts read, may lose what the other wrote.

use std::collections::HashSet;
use std::sync::Arc;

use image::{Digest, Profile};
use proto::{ReportReply, ReportRequest};
use store::{ProjectStore, StoreError};
use tonic::Status;

use super::Service;
use super::seeding::map;
use crate::profile::History;

impl Service {
    pub(super) async fn report(self: Arc<Self>, request: ReportRequest) -> Result<ReportReply, Status> {
        let project = self.project(&request.project)?;
        let manifest = &request.manifest_digest;
        let start = Profile::decode(&request.profile)
            .map_err(|error| Status::invalid_argument(format!("report a start of {manifest}: {error}")))?;
        let image = self.records.image(&project, manifest).await?;
        let image =
            image.ok_or_else(|| Status::not_found(format!("report a start of {manifest}: no such image")))?;
        let map = map(&project, &image.record).await;
        let map =
            map.map_err(|error| Status::unavailable(format!("report a start of {manifest}: {error:#}")))?;
        // Nothing but the image's own is worth anybody's work.
        let own: HashSet<Digest> = map.chunks.iter().map(|chunk| chunk.digest).collect();
        let read: Vec<Digest> = start.chunks.into_iter().filter(|chunk| own.contains(chunk)).collect();
        let mut history = history(&project, manifest).await?;
        history.add(&read);
        let encoded = history.encode().map_err(|error| Status::internal(error.to_string()))?;
        project.put_profile(manifest, encoded.into()).await?;
        if history.starts() == 1 {
            self.note_started(&project, &image.record).await;
        }
        self.recompress_later(&project, manifest, &history, &history.profile());
        Ok(ReportReply {})
    }

    /// The encoded profile; empty when there is none.
    pub(super) async fn profile(self: &Arc<Self>, project: &ProjectStore, manifest: &str) -> Vec<u8> {
        let profile = match history(project, manifest).await {
            Ok(history) => {
                let profile = history.profile();
                self.recompress_later(project, manifest, &history, &profile);
                profile
            }
            Err(error) => {
                tracing::warn!(manifest, %error, "a profile could not be read");
                return Vec::new();
            }
        };
        if profile.chunks.is_empty() {
            return Vec::new();
        }
        profile.encode().unwrap_or_default()
    }
}

pub(super) async fn history(project: &ProjectStore, manifest: &str) -> Result<History, StoreError> {
    match project.profile(manifest).await {
        Ok(stored) => Ok(History::decode(&stored).unwrap_or_else(|error| {
            tracing::warn!(manifest, %error, "what was learned of an image's starts is forgotten");
            History::default()
        })),
        Err(error) if error.is_not_found() => Ok(History::default()),
        Err(error) => Err(error),
    }
}
