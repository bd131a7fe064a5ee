//! An overlay over tree :: local :: remote: a root of its own upper folder, if any, or what others stand on.
//!
//! Made through the new mount API: each layer is a setting of its own, so no path needs escaping
//! against the others, and `datadir+` says which layers hold data only (Linux 6.8). The kernel looks an
//! object up in `local` first and in `remote` when it is not there, when a file is first opened.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags};

use super::target::Upper;
use super::{MountError, Target};

/// What `fsconfig` takes for one value, in bytes, without the terminating zero.
pub(super) const LAYER_PATH_MAX: usize = 255;
/// The kernel's own explanation of a refused mount, in bytes.
const EXPLANATION_MAX: usize = 4096;

/// What a root stands on, from the top.
#[derive(Clone, Debug)]
pub(super) struct Layers {
    /// Ordinary layers, or none.
    pub(super) above: Vec<PathBuf>,
    pub(super) tree: PathBuf,
    pub(super) local: PathBuf,
    pub(super) remote: PathBuf,
}

/// Refuses a state folder whose layers could never be mounted.
pub(super) fn check_lengths(tree: &Path, objects: &Path) -> Result<(), MountError> {
    [tree, objects].into_iter().try_for_each(check_length)
}

pub(super) fn mount(layers: &Layers, target: &Target) -> Result<(), MountError> {
    let mounted = make(layers, target.upper.as_ref(), &target.point)?;
    attach(&mounted, &target.point, MoveMountFlags::empty())
}

/// Makes the overlay, which is mounted nowhere yet. `point`: where it will be, for whoever reads of an error.
pub(super) fn make(layers: &Layers, upper: Option<&Upper>, point: &Path) -> Result<OwnedFd, MountError> {
    let overlay = configured(settings(layers, upper)?, point)?;
    let attributes =
        if upper.is_some() { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_RDONLY };
    rustix::mount::fsmount(overlay.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|errno| explained(&overlay, "make the mount for", point, errno))
}

pub(super) fn attach(mounted: &OwnedFd, point: &Path, how: MoveMountFlags) -> Result<(), MountError> {
    let how = how | MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mounted.as_fd(), "", CWD, point, how)
        .map_err(|errno| MountError::kernel("mount at", point, errno.into()))
}

/// Whether the kernel takes an overlay over what is mounted at `lower`; it bounds how deep file systems stand on each other.
/// `spare`: any other folder.
pub(super) fn check_stackable(lower: &Path, spare: &Path) -> Result<(), MountError> {
    configured(vec![("lowerdir+", layer(lower)?), ("lowerdir+", layer(spare)?)], lower).map(drop)
}

fn configured(settings: Vec<(&'static str, Vec<u8>)>, point: &Path) -> Result<OwnedFd, MountError> {
    let overlay = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|errno| MountError::kernel("prepare an overlay for", point, errno.into()))?;
    for (name, value) in settings {
        rustix::mount::fsconfig_set_string(overlay.as_fd(), name, &value)
            .map_err(|errno| explained(&overlay, "set up the overlay for", point, errno))?;
    }
    rustix::mount::fsconfig_create(overlay.as_fd())
        .map_err(|errno| explained(&overlay, "make the overlay for", point, errno))?;
    Ok(overlay)
}

/// Makes the kernel forget what it has looked up in the root at `point`, but for files that are open: it remembers whether an
/// object was local when its file was first opened. A change of nothing is what does that, for this file system alone.
pub(super) fn renew_lookups(point: &Path) -> Result<(), MountError> {
    let renew = |read_only: bool| {
        let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_SYMLINK_NOFOLLOW;
        let overlay = rustix::mount::fspick(CWD, point, flags)?;
        if read_only {
            rustix::mount::fsconfig_set_flag(overlay.as_fd(), "ro")?;
        }
        rustix::mount::fsconfig_reconfigure(overlay.as_fd())
    };
    let renewed = match renew(false) {
        // One without an upper folder, which takes no change that does not leave it so.
        Err(rustix::io::Errno::ROFS) => renew(true),
        other => other,
    };
    let gone =
        |errno: &rustix::io::Errno| matches!(*errno, rustix::io::Errno::NOENT | rustix::io::Errno::INVAL);
    // One that somebody unmounted meanwhile has nothing to forget.
    let renewed = renewed.or_else(|errno| if gone(&errno) { Ok(()) } else { Err(errno) });
    renewed.map_err(|errno| MountError::kernel("renew the lookups of", point, errno.into()))
}

fn settings(layers: &Layers, upper: Option<&Upper>) -> Result<Vec<(&'static str, Vec<u8>)>, MountError> {
    let mut settings = vec![("source", b"sluice".to_vec())];
    for above in &layers.above {
        settings.push(("lowerdir+", layer(above)?));
    }
    settings.extend([
        ("lowerdir+", layer(&layers.tree)?),
        ("datadir+", layer(&layers.local)?),
        ("datadir+", layer(&layers.remote)?),
        ("metacopy", b"on".to_vec()),
        ("redirect_dir", b"on".to_vec()),
    ]);
    if let Some(upper) = upper {
        settings.push(("upperdir", writable_layer(&upper.upper)?));
        settings.push(("workdir", writable_layer(&upper.work)?));
    }
    Ok(settings)
}

fn layer(path: &Path) -> Result<Vec<u8>, MountError> {
    check_length(path)?;
    Ok(path.as_os_str().as_encoded_bytes().to_vec())
}

/// The kernel takes a backslash in these two as the escape of what follows.
fn writable_layer(path: &Path) -> Result<Vec<u8>, MountError> {
    let mut escaped = Vec::new();
    for byte in layer(path)? {
        if byte == b'\\' {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    if escaped.len() > LAYER_PATH_MAX {
        return Err(MountError::TooLong(path.to_owned()));
    }
    Ok(escaped)
}

fn check_length(path: &Path) -> Result<(), MountError> {
    if path.as_os_str().len() > LAYER_PATH_MAX {
        return Err(MountError::TooLong(path.to_owned()));
    }
    Ok(())
}

/// The error with what the kernel wrote about it into the context, a line each: "e overlay: …".
fn explained(
    context: &OwnedFd,
    operation: &'static str,
    point: &Path,
    errno: rustix::io::Errno,
) -> MountError {
    let mut lines = Vec::new();
    let mut line = [0; EXPLANATION_MAX];
    while let Ok(length) = rustix::io::read(context, &mut line[..]) {
        let text = String::from_utf8_lossy(&line[..length]);
        lines.push(text.trim_end().trim_start_matches("e ").to_owned());
        if length == 0 || lines.len() == 8 {
            break;
        }
    }
    MountError::Kernel { operation, path: point.to_owned(), source: errno.into(), detail: lines.join("; ") }
}
