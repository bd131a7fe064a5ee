//! Blobs that lie in local files: whole files, or ranges of an archive.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream};

use super::{ByteStream, SourceError};

/// One read, in bytes: large enough that the hand-over between threads does not count.
const READ_SIZE: u64 = 1024 * 1024;

/// A local file that was found to be a regular one.
#[derive(Clone, Debug)]
pub(super) struct LocalFile {
    pub(super) file: Arc<File>,
    pub(super) path: PathBuf,
    pub(super) len: u64,
}

impl LocalFile {
    /// Blocks. Refuses what is not a regular file: opening a FIFO would wait for its writer.
    pub(super) fn open(path: PathBuf) -> io::Result<LocalFile> {
        if !std::fs::metadata(&path)?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let file = File::open(&path)?;
        let len = file.metadata()?.len();
        Ok(LocalFile { file: Arc::new(file), path, len })
    }

    /// The bytes of `range`, which must lie inside the file.
    pub(super) fn stream(&self, image: Arc<str>, range: Range<u64>) -> ByteStream {
        let file = self.clone();
        stream::try_unfold(range.start, move |at| {
            let (file, image, end) = (file.clone(), image.clone(), range.end);
            async move {
                if at >= end {
                    return Ok(None);
                }
                let len = (end - at).min(READ_SIZE);
                let bytes = file.read(&image, at, len).await?;
                Ok(Some((bytes, at + len)))
            }
        })
        .boxed()
    }

    /// Exactly `len` bytes from `at` on.
    pub(super) async fn read(&self, image: &str, at: u64, len: u64) -> Result<Bytes, SourceError> {
        let file = self.file.clone();
        let read = tokio::task::spawn_blocking(move || read_exact_at(&file, at, len));
        let result = read.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        result.map_err(|error| SourceError::local(image, self.path.clone(), error))
    }
}

/// Blocks.
pub(super) fn read_exact_at(file: &File, at: u64, len: u64) -> io::Result<Bytes> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes.into())
}
