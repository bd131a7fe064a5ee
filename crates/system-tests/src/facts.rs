//! Everything a process can see of a file tree, as values that can be compared.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use sha2::{Digest, Sha256};

/// All entries of a tree by their path below its root.
pub type Tree = BTreeMap<PathBuf, Facts>;

/// What one name shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of anything but a folder: there each file system counts as it likes.
    pub nlink: Option<u64>,
    /// All names of the same inode, when it has several; for files.
    pub names: Vec<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File { len: u64, sha256: String },
    Symlink(PathBuf),
    CharDevice(u64),
    BlockDevice(u64),
    Fifo,
    Socket,
}

/// Walks `root` and reads all of it.
pub fn tree(root: &Path) -> anyhow::Result<Tree> {
    let mut walk = Walk { root, tree: Tree::new(), inodes: BTreeMap::new() };
    walk.enter(root)?;
    for names in walk.inodes.values().filter(|names| names.len() > 1) {
        for name in names {
            if let Some(facts) = walk.tree.get_mut(name) {
                facts.names = names.clone();
            }
        }
    }
    Ok(walk.tree)
}

/// In the place of a time of the test's own run.
pub const DURING: (i64, i64) = (i64::MAX, 0);

/// The same of a root that was changed since `began`. What happened to two roots since then did not happen to both at the same
/// moment: such times become [`DURING`].
pub fn changed_since(root: &Path, began: SystemTime) -> anyhow::Result<Tree> {
    let mut tree = tree(root)?;
    let seconds = |time: SystemTime| anyhow::Ok(time.duration_since(UNIX_EPOCH)?.as_secs() as i64);
    // Archives round to whole seconds, also up.
    let run = seconds(began)?..=seconds(SystemTime::now())? + 1;
    for facts in tree.values_mut().filter(|facts| run.contains(&facts.mtime.0)) {
        facts.mtime = DURING;
    }
    Ok(tree)
}

/// The differences between two trees, a line each; empty when they are equal.
pub fn differences(expected: &Tree, found: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, facts) in expected {
        match found.get(path) {
            None => lines.push(format!("missing: {}", path.display())),
            Some(other) if other != facts => {
                lines.push(format!("{}: expected {facts:?}, found {other:?}", path.display()));
            }
            Some(_) => {}
        }
    }
    lines.extend(
        found
            .keys()
            .filter(|path| !expected.contains_key(*path))
            .map(|path| format!("surplus: {}", path.display())),
    );
    lines
}

struct Walk<'a> {
    root: &'a Path,
    tree: Tree,
    inodes: BTreeMap<(u64, u64), Vec<PathBuf>>,
}

impl Walk<'_> {
    fn enter(&mut self, folder: &Path) -> anyhow::Result<()> {
        self.note(folder)?;
        let mut entries: Vec<_> = fs::read_dir(folder)
            .with_context(|| format!("listing {}", folder.display()))?
            .collect::<Result<_, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            if entry.file_type()?.is_dir() { self.enter(&entry.path())? } else { self.note(&entry.path())? }
        }
        Ok(())
    }

    fn note(&mut self, path: &Path) -> anyhow::Result<()> {
        let metadata = path.symlink_metadata().with_context(|| format!("stat of {}", path.display()))?;
        let name = path.strip_prefix(self.root)?.to_owned();
        let facts = Facts {
            kind: kind(path, &metadata)?,
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            xattrs: xattrs(path)?,
            nlink: (!metadata.is_dir()).then_some(metadata.nlink()),
            names: Vec::new(),
        };
        if !metadata.is_dir() {
            self.inodes.entry((metadata.dev(), metadata.ino())).or_default().push(name.clone());
        }
        self.tree.insert(name, facts);
        Ok(())
    }
}

fn kind(path: &Path, metadata: &fs::Metadata) -> anyhow::Result<Kind> {
    let file_type = metadata.file_type();
    Ok(if file_type.is_dir() {
        Kind::Directory
    } else if file_type.is_symlink() {
        Kind::Symlink(fs::read_link(path)?)
    } else if file_type.is_char_device() {
        Kind::CharDevice(metadata.rdev())
    } else if file_type.is_block_device() {
        Kind::BlockDevice(metadata.rdev())
    } else if file_type.is_fifo() {
        Kind::Fifo
    } else if file_type.is_socket() {
        Kind::Socket
    } else {
        Kind::File { len: metadata.len(), sha256: content(path)? }
    })
}

fn content(path: &Path) -> anyhow::Result<String> {
    let mut file = fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let length = file.read(&mut buffer).with_context(|| format!("reading {}", path.display()))?;
        if length == 0 {
            return Ok(hex::encode(hash.finalize()));
        }
        hash.update(&buffer[..length]);
    }
}

/// Extended attributes, without those that a security module of the test machine adds.
fn xattrs(path: &Path) -> anyhow::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let c_path = CString::new(path.as_os_str().as_bytes())?;
    let mut names = vec![0u8; 64 * 1024];
    let length = match rustix::fs::llistxattr(&c_path, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(error) => return Err(error).with_context(|| format!("listing xattrs of {}", path.display())),
    };
    let mut found = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name == b"security.selinux" {
            continue;
        }
        let mut value = vec![0u8; 64 * 1024];
        let length = rustix::fs::lgetxattr(&c_path, OsStr::from_bytes(name), &mut value)
            .with_context(|| format!("reading an xattr of {}", path.display()))?;
        value.truncate(length);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}
