//! All that a process can see of the files in a folder.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{lgetxattr, llistxattr};

/// Linux returns no more for one name or for a list of names.
const XATTR_MAX: usize = 65_536;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    nlink: u64,
    /// Of a directory it depends on the file system: 0 here.
    size: u64,
    device: u64,
    /// The first path of the same inode.
    first_name: PathBuf,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// A file's bytes, a symbolic link's target.
    content: Vec<u8>,
}

/// By paths relative to `root`, that itself as the empty one.
pub(crate) fn facts(root: &Path) -> anyhow::Result<BTreeMap<PathBuf, Facts>> {
    let mut found = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let full = root.join(&path);
        let metadata = fs::symlink_metadata(&full)?;
        let inode = (metadata.dev(), metadata.ino());
        let first_name = inodes.entry(inode).or_insert_with(|| path.clone()).clone();
        if metadata.is_dir() {
            let mut below = fs::read_dir(&full)?
                .map(|entry| Ok(path.join(entry?.file_name())))
                .collect::<std::io::Result<Vec<_>>>()?;
            below.sort_unstable_by(|one, other| other.cmp(one));
            pending.extend(below);
        }
        found.insert(path, of(&full, &metadata, first_name)?);
    }
    Ok(found)
}

fn of(path: &Path, metadata: &fs::Metadata, first_name: PathBuf) -> anyhow::Result<Facts> {
    let kind = metadata.file_type();
    let content = if kind.is_file() {
        fs::read(path)?
    } else if kind.is_symlink() {
        fs::read_link(path)?.into_os_string().into_vec()
    } else {
        Vec::new()
    };
    let has_device = kind.is_char_device() || kind.is_block_device();
    Ok(Facts {
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        nlink: metadata.nlink(),
        size: if kind.is_dir() { 0 } else { metadata.len() },
        device: if has_device { metadata.rdev() } else { 0 },
        first_name,
        xattrs: xattrs(path)?,
        content,
    })
}

fn xattrs(path: &Path) -> anyhow::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut list = vec![0; XATTR_MAX];
    let len = llistxattr(path, &mut list[..])?;
    let names = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; XATTR_MAX];
        let len = lgetxattr(path, OsStr::from_bytes(name), &mut value[..])?;
        value.truncate(len);
        Ok((name.to_vec(), value))
    };
    names.map(value).collect()
}
