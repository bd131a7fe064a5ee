//! What must stay, and what may go because somebody removed the image that named it.
//!
//! | root | keeps |
//! |---|---|
//! | an image record, of a part of an image too | its tree and map, the chunks of its map, its source, profile and repositories; its layers' records |
//! | the record of a layer that an image has, or that is younger than the grace | all chunks of the layer: an import that knows a layer reads nothing of it again, so a record without its chunks would spoil an image. One that an earlier version wrote is read by no import and keeps nothing |
//!
//! A removed image's record says the same of what it named, and keeps nothing.

use std::collections::HashSet;

use futures::{StreamExt, TryStreamExt};
use image::{ImageRecord, Map};
use names::ManifestDigest;
use store::{Index, Kind, ProjectStore, Stored, verify};
use tonic::Status;

use super::super::Service;
use super::super::images::Refused;
use super::super::seeding::repositories;
use super::{refusal, unread};
use crate::records::Looked;

/// By kind and name.
#[derive(Debug, Default)]
pub(super) struct Marked(HashSet<(Kind, [u8; 32])>);

#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Whose records were read, by manifest digest.
    pub(super) images: HashSet<String>,
    /// Stays.
    pub(super) named: Marked,
    /// Was named by images that were removed.
    pub(super) removed: Marked,
}

impl Service {
    /// An error as long as one record is not believed.
    pub(super) async fn roots(
        &self,
        project: &ProjectStore,
        expired: &(dyn Fn(&Stored) -> bool + Sync),
    ) -> Result<Marks, Status> {
        let records = self.all_records(project).await.map_err(|status| unread(project, &status.message()))?;
        if !records.refused.is_empty() {
            return Err(refusal(project, "image", &records.refused));
        }
        let mut marks = Marks::default();
        for record in &records.believed {
            marks.images.insert(record.manifest_digest.clone());
            marks.named.keep_image(record);
            for chunk in self.map(project, record).await.map_err(|reason| no_map(record, &reason))?.chunks {
                marks.named.0.insert((Kind::Chunk, *chunk.digest.as_bytes()));
            }
        }
        self.mark_layers(project, expired, &mut marks.named).await?;
        self.mark_removed(project, &mut marks.removed).await?;
        Ok(marks)
    }

    /// Chunks of layers whose records stay.
    async fn mark_layers(
        &self,
        project: &ProjectStore,
        expired: &(dyn Fn(&Stored) -> bool + Sync),
        named: &mut Marked,
    ) -> Result<(), Status> {
        let mut refused = Vec::new();
        let mut layers = project.list(Kind::Layer).boxed();
        while let Some(stored) = layers.try_next().await.map_err(|error| unread(project, &error))? {
            if !named.keeps(&stored) && expired(&stored) {
                continue;
            }
            let digest = format!("sha256:{}", stored.hex);
            match self.records.look_up_layer(project, &digest).await {
                Looked::Absent => {}
                Looked::Believed(layer) => {
                    named.0.extend(layer.chunks.iter().map(|chunk| (Kind::Chunk, *chunk.digest.as_bytes())))
                }
                // Goes, and before its chunks; a young one may be written by a fetcher of that version, which would find it.
                Looked::Refused(refusal) if refusal.is_outdated() && expired(&stored) => {
                    named.forget(&stored)
                }
                Looked::Refused(refusal) => refused.push(Refused { digest, refusal }),
            }
        }
        match refused.is_empty() {
            true => Ok(()),
            false => Err(refusal(project, "layer", &refused)),
        }
    }

    /// As far as that is still known: what is missing is asked about.
    async fn mark_removed(&self, project: &ProjectStore, removed: &mut Marked) -> Result<(), Status> {
        let notes: Result<Vec<Stored>, _> = project.list(Kind::Removed).try_collect().await;
        let notes = notes.map_err(|error| unread(project, &error))?;
        for note in notes {
            let manifest = format!("sha256:{}", note.hex);
            let Ok(Some(image)) = self.records.removed_image(project, &manifest).await else { continue };
            removed.keep_image(&image.record);
            let chunks = self.map(project, &image.record).await.map(|map| map.chunks).unwrap_or_default();
            removed.0.extend(chunks.iter().map(|chunk| (Kind::Chunk, *chunk.digest.as_bytes())));
            for layer in &image.record.layers {
                if let Looked::Believed(layer) = self.records.look_up_layer(project, &layer.diff_id).await {
                    let chunks = layer.chunks.iter();
                    removed.0.extend(chunks.map(|chunk| (Kind::Chunk, *chunk.digest.as_bytes())));
                }
            }
        }
        Ok(())
    }

    async fn map(&self, project: &ProjectStore, record: &ImageRecord) -> Result<Map, String> {
        let digest = record.map.digest;
        let stored = project.index(Index::Map, digest).await.map_err(|error| error.to_string())?;
        let plain = verify::open_index(&digest, &stored).map_err(|error| error.to_string())?;
        Map::decode(&plain).map_err(|error| error.to_string())
    }
}

/// Without its map nobody knows what an image names.
fn no_map(record: &ImageRecord, reason: &str) -> Status {
    let image = record.references.first().unwrap_or(&record.manifest_digest);
    Status::failed_precondition(format!(
        "collect: the map of {image} must be repaired first, with `sluice import --verify {image}`, and nothing is deleted: {reason}"
    ))
}

impl Marked {
    fn keep_image(&mut self, record: &ImageRecord) {
        self.keep_digest(Kind::Source, &record.manifest_digest);
        self.keep_digest(Kind::Profile, &record.manifest_digest);
        for repository in repositories(record) {
            self.keep_hex(Kind::Repository, &repository);
        }
        self.0.insert((Kind::Tree, *record.tree.digest.as_bytes()));
        self.0.insert((Kind::Map, *record.map.digest.as_bytes()));
        for layer in &record.layers {
            self.keep_digest(Kind::Layer, &layer.diff_id);
        }
    }

    fn keep_digest(&mut self, kind: Kind, digest: &str) {
        if let Ok(digest) = digest.parse::<ManifestDigest>() {
            self.keep_hex(kind, digest.hex());
        }
    }

    fn keep_hex(&mut self, kind: Kind, hex: &str) {
        if let Some(name) = bytes_of(hex) {
            self.0.insert((kind, name));
        }
    }

    fn forget(&mut self, stored: &Stored) {
        if let Some(name) = bytes_of(&stored.hex) {
            self.0.remove(&(stored.kind, name));
        }
    }

    pub(super) fn keeps(&self, stored: &Stored) -> bool {
        bytes_of(&stored.hex).is_none_or(|name| self.0.contains(&(stored.kind, name)))
    }
}

pub(super) fn bytes_of(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(hex, &mut bytes).ok()?;
    Some(bytes)
}
