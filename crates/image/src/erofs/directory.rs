//! A directory's bytes: blocks of entries, each block its own table of names.
//!
//! `entry … | name …` in every block, an entry being `nid (u64) | offset of the name (u16) | type (u8) |
//! 0`. All entries, `.` and `..` among them, are sorted by their names' bytes; the kernel searches
//! first over the blocks and then inside one.

use crate::erofs::format::BLOCK;
use crate::merge::{Child, FileTree, Node};

const ENTRY_LEN: usize = 12;
const TYPE_DIRECTORY: u8 = 2;

pub(super) struct Directory<'a> {
    /// In order.
    entries: Vec<Entry<'a>>,
}

struct Entry<'a> {
    name: &'a [u8],
    target: Target,
    file_type: u8,
}

enum Target {
    Itself,
    Parent,
    Inode(usize),
}

impl<'a> Directory<'a> {
    pub(super) fn new(tree: &FileTree, children: &'a [Child]) -> Directory<'a> {
        let own = [(b".".as_slice(), Target::Itself), (b"..", Target::Parent)];
        let mut entries: Vec<Entry<'a>> = Vec::with_capacity(children.len() + own.len());
        entries.extend(children.iter().map(|child| Entry {
            name: &child.name,
            target: Target::Inode(child.id.index()),
            file_type: file_type(&tree.inode(child.id).node),
        }));
        for (name, target) in own {
            let at = entries.partition_point(|entry| entry.name < name);
            entries.insert(at, Entry { name, target, file_type: TYPE_DIRECTORY });
        }
        Directory { entries }
    }

    /// The length of [`Self::encode`]'s bytes.
    pub(super) fn len(&self) -> usize {
        let mut blocks = self.blocks().peekable();
        let mut len = 0;
        while let Some(block) = blocks.next() {
            len += if blocks.peek().is_some() { BLOCK } else { block.iter().map(Entry::len).sum() };
        }
        len
    }

    /// `nid` says the number of an inode of the tree's table.
    pub(super) fn encode(&self, itself: u64, parent: u64, nid: impl Fn(usize) -> u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for block in self.blocks() {
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
            let mut name_offset = block.len() * ENTRY_LEN;
            for entry in block {
                let number = match entry.target {
                    Target::Itself => itself,
                    Target::Parent => parent,
                    Target::Inode(at) => nid(at),
                };
                bytes.extend_from_slice(&number.to_le_bytes());
                bytes.extend_from_slice(&(name_offset as u16).to_le_bytes());
                bytes.extend_from_slice(&[entry.file_type, 0]);
                name_offset += entry.name.len();
            }
            block.iter().for_each(|entry| bytes.extend_from_slice(entry.name));
        }
        bytes
    }

    /// The entries cut so that each piece fills a block as far as whole entries can.
    fn blocks(&self) -> impl Iterator<Item = &[Entry<'a>]> {
        let mut rest = self.entries.as_slice();
        std::iter::from_fn(move || {
            let mut used = 0;
            let fits = rest.iter().take_while(|entry| {
                used += entry.len();
                used <= BLOCK
            });
            let (block, after) = rest.split_at(fits.count());
            rest = after;
            (!block.is_empty()).then_some(block)
        })
    }
}

impl Entry<'_> {
    fn len(&self) -> usize {
        ENTRY_LEN + self.name.len()
    }
}

fn file_type(node: &Node) -> u8 {
    match node {
        Node::File(_) => 1,
        Node::Directory(_) => TYPE_DIRECTORY,
        Node::CharDevice(_) => 3,
        Node::BlockDevice(_) => 4,
        Node::Fifo => 5,
        Node::Symlink(_) => 7,
    }
}
