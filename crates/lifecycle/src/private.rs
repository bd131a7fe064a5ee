//! Folders and files that are their owner's alone: what a machine keeps of images may be a private image's.
//!
//! What is made from now on follows the umask that [`restrict_umask`] sets and the modes that are given here; what an earlier
//! version left open to everybody is closed when it is found. That it cannot be (another's folder, a file system that is
//! read-only) is told and stops nothing.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::Mode;

/// Files without a mode of their own: written by their owner, read by its group, nothing for anybody else.
const UMASK: Mode = Mode::WGRP.union(Mode::RWXO);
/// What others than the owner may do.
const OTHERS: u32 = 0o077;

/// From here on nothing that this process makes is for everybody, unless a mode says so. One that was stricter stays.
pub fn restrict_umask() {
    let before = rustix::process::umask(UMASK);
    rustix::process::umask(before | UMASK);
}

/// Makes a folder, for its owner only, where there is none. One that is there stays as it is.
pub fn make(folder: &Path) -> io::Result<()> {
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        made => made,
    }
}

/// The same, and one that is there is closed to others.
pub fn folder(folder: &Path) -> io::Result<()> {
    make(folder)?;
    close(folder);
    Ok(())
}

/// Closes what stands in a folder under a name that is ours; and the folder itself, when nothing else stands in it.
pub fn close_own(folder: &Path, own: impl Fn(&str) -> bool) {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(path = %folder.display(), %error, "what is open to other users here is not known");
            return;
        }
    };
    let mut only_own = true;
    for entry in entries.flatten() {
        let name = entry.file_name();
        match name.to_str() {
            Some(name) if own(name) => close(&entry.path()),
            // Of the file system itself, where the folder is one of its own.
            Some("lost+found") => {}
            _ => only_own = false,
        }
    }
    if only_own {
        close(folder);
    }
}

/// Takes from a file or folder what others than its owner may do.
pub fn close(path: &Path) {
    let closed = || {
        let mode = fs::metadata(path)?.permissions().mode();
        if mode & OTHERS == 0 {
            return Ok(false);
        }
        fs::set_permissions(path, Permissions::from_mode(mode & !OTHERS)).map(|()| true)
    };
    match closed() {
        Ok(true) => tracing::info!(path = %path.display(), "closed to other users"),
        Ok(false) => {}
        // It went away meanwhile, or is a link that leads nowhere.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "this stays open to other users: its mode should be 0700");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_new_folder_is_its_owners_and_an_old_one_is_closed() {
        let base = tempfile::tempdir().unwrap();
        let new = base.path().join("parent/new");
        make(&new).unwrap();
        assert_eq!(mode(&new), 0o700);
        set(&new, 0o2755);
        make(&new).unwrap();
        assert_eq!(mode(&new), 0o2755);
        folder(&new).unwrap();
        assert_eq!(mode(&new), 0o2700);
        fs::write(base.path().join("file"), b"").unwrap();
        assert_eq!(folder(&base.path().join("file")).unwrap_err().kind(), ErrorKind::AlreadyExists);
    }

    #[test]
    fn what_is_not_ours_stays_as_it_is() {
        let base = tempfile::tempdir().unwrap();
        let (own, other) = (base.path().join("own"), base.path().join("other"));
        for file in [&own, &other] {
            fs::write(file, b"").unwrap();
            set(file, 0o644);
        }
        set(base.path(), 0o755);
        close_own(base.path(), |name| name == "own");
        assert_eq!([mode(&own), mode(&other), mode(base.path())], [0o600, 0o644, 0o755]);
        fs::remove_file(&other).unwrap();
        fs::create_dir(base.path().join("lost+found")).unwrap();
        close_own(base.path(), |name| name == "own");
        assert_eq!(mode(base.path()), 0o700);
    }
}
