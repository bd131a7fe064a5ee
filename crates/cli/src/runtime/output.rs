//! What a container prints that nobody listens to.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Child;
use tokio_util::task::AbortOnDropHandle;

/// A full file becomes the one before; with both at most twice this is kept, in bytes.
const FILE_MAX: u64 = 8 * 1024 * 1024;
/// How long what a container printed last may take to be written after its end.
const DRAIN: Duration = Duration::from_secs(5);
const BLOCK: usize = 16 * 1024;

/// Both streams, on their way to a file.
#[derive(Debug)]
pub struct Kept(Vec<AbortOnDropHandle<()>>);

impl Kept {
    /// Reads what `process` prints into `path`.
    pub fn of(process: &mut Child, path: PathBuf) -> io::Result<Kept> {
        let pages = Arc::new(Mutex::new(Pages::create(path)?));
        let mut readers = Vec::new();
        if let Some(stream) = process.stdout.take() {
            readers.push(AbortOnDropHandle::new(tokio::spawn(read(stream, pages.clone()))));
        }
        if let Some(stream) = process.stderr.take() {
            readers.push(AbortOnDropHandle::new(tokio::spawn(read(stream, pages))));
        }
        Ok(Kept(readers))
    }

    /// Waits for the rest of it.
    pub async fn finish(self) {
        let _cut_short = tokio::time::timeout(DRAIN, futures::future::join_all(self.0)).await;
    }
}

async fn read(mut stream: impl AsyncRead + Unpin, pages: Arc<Mutex<Pages>>) {
    let mut block = vec![0; BLOCK];
    while let Ok(length @ 1..) = stream.read(&mut block).await {
        // What a full disk does not take is lost: the container goes on.
        let _lost = pages.lock().unwrap_or_else(PoisonError::into_inner).write(&block[..length]);
    }
}

/// A file of bounded length, and the one before it.
#[derive(Debug)]
struct Pages {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Pages {
    fn create(path: PathBuf) -> io::Result<Pages> {
        let file = File::create(&path)?;
        Ok(Pages { path, file, length: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.length >= FILE_MAX {
            std::fs::rename(&self.path, before(&self.path))?;
            *self = Pages::create(self.path.clone())?;
        }
        self.length += bytes.len() as u64;
        self.file.write_all(bytes)
    }
}

fn before(path: &Path) -> PathBuf {
    path.with_added_extension("1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_kept_and_no_more_than_two_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("output");
        let mut pages = Pages::create(path.clone()).unwrap();
        let block = vec![b'x'; BLOCK];
        for _ in 0..3 * FILE_MAX / BLOCK as u64 {
            pages.write(&block).unwrap();
        }
        pages.write(b"last").unwrap();
        assert!(std::fs::read(&path).unwrap().ends_with(b"last"));
        assert_eq!(std::fs::metadata(before(&path)).unwrap().len(), FILE_MAX);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
