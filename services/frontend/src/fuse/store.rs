//! systemd's store of file descriptors: a second place for the connection to the kernel, where systemd runs us.
//!
//! The holder survives whatever happens to the frontend; this survives the holder, too. A unit that has
//! `FileDescriptorStoreMax=` is handed what it stored when it starts again. Protocol: sd_notify(3), sd_listen_fds(3).

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use sd_notify::NotifyState;

/// What the connection is called there.
const NAME: &str = "fuse-connection";

/// Leaves the connection with systemd; nothing happens where there is none, or where it stores nothing.
pub(super) fn put(device: &OwnedFd) -> io::Result<()> {
    // One that stands there already would be doubled.
    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(NAME)])?;
    sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(NAME)], &[device.as_fd()])
}

/// The connection that a process of this unit left there.
pub(crate) fn take() -> io::Result<Option<OwnedFd>> {
    let Some((number, _)) = sd_notify::listen_fds_with_names()?.find(|(_, name)| name == NAME) else {
        return Ok(None);
    };
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(Some(pidfd_getfd(own, number, PidfdGetfdFlags::empty())?))
}
