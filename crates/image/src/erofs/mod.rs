//! A file tree as an EROFS image that holds metadata only: the lower layer of a container's root.
//!
//! ```text
//! block 0   superblock at 1024
//!           inodes from 1152 on, in the order of the tree's table, each at a multiple of 32 bytes:
//!             inode 64 | extended attributes | what fits behind it: symbolic link, small file, last
//!             part of a directory; or the hole that stands for an object's content
//! block m   extended attributes that several inodes have
//! block n   what did not fit behind an inode: directory blocks, long symbolic links
//! ```
//!
//! A regular file of an object has the object's size and one hole, and carries
//! `trusted.overlay.metacopy` and `trusted.overlay.redirect=/ab/cdef…`: overlayfs finds its content
//! in a data-only lower layer under that name. Such attributes that the image itself brings are
//! escaped the kernel's own way and never mean anything on the way.
//!
//! The bytes are a function of the tree alone (no build time, no random UUID), for the digest of a
//! tree to be reproducible by anyone. There is no checksum in the superblock: the digest covers all.
//! Every inode has the extended form, the only one with its own times and 32-bit owners.

mod directory;
mod format;
mod plan;
mod xattr;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use crate::limits::ENCODED_PLAIN_MAX;
use crate::merge::{FileTree, Inode, Node};
use crate::record::{Content, Device};

use directory::Directory;
use format::{BLOCK, DataLayout, DiskInode};
use plan::{Place, Plan};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TreeError {
    #[error("write tree: more than {0} bytes")]
    TooLarge(usize),
    #[error("write tree: inode {inode}: {what} does not fit the format")]
    DoesNotFit { inode: usize, what: &'static str },
}

/// The image, a whole number of blocks.
pub fn write(tree: &FileTree) -> Result<Vec<u8>, TreeError> {
    write_within(tree, ENCODED_PLAIN_MAX)
}

/// The same, unless it would have more than `max` bytes.
pub fn write_within(tree: &FileTree, max: usize) -> Result<Vec<u8>, TreeError> {
    let plan = Plan::of(tree, max)?;
    let mut image = vec![0; plan.len()];
    let root = plan.nid(tree.root().index());
    let superblock = format::superblock(root, tree.inodes().len() as u64, &plan);
    put(&mut image, format::SUPERBLOCK_OFFSET, &superblock);
    for (at, inode) in tree.inodes().iter().enumerate() {
        write_inode(tree, &plan, at, inode, &mut image)?;
    }
    put(&mut image, plan.shared_start(), &plan.shared.area);
    Ok(image)
}

/// Writes an inode, what stands behind it, and its blocks.
fn write_inode(
    tree: &FileTree,
    plan: &Plan,
    at: usize,
    inode: &Inode,
    image: &mut [u8],
) -> Result<(), TreeError> {
    let place = plan.place(at);
    let mut xattrs = Vec::new();
    xattr::encode(inode, plan.shared.numbers(at), &mut xattrs)
        .map_err(|what| TreeError::DoesNotFit { inode: at, what })?;
    let (size, body) = body(tree, plan, at, inode);
    let disk = DiskInode {
        layout: place.layout,
        xattr_len: xattrs.len(),
        mode: mode(inode),
        size,
        union: union(inode, place, plan, size),
        number: at as u32,
        meta: &inode.meta,
        nlink: inode.nlink,
    };
    let behind = put(image, place.offset, &disk.encode());
    let behind = put(image, behind, &xattrs);
    let blocks = plan.block(place) as usize * BLOCK;
    match place.layout {
        DataLayout::Holes => {
            put(image, behind, &format::HOLE);
        }
        DataLayout::Plain => {
            put(image, blocks, &body);
        }
        DataLayout::Inline => {
            let (full, tail) = body.split_at(body.len() - body.len() % BLOCK);
            put(image, blocks, full);
            put(image, behind, tail);
        }
    }
    Ok(())
}

/// Writes bytes where the plan has room for them; says where they end.
fn put(image: &mut [u8], at: usize, bytes: &[u8]) -> usize {
    let end = at + bytes.len();
    image[at..end].copy_from_slice(bytes);
    end
}

/// The size that `stat` shows, and the bytes of it that the image holds.
fn body<'t>(tree: &FileTree, plan: &Plan, at: usize, inode: &'t Inode) -> (u64, Cow<'t, [u8]>) {
    let held: Cow<'t, [u8]> = match &inode.node {
        Node::Directory(children) => {
            let directory = Directory::new(tree, children);
            directory.encode(plan.nid(at), plan.nid(plan.parent(at)), |child| plan.nid(child)).into()
        }
        Node::Symlink(target) => Cow::Borrowed(target),
        Node::File(Content::Inline(bytes)) => bytes.into(),
        Node::File(Content::Object { len, .. }) => return (*len, Cow::Borrowed(&[])),
        Node::CharDevice(_) | Node::BlockDevice(_) | Node::Fifo => Cow::Borrowed(&[]),
    };
    (held.len() as u64, held)
}

fn mode(inode: &Inode) -> u16 {
    let kind = match inode.node {
        Node::Directory(_) => 0o040_000,
        Node::File(_) => 0o100_000,
        // Linux shows no other mode of a symbolic link.
        Node::Symlink(_) => return 0o120_777,
        Node::CharDevice(_) => 0o020_000,
        Node::BlockDevice(_) => 0o060_000,
        Node::Fifo => 0o010_000,
    };
    kind | (inode.meta.mode & 0o7777) as u16
}

/// The field whose meaning depends on the inode: a device number, a chunk format, a block.
fn union(inode: &Inode, place: &Place, plan: &Plan, size: u64) -> u32 {
    match &inode.node {
        Node::CharDevice(device) | Node::BlockDevice(device) => encode_device(*device),
        _ => match place.layout {
            DataLayout::Holes => u32::from(format::hole_bits(size)),
            _ => plan.block(place),
        },
    }
}

/// The kernel's `new_encode_dev`; merging has bounded both numbers.
fn encode_device(Device { major, minor }: Device) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}
