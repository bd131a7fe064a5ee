//! Images for containerd: brought when a layer of one is about to be fetched, stacked when a container of
//! one is made. containerd mounts by itself, so there is no target here.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use image::ImageRecord;
use proto::ResolveRequest;
use tokio::time::timeout;
use tonic::Status;

use super::resolve::{Answered, manifest_digest};
use super::{Images, disk_status};
use crate::mount::Above;

/// What all helpers and plugins may take together, while a pull waits.
const CREDENTIAL_MAX: Duration = Duration::from_secs(30);

/// What happens if an image does not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// containerd can pull it meanwhile: it does not stand in a queue behind others' imports.
    OrPulled,
    /// containerd believes that it is here: a container does not start.
    Required,
}

impl Images {
    /// Asks the mesh for the image, imports included, and makes it present. The caller claims it first: what nobody claims may be evicted.
    pub(crate) async fn stream(
        &self,
        mut request: ResolveRequest,
        need: Need,
    ) -> Result<Arc<ImageRecord>, Status> {
        if self.node.shutdown.is_cancelled() {
            return Err(Status::unavailable("the node is ending"));
        }
        let asked = Instant::now();
        self.sign(&mut request);
        request.credential = self.credential(&request.reference).await;
        let queue = match need {
            Need::OrPulled => self.node.config.import_queue_timeout,
            Need::Required => self.node.config.import_timeout,
        };
        let answered = self.resolve(&request, queue, |_| ()).await?;
        let record = Arc::new(answered.record.clone());
        drop(self.bring(request, answered, asked).await?);
        Ok(record)
    }

    /// Says in whose name an image is asked for.
    pub(super) fn sign(&self, request: &mut ResolveRequest) {
        let config = &self.node.config;
        request.node.clone_from(&config.node);
        if request.project.is_empty() {
            request.project = config.project.to_string();
        }
        request.asker = Some(config.asker(&request.project));
    }

    /// What this node may show the registry for the image.
    pub(super) async fn credential(&self, reference: &str) -> Option<proto::Credential> {
        let found = timeout(CREDENTIAL_MAX, self.node.credentials.look_up(reference)).await;
        let found = found.unwrap_or_else(|_| {
            tracing::warn!(reference, ?CREDENTIAL_MAX, "no credential was found in time: asking without one");
            None
        });
        Some(found?.into_proto())
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.node.shutdown.is_cancelled()
    }

    pub(crate) fn is_here(&self, manifest: &str) -> bool {
        self.present().contains_key(manifest)
    }

    /// Whether the image is here, and will be as long as the caller claims it.
    pub(crate) async fn stays(&self, manifest: &str) -> bool {
        // An eviction that began before the claim is over then.
        let _turn = self.node.turns.take(manifest).await;
        self.get(manifest).is_ok()
    }

    /// What a container's root stands on, mounted and ready: the image as one folder, with the layers `above` it that belong to that.
    /// An image that an earlier process brought is read from the disk, without asking anybody.
    pub(crate) async fn stack(&self, manifest: &str, above: Option<Above>) -> Result<PathBuf, Status> {
        let image = self.get(manifest)?;
        let turn = match image.content {
            Some(_) => self.node.turns.take(manifest).await,
            None if self.rests(manifest) => self.node.turns.take(manifest).await,
            None => self.bring_kept(manifest, &image.reference, &image.record).await?,
        };
        let tree = image.record.tree.digest;
        let images = self.clone();
        let merged = self.whole("stacking the image", async move {
            // Held to the end: an eviction would take the tree away again.
            let _turn = turn;
            images
                .blocking(move |node| {
                    Ok(node.mounts.add_merged(&tree, &node.objects.tree_path(&tree), above)?)
                })
                .await
        });
        let merged = merged.await?;
        if let Some(image) = self.present().get_mut(manifest) {
            image.last_used = SystemTime::now();
        }
        Ok(merged)
    }

    /// The same for the lowest `layers` of an image, whose chain id is `part`: other images may consist of them. Asks the
    /// mesh the first time, under the grant of the whole.
    pub(crate) async fn stack_part(
        &self,
        manifest: &str,
        layers: u32,
        part: &str,
        above: Option<Above>,
    ) -> Result<PathBuf, Status> {
        if self.get(part).is_err() {
            let whole = self.get(manifest)?;
            let request = ResolveRequest {
                project: whole.record.project.clone(),
                reference: whole.reference.clone(),
                layers,
                grant: Some(self.grant_of(manifest, whole.content.as_ref()).await?),
                ..ResolveRequest::default()
            };
            let record = self.stream(request, Need::Required).await?;
            if record.manifest_digest != part {
                let found = &record.manifest_digest;
                return Err(Status::data_loss(format!(
                    "the lowest {layers} layers of {manifest} are {found}, not {part}"
                )));
            }
        }
        self.stack(part, above).await
    }

    /// Takes away what was merged for the snapshot of this number, of whichever image.
    pub(crate) fn unstack(&self, id: u64) -> std::io::Result<()> {
        self.node.mounts.remove_merged_below(id).map_err(std::io::Error::other)
    }

    /// A start of the image begins: what it reads becomes its profile.
    pub(crate) fn begin_start(&self, manifest: &str) {
        self.report_start(manifest);
    }

    /// Bytes of the image that are on this node's disk.
    pub(crate) fn local_bytes(&self, manifest: &str) -> u64 {
        self.progress_of(manifest).map_or(0, |progress| progress.bytes_local)
    }

    /// Makes an image present from what is on the disk, its grant included.
    pub(super) async fn bring_kept(
        &self,
        manifest: &str,
        reference: &str,
        record: &Arc<ImageRecord>,
    ) -> Result<super::turns::Turn, Status> {
        let hex = manifest_digest(manifest)?.hex().to_owned();
        let (signed, grant) = self
            .blocking(move |node| {
                let signed = node.objects.record(&hex);
                let signed = signed.map_err(|error| disk_status("read the record", &error))?;
                Ok(signed.zip(Some(node.kept_grant(&hex))))
            })
            .await?
            .ok_or_else(|| Status::not_found(format!("no record of {manifest} on this node")))?;
        let request = ResolveRequest {
            project: record.project.clone(),
            reference: reference.to_owned(),
            node: self.node.config.node.clone(),
            layers: layers_of_part(record),
            ..ResolveRequest::default()
        };
        let remembered = Answered::from_memory(ImageRecord::clone(record), signed, grant);
        self.bring(request, remembered, Instant::now()).await
    }
}

/// How many layers to ask for: 0, all of them, unless the record is of a part, which its own chain id names.
fn layers_of_part(record: &ImageRecord) -> u32 {
    let chains = image::chain_ids(record.layers.iter().map(|layer| layer.diff_id.as_str()));
    let is_part = chains.last().is_some_and(|chain| chain == record.manifest_digest);
    if is_part { record.layers.len() as u32 } else { 0 }
}
