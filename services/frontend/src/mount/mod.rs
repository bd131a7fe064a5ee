//! The node's mounts.
//!
//! ```text
//! <state>/mnt                  a private tmpfs: nothing below it leaks into containers, and a mount point needs no room on the disk
//! <state>/mnt/tree/<digest>    a tree, mounted by the kernel from its file
//! <state>/mnt/remote           the file system of remote objects
//! <target>                     overlay: [upper] over tree :: <state>/objects :: remote
//! ```
//!
//! An overlay holds what it is made of by itself: the mounts under `mnt` may be detached, even by
//! another process, without disturbing a container. The kernel's mount table is the only memory of
//! what is mounted where; a new process finds the roots of an earlier one in it.
//!
//! Concurrency: every function here blocks in the kernel; callers use a blocking thread. Two calls for
//! the same tree or target must not overlap: [`crate::images`] sees to that.

mod error;
mod named;
pub(crate) mod probe;
mod root;
pub(crate) mod table;
pub(crate) mod target;
#[cfg(test)]
mod tests;
mod tree;
pub(crate) mod watch;

use std::ffi::CStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use image::Digest;
use lifecycle::private;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

pub(crate) use error::MountError;
pub(crate) use root::Layers;
pub(crate) use target::Target;

/// Of the tmpfs that mount points stand in: folders only, which take no pages, and nobody else's.
const POINTS_FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
const POINTS_OPTIONS: &CStr = c"size=64k,nr_inodes=64k,mode=0700";

/// Where this node mounts.
#[derive(Debug)]
pub(crate) struct Mounts {
    base: PathBuf,
    objects: PathBuf,
}

/// A root file system that stands in the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) point: PathBuf,
    pub(crate) tree: Digest,
}

impl Mounts {
    /// Prepares `<state>/mnt`: what a dead process left there is detached.
    pub(crate) fn prepare(state: &Path, objects: &Path) -> anyhow::Result<Mounts> {
        let mounts = Mounts::at(state, objects)?;
        mounts.detach_all()?;
        rustix::mount::mount("sluice", &mounts.base, "tmpfs", POINTS_FLAGS, POINTS_OPTIONS)
            .with_context(|| format!("cannot mount a tmpfs at {}", mounts.base.display()))?;
        rustix::mount::mount_change(&mounts.base, MountPropagationFlags::PRIVATE)
            .with_context(|| format!("cannot make {} private", mounts.base.display()))?;
        for folder in [mounts.base.join("tree"), mounts.remote_point()] {
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(mounts)
    }

    /// The mounts that the process before left, if the remote objects are among them.
    pub(crate) fn resume(state: &Path, objects: &Path) -> anyhow::Result<Option<Mounts>> {
        let mounts = Mounts::at(state, objects)?;
        let table = table::read().context("cannot read the mount table")?;
        let stands =
            table.iter().any(|entry| entry.point == mounts.remote_point() && entry.kind.starts_with("fuse"));
        if !stands {
            return Ok(None);
        }
        let trees = mounts.base.join("tree");
        for entry in table.iter().filter(|entry| entry.kind == "erofs" && entry.point.starts_with(&trees)) {
            if let Err(error) = tree::restrict(&entry.point) {
                tracing::warn!(point = %entry.point.display(), %error, "a tree stays mounted as an earlier version did it");
            }
        }
        Ok(Some(mounts))
    }

    fn at(state: &Path, objects: &Path) -> anyhow::Result<Mounts> {
        let base = state.join("mnt");
        private::make(&base).with_context(|| format!("cannot make {}", base.display()))?;
        let base = base.canonicalize().with_context(|| format!("cannot resolve {}", base.display()))?;
        let objects =
            objects.canonicalize().with_context(|| format!("cannot resolve {}", objects.display()))?;
        let mounts = Mounts { base, objects };
        root::check_lengths(&mounts.tree_point(&Digest::of(b"")), &mounts.objects)?;
        Ok(mounts)
    }

    pub(crate) fn remote_point(&self) -> PathBuf {
        self.base.join("remote")
    }

    /// Mounts the tree of this digest from `file`, unless it is mounted.
    pub(crate) fn add_tree(&self, digest: &Digest, file: &Path) -> Result<(), MountError> {
        let point = self.tree_point(digest);
        if table::read()?.iter().any(|entry| entry.point == point) {
            return Ok(());
        }
        fs::create_dir_all(&point).map_err(|source| MountError::kernel("make the folder", &point, source))?;
        tree::mount(file, &point)
    }

    /// The objects that files of a mounted tree are, and all files of a folder; see [`named::objects`].
    pub(crate) fn objects_named(
        &self,
        tree: &Digest,
        paths: &[String],
    ) -> Result<Vec<Vec<Digest>>, MountError> {
        let point = self.tree_point(tree);
        let objects = named::objects(&point, paths, named::ENTRIES_MAX);
        objects.map_err(|errno| MountError::kernel("open the tree", &point, errno.into()))
    }

    /// Takes the mount of a tree away; roots made of it go on.
    pub(crate) fn remove_tree(&self, digest: &Digest) {
        let point = self.tree_point(digest);
        detach(&point);
        fs::remove_dir(&point).ok();
    }

    /// Mounts the root file system of the tree at `target`.
    pub(crate) fn add_root(&self, tree: &Digest, target: &Target) -> Result<(), MountError> {
        root::mount(&self.layers(tree), target)
    }

    /// What a root of the tree is made of, for whoever mounts it by themselves.
    pub(crate) fn layers(&self, tree: &Digest) -> Layers {
        Layers { tree: self.tree_point(tree), local: self.objects.clone(), remote: self.remote_point() }
    }

    /// Files of a tree that were opened while their objects were missing are local from the next open on, in every root of it.
    pub(crate) fn renew_lookups(&self, tree: &Digest) -> Result<(), MountError> {
        let mut renewed = Ok(());
        for root in self.roots()?.iter().filter(|root| root.tree == *tree) {
            // One that fails must not keep the others from it.
            renewed = root::renew_lookups(&root.point).and(renewed);
        }
        renewed
    }

    /// Unmounts a root; busy is an error.
    pub(crate) fn remove_root(&self, target: &Path) -> Result<(), MountError> {
        match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::BUSY) => Err(MountError::Busy(target.to_owned())),
            Err(source) => Err(MountError::kernel("unmount", target, source.into())),
        }
    }

    /// Every root of ours that stands in the mount table, whichever process mounted it.
    pub(crate) fn roots(&self) -> std::io::Result<Vec<Root>> {
        Ok(table::read()?.iter().filter_map(|entry| self.root_of(entry)).collect())
    }

    /// Detaches what is mounted under `mnt`, deepest first, and `mnt` itself.
    pub(crate) fn detach_all(&self) -> anyhow::Result<()> {
        let table = table::read().context("cannot read the mount table")?;
        let ours = table.iter().filter(|entry| entry.point.starts_with(&self.base)).map(|entry| &entry.point);
        ours.rev().for_each(|point| detach(point));
        Ok(())
    }

    fn root_of(&self, entry: &table::Entry) -> Option<Root> {
        if entry.kind != "overlay" {
            return None;
        }
        let trees = self.base.join("tree");
        let of_ours = |lower: &Path| lower.strip_prefix(&trees).ok()?.to_str()?.parse().ok();
        // Ours give each layer by itself, containerd all in one; of its layers some may be ordinary ones.
        let each = entry.values("lowerdir+").find_map(|lower| of_ours(&lower));
        let tree = each.or_else(|| {
            let all = entry.values("lowerdir").next()?;
            all.to_str()?.split(':').find_map(|lower| of_ours(Path::new(lower)))
        })?;
        Some(Root { point: entry.point.clone(), tree })
    }

    fn tree_point(&self, digest: &Digest) -> PathBuf {
        self.base.join("tree").join(digest.to_string())
    }
}

fn detach(point: &Path) {
    if let Err(error) = rustix::mount::unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        tracing::debug!(point = %point.display(), %error, "was not mounted");
    }
}
