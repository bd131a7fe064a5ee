//! A merged file tree: a table of inodes, and names that point into it.
//!
//! The table begins with the root; after a directory's children follow those of its first
//! subdirectory, and so on: inodes that are listed together stand together. The tree owns what is in
//! it: the records of the layers are gone by then.

use crate::record::{Content, Device, Meta};

#[derive(Debug)]
pub struct FileTree {
    inodes: Vec<Inode>,
}

/// Position in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(pub(super) u32);

#[derive(Debug)]
pub struct Inode {
    pub meta: Meta,
    /// How many names there are: 2 and one for each subdirectory when it is a directory.
    pub nlink: u32,
    pub node: Node,
}

/// What an inode is; `D` is how a directory keeps its names.
#[derive(Debug)]
pub enum Node<D = Vec<Child>> {
    Directory(D),
    File(Content),
    Symlink(Vec<u8>),
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
}

/// A name in a directory. They are sorted by their bytes.
#[derive(Debug)]
pub struct Child {
    pub name: Box<[u8]>,
    pub id: InodeId,
}

impl FileTree {
    /// The inodes in their order, the root first; every child stands in the table.
    pub(super) fn new(inodes: Vec<Inode>) -> FileTree {
        let mut tree = FileTree { inodes };
        tree.count_links();
        tree
    }

    pub fn root(&self) -> InodeId {
        InodeId(0)
    }

    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.index()]
    }

    /// All inodes in the order of the table.
    pub fn inodes(&self) -> &[Inode] {
        &self.inodes
    }

    /// Empty unless it is a directory.
    pub fn children(&self, id: InodeId) -> &[Child] {
        self.inode(id).children()
    }

    /// The inode at a normalised path, symbolic links not followed.
    pub fn find(&self, path: &[u8]) -> Option<InodeId> {
        let mut here = self.root();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let children = self.children(here);
            let at = children.binary_search_by(|child| (*child.name).cmp(name)).ok()?;
            here = children[at].id;
        }
        Some(here)
    }

    /// Regular files, hard links counted once.
    pub fn files(&self) -> u64 {
        self.inodes.iter().filter(|inode| matches!(inode.node, Node::File(_))).count() as u64
    }

    fn count_links(&mut self) {
        let mut links = vec![0u32; self.inodes.len()];
        for (at, inode) in self.inodes.iter().enumerate() {
            if matches!(inode.node, Node::Directory(_)) {
                links[at] += 2;
            }
            for child in inode.children() {
                match self.inode(child.id).node {
                    Node::Directory(_) => links[at] += 1,
                    _ => links[child.id.index()] += 1,
                }
            }
        }
        for (inode, nlink) in self.inodes.iter_mut().zip(links) {
            inode.nlink = nlink;
        }
    }
}

impl InodeId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl Inode {
    pub fn is_directory(&self) -> bool {
        matches!(self.node, Node::Directory(_))
    }

    pub fn children(&self) -> &[Child] {
        match &self.node {
            Node::Directory(children) => children,
            _ => &[],
        }
    }
}

impl<D> Node<D> {
    pub(super) fn map_directory<E>(self, map: impl FnOnce(D) -> E) -> Node<E> {
        match self {
            Node::Directory(names) => Node::Directory(map(names)),
            Node::File(content) => Node::File(content),
            Node::Symlink(target) => Node::Symlink(target),
            Node::CharDevice(device) => Node::CharDevice(device),
            Node::BlockDevice(device) => Node::BlockDevice(device),
            Node::Fifo => Node::Fifo,
        }
    }
}
