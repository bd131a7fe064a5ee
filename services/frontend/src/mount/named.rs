//! Which objects files of a tree are, by their paths: the kernel walks the tree that it has mounted anyway.

use std::fs::{self, DirEntry};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use image::Digest;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};

/// Where a tree says which object a file is.
const REDIRECT: &str = "trusted.overlay.redirect";
/// `/ab/cdef…`, and one byte more, so that a longer one is noticed.
const REDIRECT_MAX: usize = 67;
/// Entries of folders that are looked at for one plan: it may name the root of an image that has millions, and often. What is
/// beyond is passed over.
pub(super) const ENTRIES_MAX: usize = 100_000;
/// What paths that are still to be looked at may take together, in bytes: how long each is, is the image's choice.
const PATHS_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The objects of each path, from the root of the tree that is mounted at `tree`; of a folder those of all regular files below
/// it, in the order of their names. None where there is no such file, or where it is so small that it stands in the tree. Links
/// that a path goes through are followed, and never lead out of the tree; those that a folder holds are not.
pub(super) fn objects(
    tree: &Path,
    paths: &[String],
    mut entries_left: usize,
) -> rustix::io::Result<Vec<Vec<Digest>>> {
    let root =
        rustix::fs::openat(CWD, tree, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(paths.iter().map(|path| named(&root, path, &mut entries_left).unwrap_or_default()).collect())
}

fn named(root: &OwnedFd, path: &str, entries_left: &mut usize) -> rustix::io::Result<Vec<Digest>> {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // Only looked at: opening a device or a pipe would do something.
    let file = rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside)?;
    let this = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
        FileType::Directory => Ok(below(this, entries_left)),
        _ => Ok(object(&this).into_iter().collect()),
    }
}

/// Without recursion: how deep folders are nested is the image's choice. Nobody can put a link in a folder's place meanwhile,
/// since trees never change.
fn below(folder: PathBuf, entries_left: &mut usize) -> Vec<Digest> {
    let mut objects = Vec::new();
    let mut held = length(&folder);
    let mut next = vec![(folder, true)];
    while let Some((path, is_folder)) = next.pop() {
        held -= length(&path);
        if is_folder {
            let mut inside = entries(&path, entries_left, PATHS_BYTES_MAX.saturating_sub(held));
            held += inside.iter().map(|(path, _)| length(path)).sum::<usize>();
            // What comes first is to be taken first, from the end.
            inside.sort_unstable_by(|one, other| other.cmp(one));
            next.append(&mut inside);
        } else {
            objects.extend(object(&path));
        }
    }
    objects
}

fn length(path: &Path) -> usize {
    path.as_os_str().len()
}

/// The regular files and the folders in a folder, and which of the two each is; their paths have `bytes` at most.
fn entries(folder: &Path, entries_left: &mut usize, mut bytes: usize) -> Vec<(PathBuf, bool)> {
    let Ok(all) = fs::read_dir(folder) else { return Vec::new() };
    let of_use = |entry: io::Result<DirEntry>| {
        let entry = entry.ok()?;
        let kind = entry.file_type().ok()?;
        (kind.is_dir() || kind.is_file()).then(|| (entry.path(), kind.is_dir()))
    };
    let all = all.take(*entries_left).inspect(|_| *entries_left -= 1).filter_map(of_use);
    let fits = |(path, _): &(PathBuf, bool)| {
        let left = bytes.checked_sub(length(path));
        bytes = left.unwrap_or(0);
        left.is_some()
    };
    all.take_while(fits).collect()
}

fn object(file: &Path) -> Option<Digest> {
    let mut value = [0; REDIRECT_MAX];
    let length = rustix::fs::getxattr(file, REDIRECT, &mut value).ok()?;
    let (head, rest) = std::str::from_utf8(&value[..length]).ok()?.strip_prefix('/')?.split_once('/')?;
    format!("{head}{rest}").parse().ok()
}
