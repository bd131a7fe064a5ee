//! Mounts a tree from its file.
//!
//! The kernel reads the file itself (Linux 6.12 with file-backed EROFS); an older one wants a block
//! device, and `mount` from util-linux makes a loop device of the file, which goes with the mount. So do those
//! that count a tree on a file as one more level of stacked file systems, which leaves too few to containers.

use std::io;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::MountError;

/// Programs, set-user-id ones above all, and device nodes of an image are for its containers: their overlays have flags of their
/// own, and only those count there.
const FLAGS: MountFlags = MountFlags::RDONLY
    .union(MountFlags::NOATIME)
    .union(MountFlags::NOSUID)
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

pub(super) fn mount(file: &Path, point: &Path) -> Result<(), MountError> {
    match rustix::mount::mount(file, point, "erofs", FLAGS, None) {
        Ok(()) => Ok(()),
        Err(Errno::NOTBLK) => mount_by_loop(file, point),
        Err(errno) => Err(MountError::kernel("mount the tree", file, errno.into())),
    }
}

/// Gives a mount that an earlier version made the flags of today.
pub(super) fn restrict(point: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_remount(point, MountFlags::BIND | FLAGS, "")?)
}

pub(super) fn mount_by_loop(file: &Path, point: &Path) -> Result<(), MountError> {
    let refused = |detail: String| MountError::Kernel {
        operation: "mount the tree through a loop device",
        path: file.to_owned(),
        source: Errno::NOTBLK.into(),
        detail,
    };
    let mut command = Command::new("mount");
    command.args(["-t", "erofs", "-o", "ro,loop,noatime,nosuid,nodev,noexec"]).arg(file).arg(point);
    let output = command.output().map_err(|error| refused(format!("cannot run mount: {error}")))?;
    if !output.status.success() {
        return Err(refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(())
}
