//! The plainest unpacker: applies each entry to a real folder, in order, as umoci and containerd do.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail, ensure};
use image::record::{Content, Entry, EntryKind, Meta, Mtime};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, llistxattr, lremovexattr, lsetxattr,
    makedev, mknodat, utimensat,
};
use rustix::io::Errno;

use crate::stack::Stack;

pub(crate) fn unpack(stack: &Stack, root: &Path) -> anyhow::Result<()> {
    let mut unpacker = Unpacker { root, stack, brought: BTreeSet::new(), times: BTreeMap::new() };
    unpacker.times.insert(root.to_path_buf(), Mtime::default());
    for layer in &stack.layers {
        unpacker.brought.clear();
        for entry in &layer.entries {
            unpacker.apply(entry).with_context(|| format!("unpack {entry:?}"))?;
        }
    }
    // Last, for what was done inside a directory has changed its time.
    for (directory, mtime) in unpacker.times {
        if directory.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            set_mtime(&directory, mtime)?;
        }
    }
    Ok(())
}

struct Unpacker<'a> {
    root: &'a Path,
    stack: &'a Stack,
    /// What this layer brought, and the directories above it; symbolic links resolved.
    brought: BTreeSet<PathBuf>,
    times: BTreeMap<PathBuf, Mtime>,
}

impl Unpacker<'_> {
    fn apply(&mut self, entry: &Entry) -> anyhow::Result<()> {
        let path = Path::new(OsStr::from_bytes(&entry.path));
        let hides = matches!(entry.kind, EntryKind::Whiteout | EntryKind::Opaque);
        let full = match (path.file_name(), path.parent()) {
            (Some(name), Some(parent)) => match self.resolve(parent, !hides) {
                Ok(parent) => parent.join(name),
                Err(_) if hides => return Ok(()),
                Err(error) => return Err(error),
            },
            _ => self.root.to_path_buf(),
        };
        match entry.kind {
            EntryKind::Whiteout => return self.hide(&full, true),
            EntryKind::Opaque => return self.hide(&full, false),
            _ => {}
        }
        self.create(entry, &full)?;
        set_meta(&full, &entry.meta)?;
        if entry.kind == EntryKind::Directory {
            self.times.insert(full.clone(), entry.meta.mtime);
        }
        self.brought.insert(full);
        Ok(())
    }

    fn create(&mut self, entry: &Entry, full: &Path) -> anyhow::Result<()> {
        let is_directory = full.symlink_metadata().is_ok_and(|found| found.is_dir());
        // Looked up before what it may replace goes.
        let source = match &entry.kind {
            EntryKind::Hardlink(target) => {
                let target = Path::new(OsStr::from_bytes(target));
                let name = target.file_name().context("a link to the root")?;
                Some(self.resolve(target.parent().context("a parent")?, false)?.join(name))
            }
            _ => None,
        };
        if source.as_deref() == Some(full) {
            return Ok(());
        }
        if let Some(source) = &source {
            ensure!(!source.symlink_metadata()?.is_dir(), "a link to a directory");
        }
        if !(is_directory && entry.kind == EntryKind::Directory) {
            self.remove(full)?;
        }
        match &entry.kind {
            EntryKind::Directory if is_directory => {}
            EntryKind::Directory => fs::create_dir(full)?,
            EntryKind::File(Content::Inline(bytes)) => fs::write(full, bytes)?,
            EntryKind::File(Content::Object { digest, .. }) => fs::write(full, &self.stack.objects[digest])?,
            EntryKind::Symlink(target) => symlink(OsStr::from_bytes(target), full)?,
            EntryKind::Hardlink(_) => fs::hard_link(source.context("a source")?, full)?,
            EntryKind::CharDevice(device) => {
                make_node(full, FileType::CharacterDevice, device.major, device.minor)?
            }
            EntryKind::BlockDevice(device) => {
                make_node(full, FileType::BlockDevice, device.major, device.minor)?
            }
            EntryKind::Fifo => make_node(full, FileType::Fifo, 0, 0)?,
            EntryKind::Whiteout | EntryKind::Opaque => bail!("not a file"),
        }
        Ok(())
    }

    /// Removes what this layer did not bring at and below a path.
    fn hide(&mut self, full: &Path, itself: bool) -> anyhow::Result<()> {
        let Ok(found) = full.symlink_metadata() else { return Ok(()) };
        if itself && !self.brought.contains(full) {
            return self.remove(full);
        }
        if found.is_dir() {
            for below in fs::read_dir(full)? {
                self.hide(&below?.path(), true)?;
            }
        }
        Ok(())
    }

    fn remove(&mut self, full: &Path) -> anyhow::Result<()> {
        match full.symlink_metadata() {
            Ok(found) if found.is_dir() => fs::remove_dir_all(full)?,
            Ok(_) => fs::remove_file(full)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        self.times.retain(|path, _| !path.starts_with(full));
        self.brought.retain(|path| !path.starts_with(full));
        Ok(())
    }

    /// The real directory at a path inside the root, symbolic links followed there.
    fn resolve(&mut self, path: &Path, make: bool) -> anyhow::Result<PathBuf> {
        let mut here = self.root.to_path_buf();
        let mut pending: Vec<PathBuf> = vec![path.to_path_buf()];
        let mut hops = 0;
        while let Some(next) = pending.pop() {
            let mut components = next.components();
            let Some(first) = components.next() else { continue };
            pending.push(components.as_path().to_path_buf());
            match first {
                Component::RootDir => here = self.root.to_path_buf(),
                Component::ParentDir if here != self.root => drop(here.pop()),
                Component::Normal(name) => {
                    let below = here.join(name);
                    match below.symlink_metadata() {
                        Ok(found) if found.is_symlink() => {
                            hops += 1;
                            ensure!(hops <= 40, "symbolic links loop");
                            pending.push(fs::read_link(&below)?);
                            continue;
                        }
                        Ok(found) => ensure!(found.is_dir(), "{below:?} is not a directory"),
                        Err(error) if make && error.kind() == ErrorKind::NotFound => {
                            fs::create_dir(&below)?;
                            set_meta(&below, &Meta { mode: 0o755, ..Meta::default() })?;
                            self.times.insert(below.clone(), Mtime::default());
                        }
                        Err(error) => return Err(error.into()),
                    }
                    if make {
                        self.brought.insert(below.clone());
                    }
                    here = below;
                }
                _ => {}
            }
        }
        Ok(here)
    }
}

fn make_node(path: &Path, kind: FileType, major: u32, minor: u32) -> anyhow::Result<()> {
    Ok(mknodat(CWD, path, kind, Mode::empty(), makedev(major, minor))?)
}

/// All that the entry says and nothing else: attributes of before are removed.
fn set_meta(path: &Path, meta: &Meta) -> anyhow::Result<()> {
    lchown(path, Some(meta.uid), Some(meta.gid))?;
    let kind = path.symlink_metadata()?.file_type();
    if !kind.is_symlink() {
        fs::set_permissions(path, fs::Permissions::from_mode(meta.mode))?;
    }
    let mut list = vec![0; 65_536];
    let len = llistxattr(path, &mut list[..])?;
    for name in list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        lremovexattr(path, OsStr::from_bytes(name))?;
    }
    for xattr in &meta.xattrs {
        let name = OsStr::from_bytes(&xattr.name);
        match lsetxattr(path, name, &xattr.value, XattrFlags::empty()) {
            Err(Errno::PERM) if xattr.name.starts_with(b"user.") && !kind.is_file() && !kind.is_dir() => {}
            result => result.with_context(|| format!("set {name:?}"))?,
        }
    }
    set_mtime(path, meta.mtime)
}

fn set_mtime(path: &Path, mtime: Mtime) -> anyhow::Result<()> {
    let time = Timespec { tv_sec: mtime.secs, tv_nsec: mtime.nanos.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
