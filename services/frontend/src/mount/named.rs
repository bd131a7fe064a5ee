//! Which objects files of a tree are, by their paths: the kernel walks the tree that it has mounted anyway.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use image::Digest;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// Where a tree says which object a file is.
const REDIRECT: &str = "trusted.overlay.redirect";
/// `/ab/cdef…`, and one byte more, so that a longer one is noticed.
const REDIRECT_MAX: usize = 67;

/// The object of each path, from the root of the tree that is mounted at `tree`. None: there is no such file, or it is so
/// small that it stands in the tree. Links are followed, and never lead out of the tree.
pub(super) fn objects(tree: &Path, paths: &[String]) -> rustix::io::Result<Vec<Option<Digest>>> {
    let root =
        rustix::fs::openat(CWD, tree, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(paths.iter().map(|path| object(&root, path)).collect())
}

fn object(root: &OwnedFd, path: &str) -> Option<Digest> {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // Only looked at: opening a device or a pipe would do something.
    let file = rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside).ok()?;
    let mut value = [0; REDIRECT_MAX];
    let this = format!("/proc/self/fd/{}", file.as_raw_fd());
    let length = rustix::fs::getxattr(this, REDIRECT, &mut value).ok()?;
    let (head, rest) = std::str::from_utf8(&value[..length]).ok()?.strip_prefix('/')?.split_once('/')?;
    format!("{head}{rest}").parse().ok()
}
