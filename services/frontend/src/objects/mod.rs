//! The node's local objects: whole, verified files that overlayfs reads by itself.
//!
//! ```text
//! objects/ab/<62 hex>     whole and verified; a data-only lower layer of every root
//! incoming/               files being written; renamed into objects/ when they are whole
//! partial/<64 hex>        a large object that is still arriving, sparse
//! partial/<64 hex>.have   which of its chunks are there, one byte each ('1')
//! trees/<64 hex>.erofs    trees, maps and image records: see `indexes`
//! maps/<64 hex>
//! records/<manifest hex>
//! grants/<manifest hex>   for their owner only
//! synced                  what survives a power loss: see `recovery`
//! ```
//!
//! Nothing enters `objects/` but by renaming a file whose digest was checked, so after a crash of
//! this process every name there is good: the page cache outlives us. Nothing is synced file by
//! file; a power loss is dealt with by `recovery`.
//!
//! All calls block on the disk: async callers use blocking threads. The type is shared freely;
//! two writers of one object both succeed, since both rename the same bytes.

mod bits;
mod hashing;
mod incoming;
mod indexes;
mod names;
mod partial;
mod recovery;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use image::Digest;

pub(crate) use bits::Bits;
pub use incoming::Incoming;
pub use names::{Name, Names};
pub(crate) use partial::{Form, Piece};
pub use recovery::Recovered;

/// What `st_blocks` counts in.
const BLOCK_BYTES: u64 = 512;

/// Objects, trees, maps and records under one state folder.
#[derive(Debug)]
pub struct Objects {
    root: PathBuf,
    boot: String,
    recovered: Recovered,
    /// Makes names in `incoming/` unique.
    sequence: AtomicU64,
    /// Disk bytes, as counted last by [`Objects::measure`] and kept up by later changes.
    used: AtomicU64,
    /// Changes since the last sync began.
    unsynced: AtomicU64,
    /// Chunks that are there of each partial object that was loaded or begun.
    partials: Mutex<HashMap<Digest, Bits>>,
    /// Held while a partial object is checked and let in.
    finishing: Mutex<()>,
}

/// Why an object was not kept.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    #[error("the bytes of object {0} do not match its name")]
    Mismatch(Digest),
    #[error("no space left for object {0}")]
    Full(Digest),
    #[error("failed to write object {object}")]
    Io { object: Digest, source: io::Error },
}

/// One file under `objects/` or `partial/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub digest: Digest,
    /// On disk, in bytes: allocated blocks, not the length.
    pub bytes: u64,
    pub partial: bool,
}

impl Objects {
    /// Opens or makes the state folder `root`, and drops what a power loss may have spoiled.
    pub fn open(root: &Path) -> anyhow::Result<Objects> {
        Objects::open_in(root, recovery::boot_id()?)
    }

    /// The folder that overlayfs takes as its data-only lower layer.
    pub fn local_dir(&self) -> PathBuf {
        self.root.join("objects")
    }

    /// Where a whole object stands, or would stand.
    pub fn path(&self, object: &Digest) -> PathBuf {
        self.root.join("objects").join(object.path())
    }

    pub fn contains(&self, object: &Digest) -> bool {
        self.path(object).symlink_metadata().is_ok()
    }

    /// Whether the object is whole and as long as its map says.
    pub(crate) fn contains_of_len(&self, object: &Digest, len: u64) -> bool {
        self.path(object).symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.len() == len)
    }

    /// Up to `len` bytes of a whole object at `offset`; `None` when it is not here.
    pub fn read(&self, object: &Digest, offset: u64, len: usize) -> io::Result<Option<Vec<u8>>> {
        match File::open(self.path(object)) {
            Ok(file) => read_at(&file, offset, len).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where in a whole object data, or a hole, begins at or after `offset`; its length when none does.
    pub(crate) fn seek(&self, object: &Digest, offset: u64, hole: bool) -> io::Result<u64> {
        let file = File::open(self.path(object))?;
        let len = file.metadata()?.len();
        match hole {
            true => hashing::hole_after(&file, offset, len),
            false => hashing::data_after(&file, offset, len),
        }
    }

    /// Keeps a whole object, unless it is here already.
    pub fn put(&self, object: &Digest, bytes: &[u8]) -> Result<(), PutError> {
        if Digest::of(bytes) != *object {
            return Err(PutError::Mismatch(*object));
        }
        if self.contains_of_len(object, bytes.len() as u64) {
            return Ok(());
        }
        self.place(&self.path(object), bytes).map_err(|error| put_error(*object, error))
    }

    /// Takes a whole object off the disk and tells how many bytes that freed. Only for objects that
    /// no mounted tree names: overlayfs must never lose a lower file.
    pub fn remove(&self, object: &Digest) -> io::Result<u64> {
        self.unlink(&self.path(object))
    }

    /// Every whole and partial object whose digest begins with this byte.
    pub fn held_in(&self, shard: u8) -> io::Result<Vec<Held>> {
        let prefix = format!("{shard:02x}");
        let mut held = Vec::new();
        for entry in fs::read_dir(self.local_dir().join(&prefix))? {
            let entry = entry?;
            let hex = format!("{prefix}{}", entry.file_name().to_string_lossy());
            note_held(&mut held, &hex, &entry, false)?;
        }
        for entry in fs::read_dir(self.root.join("partial"))? {
            let entry = entry?;
            let hex = entry.file_name().to_string_lossy().into_owned();
            if hex.starts_with(&prefix) {
                note_held(&mut held, &hex, &entry, true)?;
            }
        }
        Ok(held)
    }

    /// Counts anew what everything here uses on the disk, in bytes.
    pub fn measure(&self) -> io::Result<u64> {
        let mut used = 0;
        for shard in 0..=u8::MAX {
            used += self.held_in(shard)?.iter().map(|held| held.bytes).sum::<u64>();
        }
        for folder in ["incoming", "trees", "maps", "records", "grants"] {
            for entry in fs::read_dir(self.root.join(folder))? {
                used += disk_bytes(&entry?)?.unwrap_or(0);
            }
        }
        self.used.store(used, Ordering::Relaxed);
        Ok(used)
    }

    /// What everything here uses on the disk, in bytes: allocated blocks, not lengths.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// What the last start found, and dropped.
    pub fn recovered(&self) -> Recovered {
        self.recovered
    }

    /// Writes a file beside its final name and renames it.
    fn place(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut incoming = self.incoming()?;
        incoming.write_all(bytes)?;
        self.keep(incoming, path)
    }

    /// The same, and it survives a loss of power from then on. What is there already is not written again.
    fn place_for_good(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if fs::read(path).is_ok_and(|kept| kept == bytes) {
            return Ok(());
        }
        let mut incoming = self.incoming()?;
        incoming.write_all(bytes)?;
        incoming.sync()?;
        self.keep(incoming, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }

    fn unlink(&self, path: &Path) -> io::Result<u64> {
        let freed = match path.symlink_metadata() {
            Ok(meta) => meta.blocks() * BLOCK_BYTES,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error),
        };
        fs::remove_file(path)?;
        self.shrank(freed);
        Ok(freed)
    }

    fn grew(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        self.unsynced.fetch_add(1, Ordering::Relaxed);
    }

    fn shrank(&self, bytes: u64) {
        // Never below zero: a file may have been counted before its last blocks were allocated.
        let _ = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| Some(used.saturating_sub(bytes)));
    }
}

/// Up to `len` bytes at `offset`: fewer only where the file ends.
fn read_at(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn note_held(held: &mut Vec<Held>, hex: &str, entry: &fs::DirEntry, partial: bool) -> io::Result<()> {
    // The bitmap beside a partial object counts with it, and goes with it: both are small.
    if let (Ok(digest), Some(bytes)) = (hex.parse(), disk_bytes(entry)?) {
        held.push(Held { digest, bytes, partial });
    }
    Ok(())
}

/// `None` when the file went away meanwhile.
fn disk_bytes(entry: &fs::DirEntry) -> io::Result<Option<u64>> {
    match entry.metadata() {
        Ok(meta) => Ok(Some(meta.blocks() * BLOCK_BYTES)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn put_error(object: Digest, error: io::Error) -> PutError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => PutError::Full(object),
        _ => PutError::Io { object, source: error },
    }
}
