//! Files that are being written.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::{BLOCK_BYTES, Objects};

/// A file in `incoming/`: gone when dropped, unless it was kept.
#[derive(Debug)]
pub struct Incoming {
    file: File,
    path: PathBuf,
}

impl Objects {
    pub fn incoming(&self) -> io::Result<Incoming> {
        let number = self.sequence.fetch_add(1, Ordering::Relaxed).to_string();
        let path = self.root.join("incoming").join(number);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        Ok(Incoming { file, path })
    }

    /// Gives a file its final name. The caller has checked what is in it.
    pub(super) fn keep(&self, incoming: Incoming, path: &Path) -> io::Result<()> {
        let used = incoming.file.metadata()?.blocks() * BLOCK_BYTES;
        incoming.rename(path)?;
        self.grew(used);
        Ok(())
    }
}

impl Incoming {
    pub(super) fn rename(self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)
    }

    /// Makes it so long; what was not written is a hole.
    pub(super) fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    /// Makes what was written survive a power loss.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Only the file: it has no name any more and goes when it is closed.
    pub(super) fn nameless(self) -> io::Result<File> {
        self.file.try_clone()
    }
}

impl Write for Incoming {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // One that was kept is not there any more. What stays is dropped at the next start.
        let _ = fs::remove_file(&self.path);
    }
}
