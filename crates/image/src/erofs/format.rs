//! The bytes of EROFS as the kernel defines them; all numbers are little endian.

use crate::erofs::plan::Plan;
use crate::record::Meta;

pub(super) const BLOCK: usize = 4096;
pub(super) const SUPERBLOCK_OFFSET: usize = 1024;
pub(super) const SUPERBLOCK_LEN: usize = 128;
pub(super) const INODE_LEN: usize = 64;
/// An inode's number (nid) is its offset in these units.
pub(super) const INODE_SLOT: usize = 32;
pub(super) const FIRST_INODE: usize = SUPERBLOCK_OFFSET + SUPERBLOCK_LEN;

/// A block address that says: zeros. One covers a whole object.
pub(super) const HOLE: [u8; 4] = [0xff; 4];

const MAGIC: u32 = 0xe0f5_e1e2;
/// Inodes carry their modification time (not the change time, as the oldest images did).
const FEATURE_COMPAT_MTIME: u32 = 0x2;
const FEATURE_INCOMPAT_CHUNKED_FILE: u32 = 0x4;
const LAYOUT_EXTENDED: u16 = 1;
const XATTR_HEADER_LEN: usize = 12;

/// Where an inode's data stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DataLayout {
    /// In blocks.
    Plain = 0,
    /// All but the last part in blocks, that one behind the inode.
    Inline = 2,
    /// Nowhere: by chunks, all of them holes.
    Holes = 4,
}

pub(super) struct DiskInode<'a> {
    pub(super) layout: DataLayout,
    pub(super) xattr_len: usize,
    pub(super) mode: u16,
    pub(super) size: u64,
    pub(super) union: u32,
    pub(super) number: u32,
    pub(super) meta: &'a Meta,
    pub(super) nlink: u32,
}

impl DiskInode<'_> {
    pub(super) fn encode(&self) -> [u8; INODE_LEN] {
        // The header counts as one unit, every four bytes behind it as another.
        let xattr_units = match self.xattr_len {
            0 => 0,
            len => (len - XATTR_HEADER_LEN) / 4 + 1,
        };
        let mut bytes = Fields::<INODE_LEN>::new();
        bytes.put(0, (((self.layout as u16) << 1) | LAYOUT_EXTENDED).to_le_bytes());
        bytes.put(2, (xattr_units as u16).to_le_bytes());
        bytes.put(4, self.mode.to_le_bytes());
        bytes.put(8, self.size.to_le_bytes());
        bytes.put(16, self.union.to_le_bytes());
        bytes.put(20, self.number.to_le_bytes());
        bytes.put(24, self.meta.uid.to_le_bytes());
        bytes.put(28, self.meta.gid.to_le_bytes());
        bytes.put(32, self.meta.mtime.secs.to_le_bytes());
        bytes.put(40, self.meta.mtime.nanos.to_le_bytes());
        bytes.put(44, self.nlink.to_le_bytes());
        bytes.0
    }
}

/// The root stands first, so that its number fits.
pub(super) fn superblock(root: u64, inodes: u64, plan: &Plan) -> [u8; SUPERBLOCK_LEN] {
    let mut bytes = Fields::<SUPERBLOCK_LEN>::new();
    bytes.put(0, MAGIC.to_le_bytes());
    bytes.put(8, FEATURE_COMPAT_MTIME.to_le_bytes());
    bytes.put(12, [BLOCK.ilog2() as u8]);
    bytes.put(14, (root as u16).to_le_bytes());
    bytes.put(16, inodes.to_le_bytes());
    bytes.put(36, plan.blocks().to_le_bytes());
    bytes.put(44, plan.shared_block().to_le_bytes());
    bytes.put(80, FEATURE_INCOMPAT_CHUNKED_FILE.to_le_bytes());
    bytes.0
}

/// The chunk format of a file whose only chunk is a hole: log2 of its blocks, rounded up.
pub(super) fn hole_bits(size: u64) -> u16 {
    size.div_ceil(BLOCK as u64).max(1).next_power_of_two().ilog2() as u16
}

struct Fields<const LEN: usize>([u8; LEN]);

impl<const LEN: usize> Fields<LEN> {
    fn new() -> Self {
        Fields([0; LEN])
    }

    fn put<const N: usize>(&mut self, at: usize, value: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&value);
    }
}
