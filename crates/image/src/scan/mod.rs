//! One pass over a layer's tar: entries, and objects cut into chunks.
//!
//! ```text
//! plain tar bytes --tar::Reader--> members --names--> entries --------> LayerRecord
//!                                  contents --Cutter--> CutChunks --> the caller stores them
//! ```
//!
//! What comes out depends on the bytes alone, never on how they were sliced. Memory is bounded by
//! the cutter's buffers and the record. The caller hashes the tar itself (for the diff id) and
//! knows how long chunks become when stored: it fills in both.

mod budget;
mod cutter;
mod names;
#[cfg(test)]
mod tests;

use std::mem;

use crate::Digest;
use crate::limits::{
    ENCODED_PLAIN_MAX, ENTRIES_MAX, EXTENTS_MAX, FILE_MAX, LAYER_PLAIN_MAX, SMALL_OBJECT_MAX,
};
use crate::path::{self, PathError};
use crate::record::xattrs::Interner;
use crate::record::{Device, Entry, EntryKind, LayerRecord, Meta, check};
use crate::tar::{Event, Member, MemberKind, Reader, TarError};

pub use budget::{RecordBudget, record_bytes};
use cutter::{Cut, Cutter};
use names::Name;

/// How large a layer may be, for this caller.
#[derive(Clone, Copy, Debug)]
pub struct ScanLimits {
    /// Bytes of the tar, and bytes of all its files without their holes.
    pub plain_max: u64,
    /// Members.
    pub entries_max: usize,
}

impl Default for ScanLimits {
    fn default() -> ScanLimits {
        ScanLimits { plain_max: LAYER_PLAIN_MAX, entries_max: ENTRIES_MAX }
    }
}

/// A chunk of the layer, to be stored. Each digest is given once.
#[derive(Clone, PartialEq, Eq)]
pub struct CutChunk {
    pub digest: Digest,
    pub plain: Vec<u8>,
}

impl std::fmt::Debug for CutChunk {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "CutChunk({}, {} bytes)", self.digest, self.plain.len())
    }
}

/// Why a layer cannot be imported.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ScanError {
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error("the name {name:?} {error}")]
    Name { name: String, error: PathError },
    #[error("{name:?} cannot be imported: {reason}")]
    Member { name: String, reason: String },
    #[error("more than {0} members")]
    TooManyMembers(usize),
    #[error("more than {0} bytes of plain content")]
    TooLong(u64),
    #[error("names and attributes of all members take more than {ENCODED_PLAIN_MAX} bytes")]
    RecordTooLong,
    #[error("files with holes have more than {EXTENTS_MAX} pieces of data together")]
    TooManyExtents,
    #[error(
        "what is to be remembered of its members takes more than {0} bytes of memory, all layers of the image together: more \
         than the fetcher allows (fetcher.limits.image_records)"
    )]
    OverBudget(u64),
}

/// Reads one layer. Not to be used on after an error.
#[derive(Debug)]
pub struct LayerScanner {
    reader: Reader,
    limits: ScanLimits,
    cutter: Cutter,
    tar_len: u64,
    /// Bytes of all files so far, as declared, but those of files with holes, whose data the tar bounds.
    content_len: u64,
    /// At least as long as the record will be, encoded.
    record_len: usize,
    budget: RecordBudget,
    /// Of the budget, for this layer's tables.
    counted: u64,
    xattrs: Interner,
    members: usize,
    entries: Vec<Entry>,
    file: OpenFile,
}

/// Whose content comes next.
#[derive(Debug)]
enum OpenFile {
    None,
    /// Of a member that leaves no file behind: a whiteout, or bookkeeping of aufs.
    Ignored,
    Kept {
        path: Vec<u8>,
        meta: Meta,
    },
}

impl LayerScanner {
    /// Limits beyond those of [`crate::limits`] are lowered to them: a record must stay readable.
    pub fn new(limits: ScanLimits) -> LayerScanner {
        LayerScanner::within(limits, RecordBudget::new(u64::MAX))
    }

    /// One of an image's layers, which share a budget.
    pub fn within(limits: ScanLimits, budget: RecordBudget) -> LayerScanner {
        let limits = ScanLimits {
            plain_max: limits.plain_max.min(LAYER_PLAIN_MAX),
            entries_max: limits.entries_max.min(ENTRIES_MAX),
        };
        LayerScanner {
            reader: Reader::new(),
            limits,
            cutter: Cutter::default(),
            tar_len: 0,
            content_len: 0,
            record_len: 0,
            budget,
            counted: 0,
            xattrs: Interner::default(),
            members: 0,
            entries: Vec::new(),
            file: OpenFile::None,
        }
    }

    /// Reads the next bytes of the tar; gives every chunk that is complete to `emit`.
    pub fn push<E: From<ScanError>>(
        &mut self,
        plain: &[u8],
        emit: &mut dyn FnMut(CutChunk) -> Result<(), E>,
    ) -> Result<(), E> {
        self.tar_len += plain.len() as u64;
        if self.tar_len > self.limits.plain_max {
            return Err(ScanError::TooLong(self.limits.plain_max).into());
        }
        let mut rest = plain;
        while let Some(event) = self.reader.next(&mut rest).map_err(ScanError::Tar)? {
            match (event, &self.file) {
                (Event::Member(member), _) => self.begin(member)?,
                (Event::Data(data), OpenFile::Kept { .. }) => self.cutter.write(data, emit)?,
                (Event::Hole(len), OpenFile::Kept { .. }) => self.cutter.write_hole(len, emit)?,
                (Event::End, _) => self.end(emit)?,
                (Event::Data(_) | Event::Hole(_), OpenFile::Ignored | OpenFile::None) => {}
            }
            if self.content_len.saturating_add(self.cutter.filled()) > self.limits.plain_max {
                return Err(ScanError::TooLong(self.limits.plain_max).into());
            }
            self.count_tables()?;
        }
        Ok(())
    }

    /// The record of the layer whose tar ended here; the last chunks go to `emit`. The diff id and
    /// the chunks' stored lengths are left to the caller: `diff_id` and
    /// [`LayerRecord::set_stored_lens`].
    pub fn finish<E: From<ScanError>>(
        self,
        emit: &mut dyn FnMut(CutChunk) -> Result<(), E>,
    ) -> Result<LayerRecord, E> {
        self.reader.finish().map_err(ScanError::Tar)?;
        let Cut { chunks, objects, sparse } = self.cutter.finish(emit)?;
        let (tar_len, entries) = (self.tar_len, self.entries);
        Ok(LayerRecord { diff_id: [0; 32], tar_len, entries, chunks, objects, sparse })
    }

    fn begin(&mut self, member: Member) -> Result<(), ScanError> {
        self.count(&member)?;
        self.file = OpenFile::Ignored;
        let refuse = |error| ScanError::Name { name: lossy(&member.path), error };
        let mark = |path, kind| Entry { path, kind, meta: Meta::default() };
        match names::classify(path::normalise(&member.path).map_err(refuse)?) {
            Name::Plain(path) => self.keep(path, member),
            Name::Whiteout(path) => self.add(mark(path, EntryKind::Whiteout)),
            Name::Opaque(path) => self.add(mark(path, EntryKind::Opaque)),
            Name::Bookkeeping => Ok(()),
            Name::Refused(error) => Err(refuse(error)),
        }
    }

    fn count_tables(&mut self) -> Result<(), ScanError> {
        let new = self.cutter.tables_bytes().saturating_sub(self.counted);
        self.counted += new;
        self.budget.take(new)?;
        match self.cutter.extents() > EXTENTS_MAX {
            true => Err(ScanError::TooManyExtents),
            false => Ok(()),
        }
    }

    fn keep(&mut self, path: Vec<u8>, member: Member) -> Result<(), ScanError> {
        let Member { kind, mut meta, sparse, .. } = member;
        let refuse = |reason| ScanError::Member { name: lossy(&path), reason };
        if path.is_empty() && kind != MemberKind::Directory {
            return Err(refuse("the root must be a directory".into()));
        }
        // What many members share is kept, looked at and counted once.
        meta.xattrs = match self.xattrs.intern(&meta.xattrs) {
            Ok((_, known)) => known,
            Err((_, new)) => {
                check::xattrs(&new).map_err(refuse)?;
                let bytes = budget::set_bytes(&new);
                self.record_len = self.record_len.saturating_add(bytes as usize);
                self.budget.take(bytes)?;
                new
            }
        };
        let kind = match kind {
            MemberKind::File(len) => {
                self.cutter.begin(len, sparse);
                self.file = OpenFile::Kept { path, meta };
                return Ok(());
            }
            MemberKind::Directory => Ok(EntryKind::Directory),
            MemberKind::Fifo => Ok(EntryKind::Fifo),
            MemberKind::Symlink(target) => names::symlink_target(target).map(EntryKind::Symlink),
            MemberKind::Hardlink(target) => names::link_target(&target).map(EntryKind::Hardlink),
            // Overlayfs reads this device as "the file below is gone".
            MemberKind::CharDevice(Device { major: 0, minor: 0 }) => {
                Err("the character device 0:0 would hide a file instead of being one".into())
            }
            MemberKind::CharDevice(device) => check::device(device).map(|()| EntryKind::CharDevice(device)),
            MemberKind::BlockDevice(device) => check::device(device).map(|()| EntryKind::BlockDevice(device)),
        };
        let kind = kind.map_err(refuse)?;
        self.add(Entry { path, kind, meta })
    }

    fn add(&mut self, entry: Entry) -> Result<(), ScanError> {
        self.budget.take(budget::entry_bytes(&entry))?;
        self.record_len = self.record_len.saturating_add(budget::encoded_len(&entry) as usize);
        if self.record_len > ENCODED_PLAIN_MAX {
            return Err(ScanError::RecordTooLong);
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Counts a member before anything of it is kept.
    fn count(&mut self, member: &Member) -> Result<(), ScanError> {
        self.members += 1;
        if self.members > self.limits.entries_max {
            return Err(ScanError::TooManyMembers(self.limits.entries_max));
        }
        if let MemberKind::File(len) = member.kind {
            if len > FILE_MAX {
                let reason = format!("a file of {len} bytes, at most {FILE_MAX} can be");
                return Err(ScanError::Member { name: lossy(&member.path), reason });
            }
            // Below that size holes are zeros.
            if !member.sparse || len < SMALL_OBJECT_MAX {
                self.content_len = self.content_len.saturating_add(len);
            }
        }
        match self.content_len > self.limits.plain_max {
            true => Err(ScanError::TooLong(self.limits.plain_max)),
            false => Ok(()),
        }
    }

    fn end<E: From<ScanError>>(&mut self, emit: &mut dyn FnMut(CutChunk) -> Result<(), E>) -> Result<(), E> {
        if let OpenFile::Kept { path, meta } = mem::replace(&mut self.file, OpenFile::None) {
            let kind = EntryKind::File(self.cutter.end(emit)?);
            self.add(Entry { path, kind, meta })?;
        }
        Ok(())
    }
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
