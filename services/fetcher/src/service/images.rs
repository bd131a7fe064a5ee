//! list, remove: the images that the store holds.

use std::sync::Arc;

use futures::{StreamExt, stream};
use image::ImageRecord;
use names::{ImageName, ManifestDigest};
use proto::{ImageSummary, ListReply, ListRequest, RefusedRecord, RemoveReply, RemoveRequest};
use store::ProjectStore;
use tonic::Status;

use super::Service;
use crate::records::{Looked, Refusal};

/// Records read at the same time.
const READS_AT_ONCE: usize = 16;

/// A stored record that does not count, and by which digest it stands in the store.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) digest: String,
    pub(super) refusal: Refusal,
}

/// All image records of a project, sorted by digest.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) believed: Vec<ImageRecord>,
    pub(super) refused: Vec<Refused>,
}

impl Service {
    pub(super) async fn list(self: Arc<Self>, request: ListRequest) -> Result<ListReply, Status> {
        let project = self.project(&request.project)?;
        let records = self.all_records(&project).await?;
        let refused = records.refused.iter().map(|refused| RefusedRecord {
            digest: refused.digest.clone(),
            reason: refused.refusal.to_string(),
        });
        Ok(ListReply { images: records.believed.iter().map(summary).collect(), refused: refused.collect() })
    }

    /// Forgets every image of that name, or the one of that digest.
    pub(super) async fn remove(self: Arc<Self>, request: RemoveRequest) -> Result<RemoveReply, Status> {
        let project = self.project(&request.project)?;
        let asked = request.image;
        // As it was noted at the import: the name in full.
        let name = asked.parse::<ImageName>().map(|name| name.to_string());
        let records = self.all_records(&project).await?;
        let mut removed = Vec::new();
        for record in records.believed {
            let named = name.as_ref().is_ok_and(|name| record.references.contains(name));
            if named || record.manifest_digest == asked {
                note_removed(&project, &record.manifest_digest).await;
                project.delete_image(&record.manifest_digest).await?;
                removed.push(record.manifest_digest);
            }
        }
        if removed.is_empty() {
            removed.extend(self.remove_refused(&project, &asked, &records.refused, request.force).await?);
        }
        if removed.is_empty() {
            let unknown = match records.refused.len() {
                0 => String::new(),
                count => format!(
                    "; {count} records are not believed, so their names are not known: `sluice ls` lists them"
                ),
            };
            let message = format!("{asked}: no such image in the project {}{unknown}", project.name());
            return Err(Status::not_found(message));
        }
        Ok(RemoveReply { manifest_digests: removed })
    }

    /// Forgets a record that is not believed, of an image or of a layer. What it names then goes with the next collection, so
    /// somebody must have said that it is no use to anybody.
    async fn remove_refused(
        &self,
        project: &ProjectStore,
        digest: &str,
        images: &[Refused],
        force: bool,
    ) -> Result<Option<String>, Status> {
        let of_image = images.iter().find(|refused| refused.digest == digest);
        let of_layer = match of_image {
            None if ManifestDigest::is(digest) => self.records.look_up_layer(project, digest).await,
            _ => Looked::Absent,
        };
        let (kind, reason) = match (of_image, of_layer) {
            (Some(refused), _) => ("image", refused.refusal.to_string()),
            (None, Looked::Refused(refusal)) => ("layer", refusal.to_string()),
            (None, _) => return Ok(None),
        };
        if !force {
            return Err(Status::failed_precondition(format!(
                "{digest}: the {kind} record is not believed ({reason}), so it may be in use elsewhere: `--force` forgets it"
            )));
        }
        match kind {
            "image" => project.delete_image(digest).await?,
            _ => project.delete_layer(digest).await?,
        }
        tracing::warn!(project = project.name(), digest, reason, "forgot a record that is not believed");
        Ok(Some(digest.to_owned()))
    }

    pub(super) async fn all_records(&self, project: &ProjectStore) -> Result<Records, Status> {
        let mut manifests = project.images().await?;
        manifests.sort();
        let reads: Vec<_> =
            manifests.iter().map(|manifest| self.records.look_up_image(project, manifest)).collect();
        let looked: Vec<_> = stream::iter(reads).buffered(READS_AT_ONCE).collect().await;
        let mut records = Records::default();
        for (digest, looked) in manifests.into_iter().zip(looked) {
            match looked {
                // Removed since the listing.
                Looked::Absent => {}
                Looked::Believed(image) => records.believed.push(image.record),
                Looked::Refused(refusal) => records.refused.push(Refused { digest, refusal }),
            }
        }
        Ok(records)
    }
}

/// Without the note the next collection may ask whether so much is to go. On a store that is full it cannot be written, and that
/// is no reason to keep the image.
async fn note_removed(project: &ProjectStore, manifest: &str) {
    let note = async { project.put_removed(manifest, project.image(manifest).await?).await };
    if let Err(error) = note.await {
        tracing::warn!(%error, "the next collection will not know that this image was removed");
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
