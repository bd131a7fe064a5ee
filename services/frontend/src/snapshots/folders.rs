//! The folders of ordinary snapshots: `<state>/snapshots/<id>/{fs,work}`, and a file `whole` where no file of it stands on
//! data of an image.
//!
//! Blocks on the disk. A folder is made before its snapshot is written down and removed after that was
//! forgotten: what nobody names can be removed at any time.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use lifecycle::private;

use super::ledger::{Kind, Usage};

/// Of what `st_blocks` counts, in bytes.
const BLOCK: u64 = 512;
const WHOLE: &str = "whole";

#[derive(Debug)]
pub(super) struct Folders {
    base: PathBuf,
}

impl Folders {
    pub(super) fn open(state: &Path) -> io::Result<Folders> {
        let base = state.join("snapshots");
        private::folder(&base)?;
        Ok(Folders { base: base.canonicalize()? })
    }

    /// The layer itself.
    pub(super) fn content(&self, id: u64) -> PathBuf {
        self.folder(id).join("fs")
    }

    /// What overlayfs needs beside it.
    pub(super) fn work(&self, id: u64) -> PathBuf {
        self.folder(id).join("work")
    }

    /// Whether every file in it has its data: the kernel was never allowed to write down new attributes and leave the data to a layer
    /// below. That of a snapshot over no image says nothing here.
    pub(super) fn is_whole(&self, id: u64) -> bool {
        self.folder(id).join(WHOLE).exists()
    }

    /// Makes the folder of a new snapshot; its root belongs to whom the one below belongs to.
    pub(super) fn make(&self, id: u64, kind: Kind, below: Option<&Path>, whole: bool) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(self.folder(id))?;
        let make = || {
            // As containerd's own overlay makes it, whatever the umask here is: what stands in an image's root entry is set by its
            // layer.
            fs::create_dir(self.content(id))?;
            fs::set_permissions(self.content(id), Permissions::from_mode(0o755))?;
            if let Some(below) = below {
                let owner = fs::metadata(below)?;
                chown(self.content(id), Some(owner.uid()), Some(owner.gid()))?;
            }
            if kind == Kind::Active {
                DirBuilder::new().mode(0o700).create(self.work(id))?;
            }
            if whole {
                fs::write(self.folder(id).join(WHOLE), b"")?;
            }
            Ok(())
        };
        make().inspect_err(|_| {
            // The error that is told is the first one.
            fs::remove_dir_all(self.folder(id)).ok();
        })
    }

    pub(super) fn remove(&self, id: u64) -> io::Result<()> {
        match fs::remove_dir_all(self.folder(id)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The numbers of all folders but these.
    pub(super) fn others(&self, keep: &HashSet<u64>) -> io::Result<Vec<u64>> {
        Ok(self.ids()?.into_iter().filter(|id| !keep.contains(id)).collect())
    }

    /// Removes these folders, whichever can be removed. The error is the first one's.
    pub(super) fn remove_all(&self, ids: &[u64]) -> io::Result<()> {
        let mut failed = Ok(());
        for id in ids {
            if let Err(error) = self.remove(*id) {
                tracing::warn!(id, %error, "the folder of a forgotten snapshot stays");
                failed = failed.and(Err(error));
            }
        }
        failed
    }

    /// The first number that no folder has, nor any after it.
    pub(super) fn first_free(&self) -> io::Result<u64> {
        Ok(self.ids()?.last().map_or(1, |last| last + 1))
    }

    /// What a layer takes on the disk; files with several names count once.
    pub(super) fn usage(&self, id: u64) -> io::Result<Usage> {
        let mut usage = Usage::default();
        let (mut seen, mut open) = (HashSet::new(), vec![self.content(id)]);
        while let Some(path) = open.pop() {
            // What a container removes meanwhile takes nothing any more.
            let Some(found) = unless_gone(fs::symlink_metadata(&path))? else { continue };
            if found.nlink() > 1 && !found.is_dir() && !seen.insert((found.dev(), found.ino())) {
                continue;
            }
            usage.bytes += found.blocks() * BLOCK;
            usage.inodes += 1;
            if found.is_dir() {
                let Some(entries) = unless_gone(fs::read_dir(&path))? else { continue };
                for entry in entries {
                    open.push(entry?.path());
                }
            }
        }
        Ok(usage)
    }

    fn ids(&self) -> io::Result<BTreeSet<u64>> {
        let mut ids = BTreeSet::new();
        for entry in fs::read_dir(&self.base)? {
            // Not ours, if it is no number.
            ids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        Ok(ids)
    }

    fn folder(&self, id: u64) -> PathBuf {
        self.base.join(id.to_string())
    }
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_measures_and_removes() {
        let state = tempfile::tempdir().unwrap();
        let folders = Folders::open(state.path()).unwrap();
        assert_eq!(folders.first_free().unwrap(), 1);
        folders.make(1, Kind::Active, None, true).unwrap();
        folders.make(7, Kind::View, Some(&folders.content(1)), false).unwrap();
        assert!(folders.is_whole(1) && !folders.is_whole(7) && !folders.is_whole(2));
        assert!(folders.work(1).is_dir() && !folders.work(7).exists());
        assert_eq!(folders.make(7, Kind::View, None, false).unwrap_err().kind(), ErrorKind::AlreadyExists);
        let empty = folders.usage(1).unwrap();
        fs::write(folders.content(1).join("a"), vec![1; 10_000]).unwrap();
        fs::hard_link(folders.content(1).join("a"), folders.content(1).join("b")).unwrap();
        let filled = folders.usage(1).unwrap();
        assert_eq!(filled.inodes, empty.inodes + 1);
        assert!((10_000..20_000).contains(&(filled.bytes - empty.bytes)), "{filled:?}");
        assert_eq!(folders.others(&HashSet::from([7])).unwrap(), [1]);
        folders.remove_all(&[1]).unwrap();
        assert_eq!(folders.first_free().unwrap(), 8);
        folders.remove(7).unwrap();
        folders.remove(7).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_made_leaves_nothing() {
        let state = tempfile::tempdir().unwrap();
        let folders = Folders::open(state.path()).unwrap();
        folders.make(1, Kind::Active, Some(Path::new("/nowhere")), true).unwrap_err();
        assert_eq!(folders.first_free().unwrap(), 1);
    }
}
