//! list, remove: the images that the store holds.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use image::ImageRecord;
use proto::{ImageSummary, ListReply, ListRequest, RemoveReply, RemoveRequest};
use store::ProjectStore;
use tonic::Status;

use super::Service;
use crate::source::ImageName;

/// Records read at the same time.
const READS_AT_ONCE: usize = 16;

impl Service {
    pub(super) async fn list(self: Arc<Self>, request: ListRequest) -> Result<ListReply, Status> {
        let project = self.project(&request.project)?;
        let images = self.all_records(&project).await?.iter().map(summary).collect();
        Ok(ListReply { images })
    }

    /// Forgets every image of that name, or the one of that digest.
    pub(super) async fn remove(self: Arc<Self>, request: RemoveRequest) -> Result<RemoveReply, Status> {
        let project = self.project(&request.project)?;
        let asked = request.image;
        // As it was noted at the import: the name in full.
        let name = asked.parse::<ImageName>().map(|name| name.to_string());
        let mut removed = Vec::new();
        for record in self.all_records(&project).await? {
            let named = name.as_ref().is_ok_and(|name| record.references.contains(name));
            if named || record.manifest_digest == asked {
                project.delete_image(&record.manifest_digest).await?;
                removed.push(record.manifest_digest);
            }
        }
        match removed.is_empty() {
            true => {
                Err(Status::not_found(format!("{asked}: no such image in the project {}", project.name())))
            }
            false => Ok(RemoveReply { manifest_digests: removed }),
        }
    }

    /// All records that are believed, sorted by digest.
    pub(super) async fn all_records(&self, project: &ProjectStore) -> Result<Vec<ImageRecord>, Status> {
        let mut manifests = project.images().await?;
        manifests.sort();
        let reads: Vec<_> = manifests.iter().map(|manifest| self.records.image(project, manifest)).collect();
        let images: Vec<_> = stream::iter(reads).buffered(READS_AT_ONCE).try_collect().await?;
        Ok(images.into_iter().flatten().map(|image| image.record).collect())
    }
}

pub(super) fn summary(record: &ImageRecord) -> ImageSummary {
    ImageSummary {
        references: record.references.clone(),
        manifest_digest: record.manifest_digest.clone(),
        tree: record.tree.digest.as_bytes().to_vec(),
        files: record.files,
        plain_bytes: record.plain_bytes,
        stored_bytes: record.stored_bytes,
        layers: record.layers.len() as u64,
        imported_unix: record.imported_unix,
    }
}
