//! Layers, bottom first, become one file tree.
//!
//! The result is what containerd or umoci would leave in a folder after they unpacked the layers one
//! over the other, with everything that depends on when and where they ran left out:
//!
//! * A later entry of a path wins, also within its layer. A directory over a directory keeps what is
//!   inside and takes the new metadata; everything else replaces all that was there.
//! * A whiteout or an opaque mark takes away what lower layers brought, never what its own layer
//!   brings, whether that stands before or after it. One that hides nothing is no error.
//! * A hard link takes the inode that its target names at that moment, and its metadata is the
//!   inode's from then on. Replacing one name later leaves the others as they are.
//! * Parents that no entry brought are made: `root:root`, 0755, at the epoch. An unpacker would take
//!   the current time, and the same layers would give different trees.
//! * Symbolic links in the parents of a path are followed inside the root, as a chroot would: `..`
//!   above the root stays at the root. Images exist whose upper layers write through `lib -> usr/lib`.
//!   A loop, or a parent that is a file, is refused.
//!
//! A record that was scanned or decoded keeps its own rules; checked here is what only the layers
//! together can break. No code recurses: a walk is as deep as the image wants it to be.
//!
//! A [`Merger`] takes one layer at a time: in memory are the tree of what is left so far, and one record.

mod draft;
mod tree;

#[cfg(test)]
mod tests;

use crate::limits::{DEPTH_MAX, ENTRIES_MAX, FILE_MAX, NAME_MAX};
use crate::path::{self, PathError};
use crate::record::{Content, Entry, EntryKind, LayerRecord};

use draft::Draft;
pub use tree::{Child, FileTree, Inode, InodeId, Node};

/// Why layers do not make a tree: the layer, its entry, and what is wrong with it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("merge layer {layer} (sha256:{diff_id}): entry {path:?}: {problem}")]
pub struct MergeError {
    /// Position in the image, the bottom layer is 0.
    pub layer: usize,
    /// Of the layer's tar, in hexadecimal.
    pub diff_id: String,
    /// What of the name is UTF-8.
    pub path: String,
    pub problem: Problem,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Problem {
    #[error("its path {0}")]
    BadPath(#[from] PathError),
    #[error("a directory that a symbolic link leads to has a name longer than {NAME_MAX} bytes")]
    NameTooLong,
    #[error("nested deeper than {DEPTH_MAX} directories")]
    TooDeep,
    #[error("more than {ENTRIES_MAX} entries in all layers together")]
    TooManyEntries,
    #[error("the root must be a directory and cannot be removed")]
    BadRoot,
    #[error("parent {0:?} is not a directory")]
    ParentNotDirectory(String),
    #[error("the symbolic links in its path loop")]
    SymlinkLoop,
    #[error("hard link to {0:?}, which is not there")]
    LinkToNothing(String),
    #[error("hard link to {0:?}, which is a directory")]
    LinkToDirectory(String),
    #[error("owner {OWNER_NONE} is what Linux calls no owner")]
    NoOwner,
    #[error("a file of {0} bytes, at most {FILE_MAX} can be")]
    FileTooLong(u64),
}

/// `(uid_t) -1`: who reads such an inode gets `EOVERFLOW`.
const OWNER_NONE: u32 = u32::MAX;

/// Layers on their way to a tree. Each is gone before the next one is needed; what there is of it in
/// the tree so far stays.
#[derive(Debug)]
pub struct Merger {
    draft: Draft,
    layers: usize,
}

impl Merger {
    pub fn new() -> Merger {
        Merger { draft: Draft::new(), layers: 0 }
    }

    /// Applies the next layer, bottom first. After an error there is no tree.
    pub fn add(&mut self, layer: LayerRecord) -> Result<(), MergeError> {
        let LayerRecord { diff_id, entries, .. } = layer;
        self.draft.begin_layer();
        for entry in entries {
            let checked = check(&entry);
            let Entry { path, kind, meta } = entry;
            checked.and_then(|()| self.draft.apply(&path, kind, meta)).map_err(|problem| MergeError {
                layer: self.layers,
                diff_id: hex::encode(diff_id),
                path: text(&path),
                problem,
            })?;
        }
        self.layers += 1;
        Ok(())
    }

    pub fn finish(self) -> FileTree {
        self.draft.finish()
    }
}

impl Default for Merger {
    fn default() -> Merger {
        Merger::new()
    }
}

/// Merges the layers, bottom first, for who holds them all anyway.
pub fn merge(layers: &[&LayerRecord]) -> Result<FileTree, MergeError> {
    let mut merger = Merger::new();
    for layer in layers {
        merger.add((*layer).clone())?;
    }
    Ok(merger.finish())
}

fn check(entry: &Entry) -> Result<(), Problem> {
    path::check(&entry.path)?;
    if entry.meta.uid == OWNER_NONE || entry.meta.gid == OWNER_NONE {
        return Err(Problem::NoOwner);
    }
    match entry.kind {
        EntryKind::File(Content::Object { len, .. }) if len > FILE_MAX => Err(Problem::FileTooLong(len)),
        _ => Ok(()),
    }
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
