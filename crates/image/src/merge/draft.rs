//! The tree while layers are applied to it.
//!
//! Inodes are only added: what is replaced or hidden loses its name and stays behind, until
//! [`Draft::finish`] takes over those that can still be reached. A name remembers the last layer that
//! touched it, for whiteouts spare what their own layer brings.

use std::collections::BTreeMap;

use crate::limits::{DEPTH_MAX, ENTRIES_MAX, NAME_MAX};
use crate::merge::tree::{Child, FileTree, Inode, InodeId, Node};
use crate::merge::{Problem, text};
use crate::record::{Entry, EntryKind, Meta, Mtime, Xattrs};

/// As many symbolic links as Linux follows in one path.
const SYMLINK_HOPS_MAX: usize = 40;

/// Of the root and of every parent that no entry brought.
static UNTOLD: Meta =
    Meta { mode: 0o755, uid: 0, gid: 0, mtime: Mtime { secs: 0, nanos: 0 }, xattrs: Xattrs::NONE };

const ROOT: usize = 0;

pub(super) struct Draft<'a> {
    inodes: Vec<DraftInode<'a>>,
    /// Counted from 1: the root is older than any.
    layer: u32,
}

struct DraftInode<'a> {
    meta: &'a Meta,
    node: Node<'a, Names<'a>>,
}

type Names<'a> = BTreeMap<&'a [u8], Name>;

#[derive(Clone, Copy)]
struct Name {
    inode: usize,
    /// The last layer that brought it, or something below it.
    layer: u32,
}

/// What to do about a parent that is not there.
#[derive(Clone, Copy, PartialEq)]
enum Missing {
    Make,
    Stop,
}

impl<'a> Draft<'a> {
    pub(super) fn new() -> Draft<'a> {
        Draft { inodes: vec![DraftInode { meta: &UNTOLD, node: Node::Directory(Names::new()) }], layer: 0 }
    }

    pub(super) fn begin_layer(&mut self) {
        self.layer += 1;
    }

    pub(super) fn apply(&mut self, entry: &'a Entry) -> Result<(), Problem> {
        let Some((parent, name)) = split_last(&entry.path) else {
            return self.apply_to_root(entry);
        };
        let node = match &entry.kind {
            EntryKind::Whiteout | EntryKind::Opaque => {
                self.hide(parent, name, entry.kind == EntryKind::Opaque);
                return Ok(());
            }
            EntryKind::Hardlink(target) => return self.link(parent, name, target, &entry.meta),
            EntryKind::Directory => Node::Directory(Names::new()),
            EntryKind::File(content) => Node::File(content),
            EntryKind::Symlink(target) => Node::Symlink(target),
            EntryKind::CharDevice(device) => Node::CharDevice(*device),
            EntryKind::BlockDevice(device) => Node::BlockDevice(*device),
            EntryKind::Fifo => Node::Fifo,
        };
        let directory = self.parent(parent)?;
        let kept = match node {
            Node::Directory(_) => self.directory_at(directory, name),
            _ => None,
        };
        let inode = match kept {
            Some(kept) => kept,
            None => self.add(&entry.meta, node)?,
        };
        self.inodes[inode].meta = &entry.meta;
        self.set_name(directory, name, inode);
        Ok(())
    }

    fn apply_to_root(&mut self, entry: &'a Entry) -> Result<(), Problem> {
        match entry.kind {
            EntryKind::Directory => self.inodes[ROOT].meta = &entry.meta,
            EntryKind::Opaque => self.hide_inside(ROOT),
            _ => return Err(Problem::BadRoot),
        }
        Ok(())
    }

    fn link(
        &mut self,
        parent: &'a [u8],
        name: &'a [u8],
        target: &'a [u8],
        meta: &'a Meta,
    ) -> Result<(), Problem> {
        let directory = self.parent(parent)?;
        // A directory in the way goes first, as an unpacker must do it: its content can be no target.
        if self.directory_at(directory, name).is_some() {
            self.remove_name(directory, name);
        }
        let inode = self.find(target).ok_or_else(|| Problem::LinkToNothing(text(target)))?;
        if matches!(self.inodes[inode].node, Node::Directory(_)) {
            return Err(Problem::LinkToDirectory(text(target)));
        }
        self.inodes[inode].meta = meta;
        self.set_name(directory, name, inode);
        Ok(())
    }

    /// A whiteout of what cannot be reached hides nothing.
    fn hide(&mut self, parent: &'a [u8], name: &'a [u8], only_inside: bool) {
        let Ok(Some(directory)) = self.walk(parent, Missing::Stop) else { return };
        let Some(found) = self.names(directory).and_then(|names| names.get(name)).copied() else { return };
        if !only_inside && found.layer < self.layer {
            self.remove_name(directory, name);
        } else {
            self.hide_inside(found.inode);
        }
    }

    /// Forgets all below a directory that this layer did not bring.
    fn hide_inside(&mut self, directory: usize) {
        let layer = self.layer;
        let mut pending = vec![directory];
        while let Some(next) = pending.pop() {
            if let Node::Directory(names) = &mut self.inodes[next].node {
                names.retain(|_, name| name.layer == layer);
                pending.extend(names.values().map(|name| name.inode));
            }
        }
    }

    /// The inode at a path; its last name is not followed when it is a symbolic link.
    fn find(&mut self, path: &'a [u8]) -> Option<usize> {
        let Some((parent, name)) = split_last(path) else { return Some(ROOT) };
        let directory = self.walk(parent, Missing::Stop).ok()??;
        self.names(directory)?.get(name).map(|found| found.inode)
    }

    fn parent(&mut self, path: &'a [u8]) -> Result<usize, Problem> {
        self.walk(path, Missing::Make)?.ok_or_else(|| Problem::ParentNotDirectory(text(path)))
    }

    /// The directory at a path, symbolic links followed; `None` when it is missing and is not to be made.
    fn walk(&mut self, path: &'a [u8], missing: Missing) -> Result<Option<usize>, Problem> {
        let mut here = ROOT;
        let mut above = Vec::new();
        let mut pending: Vec<&'a [u8]> = names_of(path).rev().collect();
        let mut hops = 0;
        while let Some(name) = pending.pop() {
            if name == b".." {
                here = above.pop().unwrap_or(ROOT);
                continue;
            }
            let found = self.names(here).and_then(|names| names.get(name)).map(|found| found.inode);
            let next = match found {
                None if missing == Missing::Stop => return Ok(None),
                None if name.len() > NAME_MAX => return Err(Problem::NameTooLong),
                None => self.add(&UNTOLD, Node::Directory(Names::new()))?,
                Some(inode) => match self.inodes[inode].node {
                    Node::Directory(_) => inode,
                    Node::Symlink(target) => {
                        hops += 1;
                        if hops > SYMLINK_HOPS_MAX {
                            return Err(Problem::SymlinkLoop);
                        }
                        if target.starts_with(b"/") {
                            here = ROOT;
                            above.clear();
                        }
                        pending.extend(names_of(target).rev());
                        continue;
                    }
                    _ => return Err(Problem::ParentNotDirectory(text(name))),
                },
            };
            if missing == Missing::Make {
                self.set_name(here, name, next);
            }
            above.push(here);
            here = next;
            if above.len() >= DEPTH_MAX {
                return Err(Problem::TooDeep);
            }
        }
        Ok(Some(here))
    }

    fn add(&mut self, meta: &'a Meta, node: Node<'a, Names<'a>>) -> Result<usize, Problem> {
        if self.inodes.len() >= ENTRIES_MAX {
            return Err(Problem::TooManyEntries);
        }
        self.inodes.push(DraftInode { meta, node });
        Ok(self.inodes.len() - 1)
    }

    fn names(&self, inode: usize) -> Option<&Names<'a>> {
        match &self.inodes[inode].node {
            Node::Directory(names) => Some(names),
            _ => None,
        }
    }

    fn directory_at(&self, directory: usize, name: &[u8]) -> Option<usize> {
        let found = self.names(directory)?.get(name)?.inode;
        matches!(self.inodes[found].node, Node::Directory(_)).then_some(found)
    }

    fn set_name(&mut self, directory: usize, name: &'a [u8], inode: usize) {
        let layer = self.layer;
        if let Node::Directory(names) = &mut self.inodes[directory].node {
            names.insert(name, Name { inode, layer });
        }
    }

    fn remove_name(&mut self, directory: usize, name: &[u8]) {
        if let Node::Directory(names) = &mut self.inodes[directory].node {
            names.remove(name);
        }
    }

    /// Takes over what can be reached from the root, in the order that [`FileTree`] promises.
    pub(super) fn finish(mut self) -> FileTree<'a> {
        let (order, numbers) = self.order();
        let mut inodes = Vec::with_capacity(order.len());
        for old in order {
            let gone = DraftInode { meta: &UNTOLD, node: Node::Fifo };
            let DraftInode { meta, node } = std::mem::replace(&mut self.inodes[old], gone);
            let node = node.map_directory(|names| {
                let child =
                    |(name, found): (&'a [u8], Name)| Child { name, id: InodeId(numbers[found.inode]) };
                names.into_iter().map(child).collect()
            });
            inodes.push(Inode { meta, nlink: 0, node });
        }
        FileTree::new(inodes)
    }

    /// The old numbers of all reachable inodes in their new order, and the new number of each old one.
    fn order(&self) -> (Vec<usize>, Vec<u32>) {
        const UNSEEN: u32 = u32::MAX;
        let mut numbers = vec![UNSEEN; self.inodes.len()];
        let mut order = vec![ROOT];
        numbers[ROOT] = 0;
        let mut pending = vec![ROOT];
        while let Some(directory) = pending.pop() {
            let first = pending.len();
            for name in self.names(directory).into_iter().flat_map(|names| names.values()) {
                if numbers[name.inode] == UNSEEN {
                    // Fits: `add` bounds the inodes far below 2^32.
                    numbers[name.inode] = order.len() as u32;
                    order.push(name.inode);
                    if self.names(name.inode).is_some() {
                        pending.push(name.inode);
                    }
                }
            }
            pending[first..].reverse();
        }
        (order, numbers)
    }
}

/// `a/b/c` is `a/b` and `c`; the root has no last name.
fn split_last(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None if path.is_empty() => None,
        None => Some((b"", path)),
    }
}

fn names_of(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."))
}
