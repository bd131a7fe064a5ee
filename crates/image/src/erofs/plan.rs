//! Where every inode will stand: entries name inodes that are written after them, so offsets come first.

use crate::erofs::TreeError;
use crate::erofs::directory::Directory;
use crate::erofs::format::{BLOCK, DataLayout, FIRST_INODE, HOLE, INODE_LEN, INODE_SLOT};
use crate::erofs::xattr::{self, Shared};
use crate::limits::ENCODED_PLAIN_MAX;
use crate::merge::{FileTree, Inode, Node};
use crate::record::Content;

pub(super) struct Plan {
    places: Vec<Place>,
    /// Of every directory the one that it stands in; of the root, itself.
    parents: Vec<u32>,
    pub(super) shared: Shared,
    shared_start: usize,
    data_start: usize,
    data_blocks: usize,
}

pub(super) struct Place {
    pub(super) offset: usize,
    pub(super) layout: DataLayout,
    /// The first of its blocks, counted from the start of the data.
    block: Option<u32>,
}

impl Plan {
    pub(super) fn of(tree: &FileTree, max: usize) -> Result<Plan, TreeError> {
        let max = max.min(ENCODED_PLAIN_MAX);
        let shared = Shared::of(tree).map_err(|what| TreeError::DoesNotFit { inode: 0, what })?;
        let mut places = Vec::with_capacity(tree.inodes().len());
        let mut xattrs = Vec::new();
        let mut end = FIRST_INODE;
        let mut data_blocks = 0usize;
        for (at, inode) in tree.inodes().iter().enumerate() {
            xattrs.clear();
            xattr::encode(inode, shared.numbers(at), &mut xattrs)
                .map_err(|what| TreeError::DoesNotFit { inode: at, what })?;
            let shape = Shape::of(tree, inode, INODE_LEN + xattrs.len());
            let offset = shape.offset(end);
            let block = (shape.blocks > 0).then_some(data_blocks as u32);
            end = offset + shape.len;
            data_blocks += shape.blocks;
            let all = end.saturating_add(data_blocks.saturating_mul(BLOCK)).saturating_add(shared.area.len());
            if all > max.saturating_sub(2 * BLOCK) {
                return Err(TreeError::TooLarge(max));
            }
            places.push(Place { offset, layout: shape.layout, block });
        }
        // `fsck.erofs` reads where attributes would begin also behind an inode that has none.
        let shared_start = (end + xattr::HEADER.len()).next_multiple_of(BLOCK);
        let data_start = shared_start + shared.area.len().next_multiple_of(BLOCK);
        Ok(Plan { places, parents: parents(tree), shared, shared_start, data_start, data_blocks })
    }

    pub(super) fn place(&self, at: usize) -> &Place {
        &self.places[at]
    }

    pub(super) fn nid(&self, at: usize) -> u64 {
        (self.places[at].offset / INODE_SLOT) as u64
    }

    pub(super) fn parent(&self, at: usize) -> usize {
        self.parents[at] as usize
    }

    pub(super) fn block(&self, place: &Place) -> u32 {
        // Fits: the whole image is bounded to 2^18 blocks.
        place.block.map_or(0, |block| block + (self.data_start / BLOCK) as u32)
    }

    pub(super) fn shared_start(&self) -> usize {
        self.shared_start
    }

    /// Of the shared attributes; 0 when there are none.
    pub(super) fn shared_block(&self) -> u32 {
        match self.shared.area.is_empty() {
            true => 0,
            false => (self.shared_start / BLOCK) as u32,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.data_start + self.data_blocks * BLOCK
    }

    pub(super) fn blocks(&self) -> u32 {
        (self.len() / BLOCK) as u32
    }
}

/// What an inode takes up.
struct Shape {
    layout: DataLayout,
    /// The inode, its attributes and what stands behind them.
    len: usize,
    /// Further blocks elsewhere.
    blocks: usize,
}

impl Shape {
    /// `head` is the length of the inode with its attributes.
    fn of(tree: &FileTree, inode: &Inode, head: usize) -> Shape {
        let body = match &inode.node {
            Node::Directory(children) => Directory::new(tree, children).len(),
            Node::Symlink(target) => target.len(),
            Node::File(Content::Inline(bytes)) => bytes.len(),
            Node::File(Content::Object { .. }) => {
                return Shape { layout: DataLayout::Holes, len: head + HOLE.len(), blocks: 0 };
            }
            Node::CharDevice(_) | Node::BlockDevice(_) | Node::Fifo => 0,
        };
        let tail = body % BLOCK;
        if tail > 0 && head + tail <= BLOCK {
            Shape { layout: DataLayout::Inline, len: head + tail, blocks: body / BLOCK }
        } else {
            Shape { layout: DataLayout::Plain, len: head, blocks: body.div_ceil(BLOCK) }
        }
    }

    /// The first place from `end` on. The kernel wants an inode and the data behind it in one block.
    fn offset(&self, end: usize) -> usize {
        let offset = end.next_multiple_of(INODE_SLOT);
        if self.layout == DataLayout::Inline && offset % BLOCK + self.len > BLOCK {
            offset.next_multiple_of(BLOCK)
        } else {
            offset
        }
    }
}

fn parents(tree: &FileTree) -> Vec<u32> {
    let mut parents = vec![0; tree.inodes().len()];
    for (at, inode) in tree.inodes().iter().enumerate() {
        for child in inode.children() {
            parents[child.id.index()] = at as u32;
        }
    }
    parents
}
