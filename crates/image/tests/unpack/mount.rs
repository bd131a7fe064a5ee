//! A stack mounted as a node mounts it: the tree from its file, the objects as a data-only layer.

use std::ffi::{CStr, CString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use image::Map;
use image::merge::merge;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::stack::Stack;

pub(crate) struct Mounted {
    root: Mount,
    /// Below the root, and so unmounted after it.
    _tree: Mount,
}

/// Unmounted when dropped.
struct Mount(PathBuf);

impl Mounted {
    /// Mounts below `folder`, which must be empty of `image`, `tree`, `objects` and `root`.
    pub(crate) fn new(stack: &Stack, folder: &Path) -> anyhow::Result<Mounted> {
        let [image, tree, objects, root] = ["image", "tree", "objects", "root"].map(|name| folder.join(name));
        for created in [&tree, &objects, &root] {
            fs::create_dir(created)?;
        }
        write_tree(stack, &image, &objects)?;
        let options =
            format!("metacopy=on,redirect_dir=on,lowerdir={}::{}", tree.display(), objects.display());
        let tree = Mount::new(&image, tree, "erofs", None)?;
        let root = Mount::new(Path::new("overlay"), root, "overlay", Some(&CString::new(options)?))?;
        Ok(Mounted { root, _tree: tree })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.root.0
    }
}

impl Mount {
    fn new(source: &Path, target: PathBuf, kind: &str, options: Option<&CStr>) -> anyhow::Result<Mount> {
        mount(source, &target, kind, MountFlags::RDONLY, options).with_context(|| format!("mount {kind}"))?;
        Ok(Mount(target))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("unmount {:?}: {error}", self.0);
        }
    }
}

/// Writes the tree, and the objects that its map puts together from chunks.
fn write_tree(stack: &Stack, image: &Path, objects: &Path) -> anyhow::Result<()> {
    let layers: Vec<_> = stack.layers.iter().collect();
    let tree = merge(&layers)?;
    let bytes = image::erofs::write(&tree)?;
    ensure!(bytes == image::erofs::write(&merge(&layers)?)?, "two trees of the same layers differ");
    fs::write(image, bytes)?;
    let fsck = Command::new("fsck.erofs").arg(image).output().context("fsck.erofs (erofs-utils)")?;
    ensure!(fsck.status.success(), "fsck.erofs: {}", String::from_utf8_lossy(&fsck.stderr));
    let map = Map::decode(&Map::build(&tree, &layers)?.encode()?)?;
    for place in &map.objects {
        let mut content = Vec::new();
        for slice in map.slices(place, 0..place.len) {
            let chunk = &stack.chunks[&map.chunks[slice.chunk as usize].digest];
            content.extend_from_slice(&chunk[slice.chunk_offset as usize..][..slice.len as usize]);
        }
        let file = objects.join(place.digest.path());
        fs::create_dir_all(file.parent().context("a sharded folder")?)?;
        fs::write(file, content)?;
    }
    Ok(())
}
