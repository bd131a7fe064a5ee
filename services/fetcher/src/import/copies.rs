//! Copies of layers as they were read, for who needs them as they are: a container engine of this machine.
//!
//! They stand in one folder under their digests, complete and checked, until somebody takes them. An import never fails for want of one.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::statvfs;
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;

use crate::source::{BlobDigest, LayerDescriptor};

/// Of the disk, what copies leave free.
const LEFT_FREE: u64 = 1 << 30;
/// Of a name, while the copy is not complete.
const PART: &str = "part";

/// The copies that this process began.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// Where the copy of a blob stands.
pub fn path(folder: &Path, digest: &BlobDigest) -> PathBuf {
    folder.join(digest.to_string().replace(':', "-"))
}

/// One that is being written; it goes if nobody keeps it.
#[derive(Debug)]
pub(super) struct Copy {
    file: File,
    part: PathBuf,
    whole: PathBuf,
}

impl Copy {
    /// None where there is no room, or no such folder can be.
    pub(super) async fn begin(folder: &Path, layer: &LayerDescriptor) -> Option<Copy> {
        let made = Copy::make(folder, layer).await;
        made.inspect_err(|error| {
            tracing::warn!(layer = layer.digest, error = format!("{error:#}"), "no copy of a layer is kept");
        })
        .ok()
    }

    async fn make(folder: &Path, layer: &LayerDescriptor) -> anyhow::Result<Copy> {
        lifecycle::private::make(folder)?;
        let disk = statvfs(folder)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        anyhow::ensure!(free >= layer.size.saturating_add(LEFT_FREE), "the disk is too full");
        let whole = path(folder, &layer.digest.parse()?);
        let number = BEGUN.fetch_add(1, Ordering::Relaxed);
        let part = whole.with_added_extension(format!("{}-{number}.{PART}", std::process::id()));
        let file = File::create_new(&part).await?;
        file.set_permissions(Permissions::from_mode(0o600)).await?;
        Ok(Copy { file, part, whole })
    }

    /// Whether it goes on.
    pub(super) async fn add(&mut self, bytes: &[u8]) -> bool {
        let written = self.file.write_all(bytes).await;
        if let Err(error) = &written {
            tracing::warn!(file = %self.part.display(), %error, "a copy of a layer is not kept");
        }
        written.is_ok()
    }

    /// The layer is what it should be.
    pub(super) async fn keep(mut self) {
        let kept = async {
            self.file.flush().await?;
            tokio::fs::rename(&self.part, &self.whole).await
        };
        if let Err(error) = kept.await {
            tracing::warn!(file = %self.whole.display(), %error, "a copy of a layer is not kept");
        }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // Not there any more, if it was kept.
        std::fs::remove_file(&self.part).ok();
    }
}
