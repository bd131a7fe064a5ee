//! How much memory the records of one image may take, counted while its layers are scanned.
//!
//! What a layer costs is not what it weighs: a block of 512 bytes in a tar that shrinks a thousand times becomes an entry, a
//! tree's inode and their names. The counts here are of what that takes at most, and are added up for all layers: a merge lets
//! go of what a layer replaces, but nobody knows how much that will be.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::ScanError;
use crate::record::xattrs::Interner;
use crate::record::{Content, Entry, EntryKind, LayerRecord, Xattrs};

/// An entry in its record, in the merged tree and on the way into both: numbers, pointers, tables.
const ENTRY_BYTES: u64 = 400;
/// A chunk in its record, in the map, and where it is remembered whether it was stored.
const CHUNK_BYTES: u64 = 160;
/// An object in its record and in the map.
const OBJECT_BYTES: u64 = 160;
const EXTENT_BYTES: u64 = 2 * 16;
const XATTR_BYTES: u64 = 64;

/// Shared by all layers of an image. A clone is the same budget.
#[derive(Clone, Debug)]
pub struct RecordBudget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max: u64,
    used: AtomicU64,
}

impl RecordBudget {
    /// Of so many bytes.
    pub fn new(max: u64) -> RecordBudget {
        RecordBudget(Arc::new(Inner { max, used: AtomicU64::new(0) }))
    }

    pub fn max(&self) -> u64 {
        self.0.max
    }

    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Counts so many bytes.
    pub fn take(&self, bytes: u64) -> Result<(), ScanError> {
        let used = self.0.used.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        match used > self.0.max {
            true => Err(ScanError::OverBudget(self.0.max)),
            false => Ok(()),
        }
    }
}

/// What a record costs that need not be scanned: as much as its scan counted.
pub fn record_bytes(record: &LayerRecord) -> u64 {
    let mut interner = Interner::default();
    let set =
        |entry: &Entry| interner.intern(&entry.meta.xattrs).map_or_else(|(_, new)| set_bytes(&new), |_| 0);
    let sets: u64 = record.entries.iter().map(set).sum();
    let entries: u64 = record.entries.iter().map(entry_bytes).sum();
    let extents = record.sparse.iter().map(|sparse| sparse.extents.len()).sum();
    sets + entries + tables_bytes(record.chunks.len(), record.objects.len(), extents)
}

/// What an entry costs without its attributes.
pub(super) fn entry_bytes(entry: &Entry) -> u64 {
    ENTRY_BYTES + strings_bytes(entry)
}

/// About how long an entry is in the record without its attributes, and its object in the tables: never less.
pub(super) fn encoded_len(entry: &Entry) -> u64 {
    /// Numbers at their longest, a digest, an object's place.
    const FIXED: u64 = 160;
    FIXED + strings_bytes(entry)
}

fn strings_bytes(entry: &Entry) -> u64 {
    let content = match &entry.kind {
        EntryKind::Symlink(bytes) | EntryKind::Hardlink(bytes) => bytes.len(),
        EntryKind::File(Content::Inline(bytes)) => bytes.len(),
        _ => 0,
    };
    (entry.path.len() + content) as u64
}

/// What a set of attributes costs, however many have it.
pub(super) fn set_bytes(set: &Xattrs) -> u64 {
    set.content_len() as u64 + XATTR_BYTES * set.len() as u64
}

pub(super) fn tables_bytes(chunks: usize, objects: usize, extents: usize) -> u64 {
    CHUNK_BYTES * chunks as u64 + OBJECT_BYTES * objects as u64 + EXTENT_BYTES * extents as u64
}
