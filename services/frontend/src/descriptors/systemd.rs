//! systemd's store of file descriptors. A unit that has `FileDescriptorStoreMax=` is handed what it stored when it starts again.
//! Protocol: sd_notify(3), sd_listen_fds(3).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use sd_notify::NotifyState;

use super::Name;

/// Leaves a descriptor with systemd; nothing happens where there is none, or where it stores nothing.
pub(super) fn put(name: Name, descriptor: impl AsFd) -> io::Result<()> {
    // One that stands there already would be doubled.
    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name.text())])?;
    let store = [NotifyState::FdStore, NotifyState::FdName(name.text())];
    sd_notify::notify_with_fds(&store, &[descriptor.as_fd()])
}

/// What a process of this unit left there.
pub(super) fn take(name: Name) -> io::Result<Option<OwnedFd>> {
    let Some((number, _)) = sd_notify::listen_fds_with_names()?.find(|(_, found)| found == name.text())
    else {
        return Ok(None);
    };
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(Some(pidfd_getfd(own, number, PidfdGetfdFlags::empty())?))
}
