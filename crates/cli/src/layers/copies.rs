//! Layers that an import of this process read a moment ago, as it left them in a folder: so they need not be read from their registry
//! twice.

use std::io::SeekFrom;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use fetcher::source::ByteStream;
use futures::StreamExt as _;
use tokio::fs::File;
use tokio::io::AsyncSeekExt as _;
use tokio_util::io::ReaderStream;

use crate::install::images::Layer;

/// Copies that nobody took for so long are of images that Docker does not have.
const KEPT: Duration = Duration::from_secs(60 * 60);
/// Bytes that are read at once.
const PART: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Copies(PathBuf);

/// One of them, complete.
#[derive(Debug)]
pub(super) struct Copy(PathBuf);

impl Copies {
    pub(super) fn new(folder: PathBuf) -> Copies {
        Copies(folder)
    }

    pub(super) async fn find(&self, layer: &Layer) -> Option<Copy> {
        let path = self.path(layer)?;
        let metadata = tokio::fs::symlink_metadata(&path).await.ok()?;
        (metadata.is_file() && metadata.len() == layer.size).then_some(Copy(path))
    }

    pub(super) async fn remove(&self, layer: &Layer) {
        if let Some(path) = self.path(layer) {
            // Gone already, or tried again when it is old.
            tokio::fs::remove_file(path).await.ok();
        }
    }

    /// Removes what nobody took, parts of an import that was killed among it.
    pub(super) async fn tidy(&self) {
        let Ok(mut all) = tokio::fs::read_dir(&self.0).await else { return };
        while let Ok(Some(entry)) = all.next_entry().await {
            let changed = entry.metadata().await.and_then(|metadata| metadata.modified());
            let age = changed.map(|changed| SystemTime::now().duration_since(changed).unwrap_or_default());
            if age.is_ok_and(|age| age > KEPT) {
                tokio::fs::remove_file(entry.path()).await.ok();
            }
        }
    }

    fn path(&self, layer: &Layer) -> Option<PathBuf> {
        Some(fetcher::layer_copy(&self.0, &layer.digest.parse().ok()?))
    }
}

impl Copy {
    /// Its bytes from one on. Whether they are the right ones is for the reader to hash.
    pub(super) async fn read(&self, from: u64) -> anyhow::Result<ByteStream> {
        let mut file = File::open(&self.0).await?;
        file.seek(SeekFrom::Start(from)).await?;
        let name = self.0.display().to_string();
        let parts = ReaderStream::with_capacity(file, PART).map(move |part| {
            part.map_err(|error| fetcher::source::SourceError::corrupt(&name, "its copy", error.to_string()))
        });
        Ok(parts.boxed())
    }
}
