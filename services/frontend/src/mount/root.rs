//! A container's root: an overlay of its own upper folder, if any, over tree :: local :: remote.
//!
//! Made through the new mount API: each layer is a setting of its own, so no path needs escaping
//! against the others, and `datadir+` says which layers hold data only (Linux 6.8). The kernel looks an
//! object up in `local` first and in `remote` when it is not there, when a file is first opened.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags};

use super::{MountError, Target};

/// What `fsconfig` takes for one value, in bytes, without the terminating zero.
pub(super) const LAYER_PATH_MAX: usize = 255;
/// The kernel's own explanation of a refused mount, in bytes.
const EXPLANATION_MAX: usize = 4096;

/// What a root stands on, from the top.
#[derive(Clone, Debug)]
pub(crate) struct Layers {
    pub(crate) tree: PathBuf,
    pub(crate) local: PathBuf,
    pub(crate) remote: PathBuf,
}

/// Refuses a state folder whose layers could never be mounted.
pub(super) fn check_lengths(tree: &Path, objects: &Path) -> Result<(), MountError> {
    [tree, objects].into_iter().try_for_each(check_length)
}

pub(super) fn mount(layers: &Layers, target: &Target) -> Result<(), MountError> {
    let refused = |operation| {
        move |errno: rustix::io::Errno| MountError::kernel(operation, &target.point, errno.into())
    };
    let overlay = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(refused("prepare an overlay for"))?;
    for (name, value) in settings(layers, target)? {
        rustix::mount::fsconfig_set_string(overlay.as_fd(), name, &value)
            .map_err(|errno| explained(&overlay, "set up the overlay for", target, errno))?;
    }
    rustix::mount::fsconfig_create(overlay.as_fd())
        .map_err(|errno| explained(&overlay, "make the overlay for", target, errno))?;
    let attributes =
        if target.upper.is_some() { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_RDONLY };
    let mounted = rustix::mount::fsmount(overlay.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|errno| explained(&overlay, "make the mount for", target, errno))?;
    rustix::mount::move_mount(
        mounted.as_fd(),
        "",
        CWD,
        &target.point,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(refused("mount at"))
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

fn settings(layers: &Layers, target: &Target) -> Result<Vec<(&'static str, Vec<u8>)>, MountError> {
    let mut settings = vec![
        ("source", b"sluice".to_vec()),
        ("lowerdir+", layer(&layers.tree)?),
        ("datadir+", layer(&layers.local)?),
        ("datadir+", layer(&layers.remote)?),
        ("metacopy", b"on".to_vec()),
        ("redirect_dir", b"on".to_vec()),
    ];
    if let Some(upper) = &target.upper {
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
    target: &Target,
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
    MountError::Kernel {
        operation,
        path: target.point.clone(),
        source: errno.into(),
        detail: lines.join("; "),
    }
}
