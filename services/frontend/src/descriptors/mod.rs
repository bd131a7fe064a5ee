//! File descriptors that survive every process of ours, with who keeps them.
//!
//! ```text
//! frontend --sd_notify--> systemd                 where systemd runs us ([`systemd`])
//!          --unix socket--> frontend hold         where a process of its own is named, as for containers ([`holder`])
//! ```
//!
//! The kernel's connection, so that it survives the process beside ours, too; and the sockets that others connect to, so that who
//! asks while no process serves waits for the next one instead of being refused.

mod client;
pub(crate) mod holder;
mod systemd;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use client::Client;

/// What descriptors are called there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    FuseConnection,
    NodeSocket,
    SnapshotterSocket,
    ImageServiceSocket,
}

impl Name {
    const ALL: [Name; 4] =
        [Name::FuseConnection, Name::NodeSocket, Name::SnapshotterSocket, Name::ImageServiceSocket];

    fn text(self) -> &'static str {
        match self {
            Name::FuseConnection => "fuse-connection",
            Name::NodeSocket => "node-socket",
            Name::SnapshotterSocket => "snapshotter-socket",
            Name::ImageServiceSocket => "image-service-socket",
        }
    }

    fn from_text(text: &str) -> Option<Name> {
        Name::ALL.into_iter().find(|name| name.text() == text)
    }
}

/// Who keeps this process's descriptors.
#[derive(Clone, Debug, Default)]
pub(crate) struct Descriptors {
    holder: Option<Arc<Client>>,
}

impl Descriptors {
    /// `holder`: the socket of a process that keeps them, beside systemd.
    pub(crate) fn kept_by(holder: Option<&Path>) -> io::Result<Descriptors> {
        Ok(Descriptors { holder: holder.map(Client::start).transpose()? })
    }

    /// Whether a process of its own keeps them, so that none need be started beside this one.
    pub(crate) fn have_a_holder(&self) -> bool {
        self.holder.is_some()
    }

    /// Leaves a descriptor with whoever there is; nothing happens where there is nobody.
    pub(crate) fn put(&self, name: Name, descriptor: impl AsFd) -> io::Result<()> {
        if let Some(holder) = &self.holder {
            holder.put(name, descriptor.as_fd().try_clone_to_owned()?);
        }
        systemd::put(name, descriptor)
    }

    /// What a process before this one left. An error: somebody may have it, and does not answer.
    pub(crate) fn take(&self, name: Name) -> io::Result<Option<OwnedFd>> {
        let stored = systemd::take(name);
        let Some(holder) = &self.holder else { return stored };
        match (stored, holder.take(name)) {
            (Ok(Some(stored)), _) => Ok(Some(stored)),
            (_, held) => held,
        }
    }
}
