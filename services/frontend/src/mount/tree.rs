//! Mounts a tree from its file.
//!
//! The kernel reads the file itself (Linux 6.12 with file-backed EROFS); an older one wants a block
//! device, and `mount` from util-linux makes a loop device of the file, which goes with the mount. So do those
//! that count a tree on a file as one more level of stacked file systems, which leaves too few to containers.

use std::path::Path;
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::MountError;

pub(super) fn mount(file: &Path, point: &Path) -> Result<(), MountError> {
    match rustix::mount::mount(file, point, "erofs", MountFlags::RDONLY | MountFlags::NOATIME, None) {
        Ok(()) => Ok(()),
        Err(Errno::NOTBLK) => mount_by_loop(file, point),
        Err(errno) => Err(MountError::kernel("mount the tree", file, errno.into())),
    }
}

pub(super) fn mount_by_loop(file: &Path, point: &Path) -> Result<(), MountError> {
    let refused = |detail: String| MountError::Kernel {
        operation: "mount the tree through a loop device",
        path: file.to_owned(),
        source: Errno::NOTBLK.into(),
        detail,
    };
    let mut command = Command::new("mount");
    command.args(["-t", "erofs", "-o", "ro,loop,noatime"]).arg(file).arg(point);
    let output = command.output().map_err(|error| refused(format!("cannot run mount: {error}")))?;
    if !output.status.success() {
        return Err(refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(())
}
