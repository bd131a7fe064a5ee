//! What this node has and does, for whoever asks.

use std::path::Path;
use std::sync::Arc;

use proto::{DownloadProgress, NodeImage, StatusReply};
use tonic::Status;

use super::{Images, Present};
use crate::downloads::ImageId;

/// Resident memory of this process stands here, in kB, after `VmRSS:`.
const PROCESS: &str = "/proc/self/status";

impl Images {
    /// `reads`: with what was read when since each image's mount was asked for.
    pub(crate) async fn status(&self, reads: bool) -> StatusReply {
        let images: Vec<NodeImage> = self
            .list()
            .into_iter()
            .map(|(manifest, image)| self.status_of(&manifest, image, reads))
            .collect();
        let received =
            images.iter().filter_map(|image| image.progress.as_ref()).map(|progress| progress.received_bytes);
        StatusReply {
            received_bytes: received.sum(),
            images,
            disk_bytes: self.node.objects.used(),
            disk_budget: self.node.config.disk_budget.as_u64(),
            resident_bytes: resident_bytes().unwrap_or(0),
            memory_budget: self.node.config.memory_budget(),
            streaming: self.node.config.streaming,
        }
    }

    /// How far an image's download is.
    pub(crate) fn progress_of(&self, manifest: &str) -> Result<DownloadProgress, Status> {
        let image = self.get(manifest)?;
        Ok(self.progress(manifest, &image))
    }

    /// Whether nothing is mounted, being mounted or downloaded.
    pub(crate) fn idle(&self) -> bool {
        if Arc::strong_count(&self.node.busy) > 1 {
            return false;
        }
        let downloading = self.node.config.background;
        self.list().iter().all(|(manifest, image)| {
            let done = image.content.is_none() || !downloading || self.progress(manifest, image).complete;
            image.targets.is_empty() && done
        })
    }

    /// Whether a root of some image stands, or may be mounted at any moment.
    pub(crate) fn in_use(&self) -> bool {
        self.list().iter().any(|(manifest, image)| !image.targets.is_empty() || self.node.is_in_use(manifest))
    }

    fn status_of(&self, manifest: &str, image: Present, reads: bool) -> NodeImage {
        let trace = if reads { self.node.downloads.trace(&ImageId::new(manifest)) } else { Vec::new() };
        NodeImage {
            progress: Some(self.progress(manifest, &image)),
            reference: image.reference,
            manifest_digest: manifest.to_owned(),
            mounts: image.targets.iter().map(|target: &std::path::PathBuf| lossless(target)).collect(),
            trace,
        }
    }

    /// Of an image that is not in memory only the totals are known.
    fn progress(&self, manifest: &str, image: &Present) -> DownloadProgress {
        let known = self.node.downloads.progress(&ImageId::new(manifest));
        known.or(image.done).or(image.found).unwrap_or_else(|| DownloadProgress {
            bytes_total: image.record.plain_bytes,
            ..DownloadProgress::default()
        })
    }
}

/// A path as the text that protobuf wants; bytes that are not UTF-8 are shown escaped.
fn lossless(path: &Path) -> String {
    path.to_str()
        .map_or_else(|| path.as_os_str().as_encoded_bytes().escape_ascii().to_string(), str::to_owned)
}

fn resident_bytes() -> Option<u64> {
    let process = std::fs::read_to_string(PROCESS).ok()?;
    let resident = process.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = resident.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}
