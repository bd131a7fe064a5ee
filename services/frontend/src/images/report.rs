//! Reports what a start read, once it has settled, so that the next start anywhere is faster.

use std::time::Duration;

use image::Profile;
use proto::ReportRequest;
use tokio::time::{Instant, sleep};

use super::Images;
use crate::downloads::ImageId;

/// How often a start is looked at, as a part of the time that it must be quiet.
const LOOKS: u32 = 5;
/// A start that reads on and on, or not at all, is looked at no longer than this.
const START_MAX: Duration = Duration::from_secs(10 * 60);
/// How long the fetcher may take to take a report; nobody waits for it.
const REPORT_TIMEOUT: Duration = Duration::from_secs(30);

impl Images {
    /// Watches the start that a mount began, and reports it when nothing new was read for a while, or when
    /// the image is unmounted.
    pub(super) fn report_start(&self, manifest: &str) {
        let (images, manifest) = (self.clone(), manifest.to_owned());
        let shutdown = self.node.shutdown.clone();
        self.count_start(&manifest, true);
        self.node.tasks.spawn(async move {
            let settled = shutdown.run_until_cancelled_owned(images.settled(&manifest)).await;
            images.count_start(&manifest, false);
            if let Some(Some(profile)) = settled {
                images.report(&manifest, profile).await;
            }
        });
    }

    /// The start's profile; none when the image went away. Quiet counts from the first read: who mounts may
    /// take its time before it starts anything.
    async fn settled(&self, manifest: &str) -> Option<Profile> {
        let quiet = self.node.config.start_settled;
        let began = Instant::now();
        let mut read = self.get(manifest).ok()?.reported;
        let mut last = None;
        loop {
            sleep(quiet / LOOKS).await;
            let profile = self.node.downloads.profile(&ImageId::new(manifest))?;
            let unmounted = self.get(manifest).ok()?.targets.is_empty() && !self.node.is_in_use(manifest);
            if profile.chunks.len() > read {
                (read, last) = (profile.chunks.len(), Some(Instant::now()));
            }
            let settled = last.is_some_and(|last| last.elapsed() >= quiet);
            if settled || unmounted || began.elapsed() >= START_MAX {
                return Some(profile);
            }
        }
    }

    async fn report(&self, manifest: &str, profile: Profile) {
        let read = profile.chunks.len();
        let encoded = match profile.encode() {
            Ok(encoded) => encoded,
            Err(error) => return tracing::warn!(image = manifest, %error, "the profile cannot be written"),
        };
        let Some(project) = self.begin_report(manifest, read) else { return };
        let request = ReportRequest { project, manifest_digest: manifest.to_owned(), profile: encoded };
        match self.node.bus.call(request, REPORT_TIMEOUT).await {
            Ok(_) => tracing::info!(image = manifest, chunks = read, "reported the start"),
            Err(error) => tracing::warn!(image = manifest, %error, "the start could not be reported"),
        }
    }

    /// The image's project, unless as much was reported before or nothing shall be.
    fn begin_report(&self, manifest: &str, read: usize) -> Option<String> {
        let mut present = self.present();
        let image = present.get_mut(manifest)?;
        if image.reported >= read || !self.node.config.report_starts {
            return None;
        }
        image.reported = read;
        Some(image.record.project.clone())
    }
}
