//! Unmounting: asked of us, or done behind our back with `umount`.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use tonic::Status;

use super::{Images, Present};
use crate::mount::watch::Watch;
use crate::mount::{MountError, target};

/// Images at rest that stay in memory. A process that still holds a file of an unmounted root may read from
/// one; the longest unused beyond this many that are complete are dropped: each costs some MiB.
const RESTING_MAX: usize = 8;

impl Images {
    pub(crate) async fn unmount(&self, point: &str) -> Result<(), Status> {
        let point = point.to_owned();
        let point = self.blocking(move |_| Ok(target::resolve(&point)?)).await?;
        let images = self.clone();
        self.whole("the unmount", async move {
            let _turn = images.node.targets.lock().await;
            if !images.present().values().any(|image| image.targets.contains(&point)) {
                return Err(MountError::NotMounted(point).into());
            }
            let unmounted = point.clone();
            images.blocking(move |node| Ok(node.mounts.remove_root(&unmounted)?)).await?;
            images.release(&point);
            Ok(())
        })
        .await
    }

    /// Follows the mount table for as long as the node runs.
    pub(super) fn notice_unmounts(&self) -> anyhow::Result<()> {
        let watch = Watch::start().context("cannot watch the mount table")?;
        let (images, shutdown) = (self.clone(), self.node.shutdown.clone());
        self.node.tasks.spawn(async move {
            while let Some(()) = shutdown.run_until_cancelled(watch.changed()).await {
                if let Err(error) = images.compare_with_table().await {
                    tracing::warn!(%error, "the mount table cannot be read");
                }
                images.drop_resting().await;
            }
        });
        Ok(())
    }

    /// Takes this node's own mounts away at its end. Roots stay: they belong to those who asked for them.
    pub(crate) fn detach(&self) {
        if let Err(error) = self.node.mounts.detach_all() {
            tracing::warn!(error = format!("{error:#}"), "the node's own mounts stay behind");
        }
    }

    /// Releases every target that the table no longer has.
    pub(super) async fn compare_with_table(&self) -> Result<(), Status> {
        // Nobody mounts or unmounts meanwhile: the table and our list belong together.
        let _turn = self.node.targets.lock().await;
        let roots = self.blocking(|node| Ok(node.mounts.roots().map_err(MountError::from)?)).await?;
        let standing: BTreeSet<&Path> = roots.iter().map(|root| root.point.as_path()).collect();
        let ours: Vec<_> = self.present().values().flat_map(|image| image.targets.clone()).collect();
        for point in ours.iter().filter(|point| !standing.contains(point.as_path())) {
            self.release(point);
        }
        Ok(())
    }

    fn release(&self, point: &Path) {
        for (manifest, image) in self.present().iter_mut() {
            if image.targets.remove(point) {
                tracing::info!(image = manifest, path = %point.display(), "unmounted");
                image.last_used = SystemTime::now();
            }
        }
    }

    /// Keeps at most [`RESTING_MAX`] complete images that nothing mounts in memory. Not while anything is
    /// being mounted: then after the next unmount.
    async fn drop_resting(&self) {
        let Some(_alone) = self.node.turns.alone(Duration::ZERO).await else { return };
        let resting = |(manifest, image): &(String, Present)| {
            image.targets.is_empty()
                && !self.node.is_in_use(manifest)
                && image.content.is_some()
                && self.progress_of(manifest).is_ok_and(|progress| progress.complete)
        };
        let mut resting: Vec<_> = self.list().into_iter().filter(resting).collect();
        resting.sort_by_key(|(_, image)| image.last_used);
        let beyond = resting.len().saturating_sub(RESTING_MAX);
        for (manifest, image) in resting.into_iter().take(beyond) {
            self.unload(&manifest);
            self.node.mounts.remove_tree(&image.record.tree.digest);
            if let Some(image) = self.present().get_mut(&manifest) {
                image.content = None;
            }
        }
    }
}
