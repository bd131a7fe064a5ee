//! Taking images off the node: asked of us, or because the disk's budget is used up.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::sleep;
use tonic::Status;

use super::resolve::manifest_hex;
use super::{Images, Node, Present, disk_status};
use crate::budget::{self, Resident};
use crate::downloads::ImageId;
use crate::metrics;
use crate::objects::Names;

/// How often the disk is compared with its budget.
const BUDGET_EVERY: Duration = Duration::from_secs(10);
/// How long an eviction that somebody asked for waits for mounts that are being made.
const EVICT_WAIT: Duration = Duration::from_secs(30);

impl Images {
    /// Takes one image off the node; refused while it is mounted. Returns the bytes that this freed.
    pub(crate) async fn evict(&self, manifest: &str) -> Result<u64, Status> {
        let busy = || Status::unavailable("images are being mounted: try again");
        let alone = self.node.turns.alone(EVICT_WAIT).await.ok_or_else(busy)?;
        self.compare_with_table().await?;
        if self.node.is_claimed(manifest) {
            return Err(Status::failed_precondition(format!(
                "{manifest} is an image of the container runtime: remove it there"
            )));
        }
        if let Some(target) = self.get(manifest)?.targets.first() {
            return Err(Status::failed_precondition(format!(
                "{manifest} is mounted at {}",
                target.display()
            )));
        }
        let (images, manifest) = (self.clone(), manifest.to_owned());
        self.whole("the eviction", async move {
            let _alone = alone;
            let residents = images.list();
            let evicting = images.clone();
            images
                .blocking(move |node| {
                    let residents = node.residents(residents.into_iter())?;
                    let indexes = evicting.forget(&manifest)?;
                    let objects = budget::remove_only_of(&ImageId::new(&manifest), &node.objects, &residents);
                    Ok(indexes + objects.map_err(|error| Status::internal(format!("{error:#}")))?)
                })
                .await
        })
        .await
    }

    /// Keeps the disk within its budget for as long as the node runs.
    pub(super) fn keep_budget(&self) {
        let (images, shutdown) = (self.clone(), self.node.shutdown.clone());
        self.node.tasks.spawn(async move {
            images.measure_disk().await;
            while shutdown.run_until_cancelled(sleep(BUDGET_EVERY)).await.is_some() {
                images.give_up_rest().await;
                if images.node.objects.used() <= images.node.config.disk_budget.as_u64() {
                    continue;
                }
                // While something is being mounted there is no saying what is needed: the next time, then.
                let Some(alone) = images.node.turns.alone(Duration::ZERO).await else { continue };
                if let Err(error) = images.enforce_budget().await {
                    tracing::error!(error = error.message(), "the disk cannot be kept within its budget");
                }
                drop(alone);
            }
        });
    }

    /// What an earlier process left counts, too. A node may hold a million objects, so nobody waits for it.
    async fn measure_disk(&self) {
        let measured = self.blocking(|node| {
            node.objects.measure().map_err(|error| disk_status("measure what is on the disk", &error))
        });
        match measured.await {
            Ok(used) => metrics::disk_used(used),
            Err(error) => tracing::error!(error = error.message(), "the disk's use is not known"),
        }
    }

    async fn enforce_budget(&self) -> Result<(), Status> {
        self.compare_with_table().await?;
        let (images, residents) = (self.clone(), self.list());
        self.blocking(move |node| {
            let residents = node.residents(residents.into_iter())?;
            let budget = node.config.disk_budget.as_u64();
            let forget = |image: &ImageId| {
                images.forget(image.as_str())?;
                tracing::info!(image = image.as_str(), "evicted for the disk's budget");
                Ok(())
            };
            let freed = budget::enforce(&node.objects, budget, &residents, forget);
            let freed = freed.map_err(|error| Status::internal(format!("{error:#}")))?;
            tracing::info!(freed, used = node.objects.used(), budget, "made room on the disk");
            Ok(())
        })
        .await
    }

    /// Takes an image out of memory, and its record and indexes off the disk. Blocking. Returns the bytes freed.
    fn forget(&self, manifest: &str) -> Result<u64, Status> {
        let image = self.get(manifest)?;
        self.unload(manifest);
        Handle::current().block_on(self.node.downloads.settled());
        self.present().remove(manifest);
        let (tree, map) = (image.record.tree.digest, image.record.map.digest);
        let shared = self.present().values().any(|other| other.record.tree.digest == tree);
        let node = &self.node;
        let remove = |hex: &str| -> std::io::Result<u64> {
            node.names.forget(manifest)?;
            let record = node.objects.remove_record(hex)? + node.objects.remove_grant(hex)?;
            if shared {
                return Ok(record);
            }
            node.mounts.remove_tree(&tree);
            Ok(record + node.objects.remove_indexes(&tree, &map)?)
        };
        remove(manifest_hex(manifest)?).map_err(|error| disk_status("forget the image", &error))
    }
}

impl Node {
    /// All images of the node with what they name: of those that are not at rest, from their maps on the disk.
    fn residents(&self, images: impl Iterator<Item = (String, Present)>) -> Result<Vec<Resident>, Status> {
        let mut residents = Vec::new();
        for (manifest, image) in images {
            let from_disk = || -> std::io::Result<Arc<Names>> {
                // Without a map nothing of it can be read either: its objects are needed by nobody.
                let map = self.objects.map(&image.record.map.digest)?.unwrap_or_default();
                Ok(Arc::new(self.objects.names(&map)?))
            };
            let names = self.known.at_rest(&manifest).map_or_else(from_disk, Ok);
            residents.push(Resident {
                id: ImageId::new(&manifest),
                names: names.map_err(|error| disk_status("look up what an image names", &error))?,
                mounted: !image.targets.is_empty() || self.is_claimed(&manifest),
                last_used: image.last_used,
            });
        }
        Ok(residents)
    }
}
