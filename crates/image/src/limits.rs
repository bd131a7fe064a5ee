//! Every bound on what an image may be, and how content is cut; each with its unit and its reason.

/// Files up to this many bytes are kept in the tree: creating an object costs more than moving them.
pub const INLINE_MAX: usize = 512;
/// Objects smaller than this share a chunk with their neighbours.
pub const SMALL_OBJECT_MAX: u64 = 128 * 1024;
/// A shared chunk is closed when it holds at least this many bytes. Smaller than the design's 1 MiB:
/// a start reads a few small files out of many chunks, and every neighbour costs bandwidth.
pub const PACK_TARGET: usize = 256 * 1024;
/// FastCDC bounds for objects of several chunks, in bytes.
pub const CDC_MIN: u32 = 128 * 1024;
pub const CDC_AVG: u32 = 512 * 1024;
pub const CDC_MAX: u32 = 2 * 1024 * 1024;
/// No chunk is larger, plain or stored: a reader may allocate this much on a chunk's word.
pub const CHUNK_PLAIN_MAX: usize = CDC_MAX as usize;
pub const CHUNK_STORED_MAX: usize = CHUNK_PLAIN_MAX + CHUNK_PLAIN_MAX / 128 + 1024;

/// `PATH_MAX` and `NAME_MAX` of Linux: a longer name could not be opened.
pub const PATH_MAX: usize = 4096;
pub const NAME_MAX: usize = 255;
/// Nested directories; bounded so that no walk of ours can be made deep.
pub const DEPTH_MAX: usize = 1024;
/// Members of one layer, and entries of one tree.
pub const ENTRIES_MAX: usize = 4_000_000;
/// One PAX or GNU extension block, in bytes.
pub const TAR_EXTENSION_MAX: u64 = 1024 * 1024;
/// Linux accepts 64 KiB per value; all of an inode's together must fit the tree's format.
pub const XATTR_VALUE_MAX: usize = 65_535;
pub const XATTRS_TOTAL_MAX: usize = 65_535;
/// Of Linux, with the namespace; and how many one inode may have: far above any in use.
pub const XATTR_NAME_MAX: usize = 255;
pub const XATTRS_MAX: usize = 4096;
/// The largest file in bytes: one hole of the tree's format (4 KiB << 31) covers it, and no file system in use on nodes has
/// smaller ones. Holes cost nothing, so this alone bounds them.
pub const FILE_MAX: u64 = 4096 << 31;
/// Data extents in one sparse member.
pub const SPARSE_EXTENTS_MAX: usize = 65_536;
/// Extents of all objects with holes in one layer or image: 16 MiB in a node's memory, however well they compress.
pub const EXTENTS_MAX: usize = 1024 * 1024;
/// An encoded record, tree or map, plain: a decoder refuses to inflate more.
pub const ENCODED_PLAIN_MAX: usize = 1 << 30;
/// Chunks of one layer or image: as many as `LAYER_PLAIN_MAX` bytes can be cut into at worst (objects
/// of just over `CDC_MIN` bytes, each cut in two).
pub const CHUNKS_MAX: usize = 4 * 1024 * 1024;
/// Chunks in one profile: 64 GiB of average ones, more than any start reads.
pub const PROFILE_CHUNKS_MAX: usize = 131_072;
/// Names of one image, and layers of one image (overlay and Docker stop at 127).
pub const REFERENCES_MAX: usize = 1024;
pub const LAYERS_MAX: usize = 1024;
/// Plain bytes of one layer without the holes of its files (256 GiB), when the caller knows no better bound: larger than any in use.
pub const LAYER_PLAIN_MAX: u64 = 1 << 38;
