//! The node's mounts.
//!
//! ```text
//! <state>/mnt                  a private tmpfs: nothing below it leaks into containers, and a mount point needs no room on the disk;
//!                              a shared one where containerd has another mount namespace (`frontend.share_mounts`)
//! <state>/mnt/tree/<digest>    a tree, mounted by the kernel from its file
//! <state>/mnt/remote           the file system of remote objects
//! <state>/mnt/merged/<digest>  overlay: tree :: <state>/objects :: remote, for roots that others mount over it ([`merged`])
//! <target>                     overlay: [upper] over tree :: <state>/objects :: remote
//! <root of a container>        containerd's overlay: upper over … over merged
//! ```
//!
//! An overlay holds what it is made of by itself: the mounts under `mnt` may be detached, even by
//! another process, without disturbing a container. The kernel's mount table is the only memory of
//! what is mounted where; a new process finds the roots of an earlier one in it.
//!
//! Concurrency: every function here blocks in the kernel; callers use a blocking thread. Two calls for
//! the same tree or target must not overlap: [`crate::images`] sees to that.

mod error;
mod merged;
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
pub(crate) use merged::Above;
use root::Layers;
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
    /// Prepares `<state>/mnt`: what a dead process left there is detached, but for what containers stand on.
    pub(crate) fn prepare(state: &Path, objects: &Path, shared: bool) -> anyhow::Result<Mounts> {
        let mounts = Mounts::at(state, objects)?;
        let table = table::read().context("cannot read the mount table")?;
        if shared {
            check_shared(&mounts.base, &table)?;
        }
        if !table.iter().any(|entry| entry.point == mounts.base) {
            rustix::mount::mount("sluice", &mounts.base, "tmpfs", POINTS_FLAGS, POINTS_OPTIONS)
                .with_context(|| format!("cannot mount a tmpfs at {}", mounts.base.display()))?;
        }
        let propagation = if shared { MountPropagationFlags::SHARED } else { MountPropagationFlags::PRIVATE };
        rustix::mount::mount_change(&mounts.base, propagation)
            .with_context(|| format!("cannot set the propagation of {}", mounts.base.display()))?;
        mounts.set_aside(&table);
        for folder in [mounts.trees(), mounts.merged(), mounts.former(), mounts.remote_point()] {
            merged::make_private(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(mounts)
    }

    /// The mounts that the process before left, if the remote objects are among them.
    pub(crate) fn resume(state: &Path, objects: &Path, shared: bool) -> anyhow::Result<Option<Mounts>> {
        let mounts = Mounts::at(state, objects)?;
        let table = table::read().context("cannot read the mount table")?;
        if shared {
            check_shared(&mounts.base, &table)?;
        }
        let stands =
            table.iter().any(|entry| entry.point == mounts.remote_point() && entry.kind.starts_with("fuse"));
        if !stands {
            return Ok(None);
        }
        let trees = mounts.trees();
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

    fn trees(&self) -> PathBuf {
        self.base.join("tree")
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

    /// Takes the mount of a tree away, and what was merged with it; roots made of it go on.
    pub(crate) fn remove_tree(&self, digest: &Digest) {
        self.remove_merged(digest);
        let point = self.tree_point(digest);
        detach(&point);
        fs::remove_dir(&point).ok();
    }

    /// Mounts the root file system of the tree at `target`.
    pub(crate) fn add_root(&self, tree: &Digest, target: &Target) -> Result<(), MountError> {
        root::mount(&self.layers(self.tree_point(tree), Vec::new()), target)
    }

    fn layers(&self, tree: PathBuf, above: Vec<PathBuf>) -> Layers {
        Layers { above, tree, local: self.objects.clone(), remote: self.remote_point() }
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
        if entry.kind != "overlay" || entry.point.starts_with(&self.base) {
            return None;
        }
        let trees = self.trees();
        let of_ours = |lower: &Path| {
            self.tree_merged_at(lower).or_else(|| lower.strip_prefix(&trees).ok()?.to_str()?.parse().ok())
        };
        // Ours give each layer by itself, containerd all in one; of its layers some may be ordinary ones.
        let each = entry.values("lowerdir+").find_map(|lower| of_ours(&lower));
        let tree = each.or_else(|| {
            let all = entry.values("lowerdir").next()?;
            all.to_str()?.split(':').find_map(|lower| of_ours(Path::new(lower)))
        })?;
        Some(Root { point: entry.point.clone(), tree })
    }

    fn tree_point(&self, digest: &Digest) -> PathBuf {
        self.trees().join(digest.to_string())
    }
}

/// Whether what is mounted in a folder is seen where that is shared with; what to do if not.
fn check_shared(folder: &Path, table: &[table::Entry]) -> anyhow::Result<()> {
    // Of what stands at one point the last one counts.
    let holds = table.iter().filter(|entry| folder.starts_with(&entry.point));
    let mount = holds.max_by_key(|entry| entry.point.as_os_str().len());
    let point = mount.map_or_else(|| PathBuf::from("/"), |entry| entry.point.clone());
    anyhow::ensure!(
        mount.is_some_and(|entry| entry.shared),
        "{} is not on a shared mount, so no other container would see what is mounted there: hand it in with the propagation \
         rshared, from a mount that is shared outside (`mount --make-rshared {}`)",
        folder.display(),
        point.display()
    );
    Ok(())
}

fn detach(point: &Path) {
    if let Err(error) = rustix::mount::unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        tracing::debug!(point = %point.display(), %error, "was not mounted");
    }
}
