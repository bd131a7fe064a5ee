//! The tree while layers are applied to it.
//!
//! It owns what is in it. An inode that loses its last name is gone at once, and everything below it
//! that has no other name: what a layer hides or replaces takes no memory while the next one is
//! applied. A name remembers the last layer that touched it, for whiteouts spare what their own layer
//! brings.

mod finish;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::mem;

use crate::limits::{DEPTH_MAX, ENTRIES_MAX, NAME_MAX};
use crate::merge::tree::Node;
use crate::merge::{Problem, text};
use crate::record::{EntryKind, Meta, Mtime, Xattrs};

/// As many symbolic links as Linux follows in one path.
const SYMLINK_HOPS_MAX: usize = 40;

/// Of the root and of every parent that no entry brought.
const UNTOLD: Meta =
    Meta { mode: 0o755, uid: 0, gid: 0, mtime: Mtime { secs: 0, nanos: 0 }, xattrs: Xattrs::NONE };

const ROOT: usize = 0;

#[derive(Debug)]
pub(super) struct Draft {
    inodes: Vec<DraftInode>,
    /// Where inodes stood that are gone.
    free: Vec<usize>,
    /// Inodes that there were, those that are gone among them.
    made: usize,
    /// Counted from 1: the root is older than any.
    layer: u32,
}

#[derive(Debug)]
struct DraftInode {
    meta: Meta,
    /// How many names lead to it; 0 where none is left. The root has no name.
    names: u32,
    node: Node<Names>,
}

type Names = BTreeMap<Box<[u8]>, Name>;

#[derive(Clone, Copy, Debug)]
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

impl Draft {
    pub(super) fn new() -> Draft {
        let root = DraftInode { meta: UNTOLD, names: 0, node: Node::Directory(Names::new()) };
        Draft { inodes: vec![root], free: Vec::new(), made: 1, layer: 0 }
    }

    pub(super) fn begin_layer(&mut self) {
        self.layer += 1;
    }

    pub(super) fn apply(&mut self, path: &[u8], kind: EntryKind, meta: Meta) -> Result<(), Problem> {
        let Some((parent, name)) = split_last(path) else {
            return self.apply_to_root(&kind, meta);
        };
        let node = match kind {
            EntryKind::Whiteout | EntryKind::Opaque => {
                self.hide(parent, name, kind == EntryKind::Opaque);
                return Ok(());
            }
            EntryKind::Hardlink(target) => return self.link(parent, name, &target, meta),
            EntryKind::Directory => Node::Directory(Names::new()),
            EntryKind::File(content) => Node::File(content),
            EntryKind::Symlink(target) => Node::Symlink(target),
            EntryKind::CharDevice(device) => Node::CharDevice(device),
            EntryKind::BlockDevice(device) => Node::BlockDevice(device),
            EntryKind::Fifo => Node::Fifo,
        };
        let directory = self.parent(parent)?;
        let kept = match node {
            Node::Directory(_) => self.directory_at(directory, name),
            _ => None,
        };
        let inode = match kept {
            Some(kept) => {
                self.inodes[kept].meta = meta;
                kept
            }
            None => self.add(meta, node)?,
        };
        self.set_name(directory, name, inode);
        Ok(())
    }

    fn apply_to_root(&mut self, kind: &EntryKind, meta: Meta) -> Result<(), Problem> {
        match kind {
            EntryKind::Directory => self.inodes[ROOT].meta = meta,
            EntryKind::Opaque => self.hide_inside(ROOT),
            _ => return Err(Problem::BadRoot),
        }
        Ok(())
    }

    fn link(&mut self, parent: &[u8], name: &[u8], target: &[u8], meta: Meta) -> Result<(), Problem> {
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
    fn hide(&mut self, parent: &[u8], name: &[u8], only_inside: bool) {
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
        let mut hidden = Vec::new();
        let mut pending = vec![directory];
        while let Some(next) = pending.pop() {
            if let Node::Directory(names) = &mut self.inodes[next].node {
                hidden
                    .extend(names.extract_if(.., |_, name| name.layer != layer).map(|(_, name)| name.inode));
                pending.extend(names.values().map(|name| name.inode));
            }
        }
        self.lose_names(hidden);
    }

    /// The inode at a path; its last name is not followed when it is a symbolic link.
    fn find(&mut self, path: &[u8]) -> Option<usize> {
        let Some((parent, name)) = split_last(path) else { return Some(ROOT) };
        let directory = self.walk(parent, Missing::Stop).ok()??;
        self.names(directory)?.get(name).map(|found| found.inode)
    }

    fn parent(&mut self, path: &[u8]) -> Result<usize, Problem> {
        self.walk(path, Missing::Make)?.ok_or_else(|| Problem::ParentNotDirectory(text(path)))
    }

    /// The directory at a path, symbolic links followed; `None` when it is missing and is not to be made.
    fn walk(&mut self, path: &[u8], missing: Missing) -> Result<Option<usize>, Problem> {
        let mut here = ROOT;
        let mut above = Vec::new();
        let mut pending: Vec<Cow<'_, [u8]>> = names_of(path).rev().map(Cow::Borrowed).collect();
        let mut hops = 0;
        while let Some(name) = pending.pop() {
            if *name == *b".." {
                here = above.pop().unwrap_or(ROOT);
                continue;
            }
            let found = self.names(here).and_then(|names| names.get(&*name)).map(|found| found.inode);
            let next = match found {
                None if missing == Missing::Stop => return Ok(None),
                None if name.len() > NAME_MAX => return Err(Problem::NameTooLong),
                None => self.add(UNTOLD, Node::Directory(Names::new()))?,
                Some(inode) => match &self.inodes[inode].node {
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
                        pending.extend(names_of(target).rev().map(|name| Cow::Owned(name.to_vec())));
                        continue;
                    }
                    _ => return Err(Problem::ParentNotDirectory(text(&name))),
                },
            };
            if missing == Missing::Make {
                self.set_name(here, &name, next);
            }
            above.push(here);
            here = next;
            if above.len() >= DEPTH_MAX {
                return Err(Problem::TooDeep);
            }
        }
        Ok(Some(here))
    }

    /// A new inode, without a name.
    fn add(&mut self, meta: Meta, node: Node<Names>) -> Result<usize, Problem> {
        if self.made >= ENTRIES_MAX {
            return Err(Problem::TooManyEntries);
        }
        self.made += 1;
        let inode = DraftInode { meta, names: 0, node };
        if let Some(free) = self.free.pop() {
            self.inodes[free] = inode;
            return Ok(free);
        }
        self.inodes.push(inode);
        Ok(self.inodes.len() - 1)
    }

    fn names(&self, inode: usize) -> Option<&Names> {
        match &self.inodes[inode].node {
            Node::Directory(names) => Some(names),
            _ => None,
        }
    }

    fn directory_at(&self, directory: usize, name: &[u8]) -> Option<usize> {
        let found = self.names(directory)?.get(name)?.inode;
        matches!(self.inodes[found].node, Node::Directory(_)).then_some(found)
    }

    fn set_name(&mut self, directory: usize, name: &[u8], inode: usize) {
        let now = Name { inode, layer: self.layer };
        let Node::Directory(names) = &mut self.inodes[directory].node else { return };
        let before = match names.get_mut(name) {
            Some(known) => Some(mem::replace(known, now).inode),
            None => {
                names.insert(name.into(), now);
                None
            }
        };
        if before != Some(inode) {
            self.inodes[inode].names += 1;
            self.lose_names(before.into_iter().collect());
        }
    }

    fn remove_name(&mut self, directory: usize, name: &[u8]) {
        if let Node::Directory(names) = &mut self.inodes[directory].node {
            let before = names.remove(name).map(|name| name.inode);
            self.lose_names(before.into_iter().collect());
        }
    }

    /// Each of these inodes has a name less; those without one are gone, and so on below them.
    fn lose_names(&mut self, mut pending: Vec<usize>) {
        while let Some(next) = pending.pop() {
            let inode = &mut self.inodes[next];
            inode.names = inode.names.saturating_sub(1);
            if inode.names > 0 {
                continue;
            }
            if let Node::Directory(names) = inode.take().node {
                pending.extend(names.into_values().map(|name| name.inode));
            }
            self.free.push(next);
        }
    }
}

impl DraftInode {
    /// The inode; what stays in its place holds nothing.
    fn take(&mut self) -> DraftInode {
        mem::replace(self, DraftInode { meta: UNTOLD, names: 0, node: Node::Fifo })
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
