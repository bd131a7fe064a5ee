//! Images of which everything is local: their downloads' tables leave memory, however many containers run of them.
//!
//! What stays is which objects there are, in a file, for files that a process has had open since they were missing: those
//! are read through us.

use std::time::Duration;

use tokio::time::sleep;
use tonic::Status;

use super::{Images, disk_status};
use crate::content::Content;
use crate::downloads::ImageId;

/// How often a complete image is looked at while a start of it goes on, whose reads are its profile.
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl Images {
    /// Follows an image that was just opened until it is complete, or closed.
    pub(super) fn rest_when_complete(&self, manifest: &str, content: Content) {
        let (images, manifest, shutdown) = (self.clone(), manifest.to_owned(), self.node.shutdown.clone());
        let work = async move {
            if !images.node.downloads.completed(&ImageId::new(&manifest)).await {
                return;
            }
            images.renew_lookups(&manifest).await;
            images.tell_complete(&manifest);
            while images.starting(&manifest) {
                sleep(LOOK_EVERY).await;
            }
            images.rest(&manifest, &content).await;
        };
        self.node.tasks.spawn(async move { shutdown.run_until_cancelled_owned(work).await });
    }

    /// What roots of it looked up while it was incomplete would go on through us for as long as the kernel remembers it.
    async fn renew_lookups(&self, manifest: &str) {
        let _turn = self.node.turns.take(manifest).await;
        let Ok(image) = self.get(manifest) else { return };
        let renewed = self.blocking(move |node| Ok(node.mounts.renew_lookups(&image.record.tree.digest)?));
        if let Err(error) = renewed.await {
            tracing::warn!(
                image = manifest,
                error = error.message(),
                "files of a root are still read through us"
            );
        }
    }

    fn tell_complete(&self, manifest: &str) {
        let progress = self.node.downloads.progress(&ImageId::new(manifest));
        if let (Ok(image), Some(progress)) = (self.get(manifest), progress) {
            self.node.events.complete(&image.reference, manifest, &progress);
        }
    }

    async fn rest(&self, manifest: &str, content: &Content) {
        let _turn = self.node.turns.take(manifest).await;
        let same = |image: &super::Present| image.content.as_ref().is_some_and(|open| open.is(content));
        if !self.get(manifest).as_ref().is_ok_and(same) {
            return;
        }
        let Some(progress) = self.node.downloads.progress(&ImageId::new(manifest)) else { return };
        if let Err(status) = self.write_names(manifest).await {
            tracing::warn!(
                image = manifest,
                error = status.message(),
                "a complete image's map stays in memory"
            );
        }
        self.node.downloads.remove_image(&ImageId::new(manifest));
        self.node.room.give_back(manifest);
        if let Some(image) = self.present().get_mut(manifest) {
            (image.content, image.done) = (None, Some(progress));
        }
    }

    /// What it names goes from memory to the disk.
    async fn write_names(&self, manifest: &str) -> Result<(), Status> {
        let Some(map) = self.node.known.in_memory(manifest) else { return Ok(()) };
        let manifest = manifest.to_owned();
        self.blocking(move |node| {
            let names = node.objects.names(&map);
            node.known
                .rest(&manifest, names.map_err(|error| disk_status("write down what it names", &error))?);
            Ok(())
        })
        .await
    }

    /// Whether all of it is local, and nothing else of it in memory.
    pub(super) fn rests(&self, manifest: &str) -> bool {
        self.get(manifest).is_ok_and(|image| image.done.is_some())
    }

    /// A start begins, or ends, of which the reads become a profile.
    pub(super) fn count_start(&self, manifest: &str, begins: bool) {
        if let Some(image) = self.present().get_mut(manifest) {
            image.starts = if begins { image.starts + 1 } else { image.starts.saturating_sub(1) };
        }
    }

    fn starting(&self, manifest: &str) -> bool {
        self.get(manifest).is_ok_and(|image| image.starts > 0)
    }
}
