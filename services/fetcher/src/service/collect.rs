//! collect: deletes stored content that no image names.
//!
//! Mark, then sweep. Marked is what any believed image record names: its tree and map, the chunks of
//! its map, the records of its layers and all chunks of those (a known layer must stay whole, or an
//! image imported from its record would not be). Swept is the rest, once it is older than the grace:
//! an import that was cut short may go on soon. While imports run, nothing is collected ([`marker`]).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::TryStreamExt;
use image::{ImageRecord, Map};
use proto::{CollectReply, CollectRequest};
use store::{Index, Kind, ProjectStore, Stored, verify};
use tonic::Status;

use super::Service;
use super::seeding::repositories;
use crate::marker::{self, Busy};

/// Deletions at the same time.
const DELETES_AT_ONCE: usize = 16;

/// What must stay, by kind and name.
#[derive(Debug, Default)]
struct Marked(HashSet<(Kind, [u8; 32])>);

impl Service {
    pub(super) async fn collect(self: Arc<Self>, request: CollectRequest) -> Result<CollectReply, Status> {
        let project = self.project(&request.project)?;
        let busy = |busy: Busy| match busy {
            Busy::Store(error) => Status::from(error),
            busy => Status::unavailable(format!("collect {}: {busy}", project.name())),
        };
        let marker = marker::collecting(&project, &self.tasks).await.map_err(busy)?;
        let collected = self.mark_and_sweep(&project, &request).await;
        marker.release().await;
        collected
    }

    async fn mark_and_sweep(
        &self,
        project: &ProjectStore,
        request: &CollectRequest,
    ) -> Result<CollectReply, Status> {
        let oldest_kept = SystemTime::now().checked_sub(Duration::from_secs(request.grace_seconds.into()));
        let mut marked = Marked::default();
        for record in self.all_records(project).await? {
            self.mark(project, &record, &mut marked).await?;
        }
        let expired = |stored: &Stored| oldest_kept.is_some_and(|limit| stored.modified <= limit);
        let mut reply = CollectReply::default();
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Image) {
            sweep(project, kind, &marked, &expired, request.dry_run, &mut reply).await?;
        }
        tracing::info!(
            project = project.name(),
            deleted = reply.deleted,
            deleted_bytes = reply.deleted_bytes,
            kept = reply.kept,
            dry_run = request.dry_run,
            "collected"
        );
        Ok(reply)
    }

    async fn mark(
        &self,
        project: &ProjectStore,
        record: &ImageRecord,
        marked: &mut Marked,
    ) -> Result<(), Status> {
        let manifest = record.manifest_digest.trim_start_matches("sha256:");
        marked.keep_hex(Kind::Source, manifest);
        marked.keep_hex(Kind::Profile, manifest);
        for repository in repositories(record) {
            marked.keep_hex(Kind::Repository, &repository);
        }
        marked.0.insert((Kind::Tree, *record.tree.digest.as_bytes()));
        marked.0.insert((Kind::Map, *record.map.digest.as_bytes()));
        for chunk in self.map(project, record).await?.chunks {
            marked.0.insert((Kind::Chunk, *chunk.digest.as_bytes()));
        }
        for layer in &record.layers {
            marked.keep_hex(Kind::Layer, layer.diff_id.trim_start_matches("sha256:"));
            let Some(layer) = self.records.layer(project, &layer.diff_id).await? else { continue };
            for chunk in layer.chunks {
                marked.0.insert((Kind::Chunk, *chunk.digest.as_bytes()));
            }
        }
        Ok(())
    }

    /// An image's map. Without it nobody knows what the image names, and nothing may go.
    async fn map(&self, project: &ProjectStore, record: &ImageRecord) -> Result<Map, Status> {
        let digest = record.map.digest;
        let refuse = |reason: String| {
            let image = record.references.first().unwrap_or(&record.manifest_digest);
            Status::failed_precondition(format!(
                "collect: the map of {image} must be repaired first: {reason}"
            ))
        };
        let stored = match project.index(Index::Map, digest).await {
            Err(error) if error.is_not_found() => return Err(refuse(error.to_string())),
            stored => stored?,
        };
        let plain = verify::open_index(&digest, &stored).map_err(|error| refuse(error.to_string()))?;
        Map::decode(&plain).map_err(|error| refuse(error.to_string()))
    }
}

impl Marked {
    fn keep_hex(&mut self, kind: Kind, hex: &str) {
        if let Some(name) = bytes_of(hex) {
            self.0.insert((kind, name));
        }
    }

    fn keeps(&self, stored: &Stored) -> bool {
        bytes_of(&stored.hex).is_none_or(|name| self.0.contains(&(stored.kind, name)))
    }
}

fn bytes_of(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(hex, &mut bytes).ok()?;
    Some(bytes)
}

async fn sweep(
    project: &ProjectStore,
    kind: Kind,
    marked: &Marked,
    expired: &(dyn Fn(&Stored) -> bool + Sync),
    dry_run: bool,
    reply: &mut CollectReply,
) -> Result<(), Status> {
    let mut kept = 0;
    let deleted = project
        .list(kind)
        .try_filter(|stored| {
            let stays = marked.keeps(stored) || !expired(stored);
            kept += u64::from(stays);
            std::future::ready(!stays)
        })
        .map_ok(|stored| async move {
            if !dry_run {
                project.delete(&stored).await?;
            }
            Ok(stored.size)
        })
        .try_buffer_unordered(DELETES_AT_ONCE)
        .try_fold((0, 0), |(count, bytes), size| std::future::ready(Ok((count + 1, bytes + size))));
    let (count, bytes) = deleted.await?;
    reply.deleted += count;
    reply.deleted_bytes += bytes;
    reply.kept += kept;
    Ok(())
}
