//! An image as one folder: a read-only overlay of its tree over its data, which is what a container's own overlay stands on.
//!
//! ```text
//! <state>/mnt/merged/<digest>          tree :: objects :: remote
//! <state>/mnt/merged/<digest>-<id>     the same below ordinary layers, of which snapshot <id> is the highest
//! <state>/mnt/former/<digest>.<n>      one that containers still stand on, though its connection to a process is gone
//! ```
//!
//! containerd and others take `lowerdir=` apart at every colon, and open or compare what they find: the empty names between
//! tree and data, which the kernel wants, stay in here.
//!
//! Who reads a snapshot gets a bind of it, which has its flags: set-user-id programs and devices are as in the image. Only root gets to these
//! folders.
//!
//! Each is a file system of its own, and remembers whether an object was local when a file was first opened, for as long as the file is
//! in use in any container above it. So once an image is complete those above and it are made to forget, and another one takes its
//! place for containers to come.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use image::Digest;
use rustix::fs::CWD;
use rustix::mount::MoveMountFlags;

use super::{MountError, Mounts, detach, root, table, tree};

/// What is used again between the turn of an overlay and that of the one below is forgotten in a later round.
const ROUNDS: usize = 3;
/// Of one tree. Each is of a connection that was lost while containers stood on the image; of more than these, files that are open
/// stay with it.
const FORMER_MAX: usize = 16;

/// Ordinary layers that are merged with an image: those that may have files without data of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Above {
    /// Of the highest one.
    pub(crate) id: u64,
    /// From the top.
    pub(crate) layers: Vec<PathBuf>,
}

impl Mounts {
    /// Merges the tree that `file` holds with its data, below `above` if that is given, unless it is merged. Returns where.
    pub(crate) fn add_merged(
        &self,
        tree: &Digest,
        file: &Path,
        above: Option<Above>,
    ) -> Result<PathBuf, MountError> {
        let point = self.merged_point(tree, above.as_ref());
        if table::read()?.iter().any(|entry| entry.point == point) {
            return Ok(point);
        }
        self.add_tree(tree, file)?;
        make_private(&point).map_err(|source| MountError::kernel("make the folder", &point, source))?;
        let layers = self.layers(self.tree_point(tree), above.map_or_else(Vec::new, |above| above.layers));
        let merge = || {
            root::attach(&root::make(&layers, None, &point)?, &point, MoveMountFlags::empty())?;
            root::check_stackable(&point, &self.trees()).inspect_err(|_| detach(&point))
        };
        merge().or_else(|error| {
            tracing::warn!(%error, "no overlay stands on a tree that the kernel reads from a file: trying a loop device");
            detach(&layers.tree);
            tree::mount_by_loop(file, &layers.tree)?;
            merge()
        })?;
        Ok(point)
    }

    /// Takes away what is merged below the snapshot of this number.
    pub(crate) fn remove_merged_below(&self, id: u64) -> Result<(), MountError> {
        let end = format!("-{id}");
        self.take_away(|name| name.ends_with(&end))
    }

    pub(super) fn remove_merged(&self, tree: &Digest) {
        if let Err(error) = self.take_away(|name| tree_of(name) == Some(*tree)) {
            tracing::warn!(%error, %tree, "what was merged of the tree stays mounted");
        }
    }

    /// Files of a tree that were opened while their objects were missing are local from the next open on, in every root of it.
    pub(crate) fn renew_lookups(&self, tree: &Digest) -> Result<(), MountError> {
        let mut renewed = Ok(());
        for _ in 0..ROUNDS {
            let table = table::read()?;
            let roots =
                table.iter().filter_map(|entry| self.root_of(entry)).filter(|root| root.tree == *tree);
            let merged = self.of_tree(&table, tree).map(|entry| entry.point.clone());
            for point in roots.map(|root| root.point).chain(merged) {
                // One that fails must not keep the others from it.
                renewed = root::renew_lookups(&point).and(renewed);
            }
        }
        renewed.and(self.replace(tree))
    }

    /// Puts another one in the place of each that is merged of the tree; who stands on the old one keeps it.
    fn replace(&self, tree: &Digest) -> Result<(), MountError> {
        let table = table::read()?;
        for entry in self.of_tree(&table, tree) {
            if entry.point.starts_with(self.merged()) {
                let mut above: Vec<_> = entry.values("lowerdir+").collect();
                above.retain(|lower| *lower != self.tree_point(tree));
                let layers = self.layers(self.tree_point(tree), above);
                // Under the old one, so that at no time a container would find an empty folder.
                root::attach(
                    &root::make(&layers, None, &entry.point)?,
                    &entry.point,
                    MoveMountFlags::MOVE_MOUNT_BENEATH,
                )?;
                detach(&entry.point);
            } else {
                detach(&entry.point);
                fs::remove_dir(&entry.point).ok();
            }
        }
        Ok(())
    }

    /// Detaches what a dead process left below `mnt`, and puts aside what containers stand on: it is to forget what it looked up
    /// once the image is complete.
    pub(super) fn set_aside(&self, table: &[table::Entry]) {
        let stood_on = |tree: &Digest| {
            table.iter().any(|entry| self.root_of(entry).is_some_and(|root| root.tree == *tree))
        };
        let ours = |entry: &&table::Entry| entry.point.starts_with(&self.base) && entry.point != self.base;
        for table::Entry { point, .. } in table.iter().rev().filter(ours) {
            let tree = point.file_name().and_then(|name| tree_of(name.to_str()?));
            let tree = tree.filter(|tree| !point.starts_with(self.trees()) && stood_on(tree));
            match tree {
                Some(_) if point.starts_with(self.former()) => {}
                Some(tree) if self.move_aside(point, &tree).is_ok() => {}
                _ => detach(point),
            }
        }
    }

    fn move_aside(&self, point: &Path, tree: &Digest) -> Result<(), MountError> {
        let table = table::read()?;
        let place = |n: usize| self.former().join(format!("{tree}.{n}"));
        let free = |place: &PathBuf| table.iter().all(|entry| entry.point != *place);
        let place = (0..FORMER_MAX).map(place).find(free).ok_or_else(|| MountError::InUse(self.former()))?;
        make_private(&place).map_err(|source| MountError::kernel("make the folder", &place, source))?;
        rustix::mount::move_mount(CWD, point, CWD, &place, MoveMountFlags::empty())
            .map_err(|errno| MountError::kernel("move aside", point, errno.into()))
    }

    /// The tree of which one is merged here.
    pub(super) fn tree_merged_at(&self, point: &Path) -> Option<Digest> {
        tree_of(point.strip_prefix(self.merged()).ok()?.to_str()?)
    }

    /// All that is or was merged of the tree, from the last that was mounted.
    fn of_tree<'a>(
        &'a self,
        table: &'a [table::Entry],
        tree: &'a Digest,
    ) -> impl Iterator<Item = &'a table::Entry> {
        let [merged, former] = [self.merged(), self.former()];
        table.iter().rev().filter(move |entry| {
            let name = entry.point.strip_prefix(&merged).or_else(|_| entry.point.strip_prefix(&former));
            name.is_ok_and(|name| name.to_str().and_then(tree_of) == Some(*tree))
        })
    }

    fn take_away(&self, wanted: impl Fn(&str) -> bool) -> Result<(), MountError> {
        let table = table::read()?;
        for folder in [self.merged(), self.former()] {
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for point in entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(&wanted)) {
                let point = point.path();
                table.iter().filter(|entry| entry.point == point).for_each(|_| detach(&point));
                fs::remove_dir(&point).ok();
            }
        }
        Ok(())
    }

    pub(super) fn merged(&self) -> PathBuf {
        self.base.join("merged")
    }

    pub(super) fn former(&self) -> PathBuf {
        self.base.join("former")
    }

    fn merged_point(&self, tree: &Digest, above: Option<&Above>) -> PathBuf {
        let name = above.map_or_else(|| tree.to_string(), |above| format!("{tree}-{}", above.id));
        self.merged().join(name)
    }
}

/// For nobody but root, with those that lead to it, as far as they are new.
pub(super) fn make_private(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// `<digest>`, `<digest>-<id>` or `<digest>.<n>`.
fn tree_of(name: &str) -> Option<Digest> {
    name.split(['-', '.']).next()?.parse().ok()
}
