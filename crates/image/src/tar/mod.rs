//! Reads tar archives of every kind in use, from bytes that are pushed in pieces of any size.
//!
//! v7, ustar, old GNU (long names, sparse files, base-256 numbers), star, and PAX with local and
//! global records, extended attributes and the three GNU sparse forms. Where dialects disagree it
//! does as Go's archive/tar does, which containerd and Docker unpack with: what this reader shows
//! is what they would have unpacked. It judges the archive's form only; names, sizes and devices are the
//! caller's to refuse.
//!
//! ```text
//! push:  header block(s) -> Member
//!        File only       -> (Data | Hole)* -> End     as many bytes as Member::size says
//! ```
//!
//! A [`Reader`] does no I/O, holds at most one header with its extensions (bounded by
//! [`crate::limits`]), and belongs to one thread at a time.

mod extension;
mod header;
mod pax;
mod reader;
mod sparse;
#[cfg(test)]
pub(crate) mod tests;

pub use reader::Reader;

use crate::limits::{SPARSE_EXTENTS_MAX, TAR_EXTENSION_MAX};
use crate::record::{Device, Meta};

const BLOCK: usize = 512;
type Block = [u8; BLOCK];

/// What the pushed bytes turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    Member(Member),
    /// The next bytes of the file that the last member announced.
    Data(&'a [u8]),
    /// So many zero bytes of it, which a sparse file left out.
    Hole(u64),
    /// The file is whole.
    End,
}

/// One member, as its header and extensions describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// As the archive writes it: unchecked.
    pub path: Vec<u8>,
    pub kind: MemberKind,
    pub meta: Meta,
    /// A file with holes: some of its bytes come as [`Event::Hole`].
    pub sparse: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberKind {
    Directory,
    /// A regular file of so many bytes, holes included.
    File(u64),
    /// Targets are unchecked.
    Symlink(Vec<u8>),
    Hardlink(Vec<u8>),
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
}

/// An archive that cannot be read, and where.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("read tar, header at byte {at}: {fault}")]
pub struct TarError {
    /// Where the header of the member in question begins.
    pub at: u64,
    pub fault: Fault,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Fault {
    #[error("the archive ends inside a member")]
    Truncated,
    #[error("the checksum does not match")]
    Checksum,
    #[error("a single zero block stands before more members")]
    LoneZeroBlock,
    #[error("members of type {0:?} cannot be unpacked")]
    UnknownType(char),
    #[error("{0} is not a number in range")]
    Number(&'static str),
    #[error("an extension of {0} bytes, more than {TAR_EXTENSION_MAX}")]
    ExtensionTooLong(u64),
    #[error("malformed extended record: {0}")]
    Record(&'static str),
    #[error("extended attributes: {0}")]
    Xattrs(String),
    #[error("malformed sparse file: {0}")]
    Sparse(&'static str),
    #[error("a sparse file with more than {SPARSE_EXTENTS_MAX} extents")]
    TooManyExtents,
}

/// How many bytes fill the last block of `len` bytes.
fn padding(len: u64) -> u64 {
    len.wrapping_neg() % BLOCK as u64
}
