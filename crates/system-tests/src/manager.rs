//! What systemd does for a service that asks it to: hears that it is ready, and stores descriptors until its next start.

use std::collections::BTreeMap;
use std::io::{IoSliceMut, Result as IoResult};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use rustix::io::{FdFlags, fcntl_dupfd_cloexec};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// How long a service may take until it says the next thing.
const NEWS_MAX: Duration = Duration::from_secs(30);
const NEWS_LEN_MAX: usize = 4096;
/// Above all numbers that a service is given, so that none is replaced before it was copied.
const STORED_FROM: i32 = 100;

#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    /// By name.
    stored: BTreeMap<String, OwnedFd>,
}

impl Manager {
    pub fn new(path: &Path) -> anyhow::Result<Manager> {
        let socket = UnixDatagram::bind(path).context("listening as a service manager")?;
        socket.set_read_timeout(Some(NEWS_MAX))?;
        Ok(Manager { socket, path: path.to_owned(), stored: BTreeMap::new() })
    }

    /// The same command, as a service of ours: with what was stored as its descriptors from 3 on.
    pub fn wrap(&self, command: &Command) -> anyhow::Result<Command> {
        // A shell that knows descriptors of two digits.
        let mut wrapped = Command::new("/bin/bash");
        let names: Vec<&str> = self.stored.keys().map(String::as_str).collect();
        let (count, names) = (names.len(), names.join(":"));
        let mut script = match count {
            0 => "exec \"$@\"".to_owned(),
            _ => format!("export LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES={names}; exec \"$@\""),
        };
        for (number, stored) in (3..).zip(self.stored.values()) {
            rustix::io::fcntl_setfd(stored, FdFlags::empty())?;
            script += &format!(" {number}<&{}", stored.as_raw_fd());
        }
        wrapped.args(["-c", &script, "service"]).env("NOTIFY_SOCKET", &self.path);
        wrapped.arg(command.get_program()).args(command.get_args());
        Ok(wrapped)
    }

    /// Hears what the service has to say until it is ready.
    pub fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        loop {
            let (text, descriptor) = self.news().context("a service that does not get ready")?;
            let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
            if text.contains("FDSTORE=1") {
                let name = name.with_context(|| format!("no name came with {text:?}"))?;
                let descriptor = descriptor.with_context(|| format!("no descriptor came with {text:?}"))?;
                let high = fcntl_dupfd_cloexec(&descriptor, STORED_FROM)?;
                self.stored.insert(name.to_owned(), high);
            }
            if text.contains("READY=1") {
                return Ok(());
            }
        }
    }

    pub fn has_stored(&self, name: &str) -> bool {
        self.stored.contains_key(name)
    }

    fn news(&self) -> IoResult<(String, Option<OwnedFd>)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let (mut rights, mut text) = (RecvAncillaryBuffer::new(&mut space), [0; NEWS_LEN_MAX]);
        let slices = &mut [IoSliceMut::new(&mut text)];
        let received = recvmsg(&self.socket, slices, &mut rights, RecvFlags::CMSG_CLOEXEC)?;
        let descriptor = rights.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        Ok((String::from_utf8_lossy(&text[..received.bytes]).into_owned(), descriptor))
    }
}
