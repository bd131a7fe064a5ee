//! A process that keeps a frontend's descriptors and does nothing else: `frontend hold SOCKET`. For containers, where whatever
//! a frontend starts beside itself ends with its container.
//!
//! ```text
//! P<name> and a descriptor  ->  k                    keep it, in place of one of that name
//! T<name>                   ->  k and a descriptor   hand it out; it is kept all the same
//!                           ->  n                    there is none
//! ```
//!
//! One message at a time on each connection, which a frontend keeps open to notice the end of the holder. Whoever may open the socket gets
//! the connection that containers read through, so its mode is 0600.

use std::fs;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::Name;

/// The first argument of a program that is the holder; the socket's path follows.
const ARGUMENT: &str = "hold";
/// Connections at a time: of one frontend, the one before it, and those that put and take.
const CONNECTIONS_MAX: usize = 16;
/// A verb and a name.
pub(super) const MESSAGE_MAX: usize = 64;
pub(super) const PUT: u8 = b'P';
pub(super) const TAKE: u8 = b'T';
pub(super) const KEPT: u8 = b'k';
pub(super) const NONE: u8 = b'n';

/// What a program does that was started as the holder; none: it was started as itself.
pub(crate) fn entry() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    lifecycle::private::restrict_umask();
    let Some(path) = arguments.next() else {
        tracing_to_stderr("`hold` needs the path of its socket");
        return Some(ExitCode::from(2));
    };
    let path = Path::new(&path);
    match listen(path).and_then(|listener| hold(&listener)) {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            tracing_to_stderr(&format!("holding descriptors at {}: {error}", path.display()));
            Some(ExitCode::FAILURE)
        }
    }
}

/// There is no log in this process: it must work whatever else does not.
fn tracing_to_stderr(line: &str) {
    use std::io::Write as _;
    let _nobody_reads = writeln!(io::stderr(), "{line}");
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        lifecycle::private::make(folder)?;
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(ErrorKind::AlreadyExists, "something that is no socket stands there"));
        }
        _ => fs::remove_file(path)?,
    }
    // Its mode follows the umask, which leaves others nothing.
    UnixListener::bind(path)
}

/// Answers for as long as the process runs.
pub(super) fn hold(listener: &UnixListener) -> io::Result<()> {
    let (mut kept, mut connections) = (Vec::<(Name, OwnedFd)>::new(), Vec::<OwnedFd>::new());
    loop {
        // Who comes when there are enough waits until one left.
        let room = if connections.len() < CONNECTIONS_MAX { PollFlags::IN } else { PollFlags::empty() };
        let mut watched = vec![PollFd::from_borrowed_fd(listener.as_fd(), room)];
        watched.extend(kept.iter().map(|(_, descriptor)| PollFd::new(descriptor, PollFlags::empty())));
        watched.extend(connections.iter().map(|one| PollFd::new(one, PollFlags::IN | PollFlags::RDHUP)));
        match poll(&mut watched, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let told: Vec<bool> = watched.iter().map(|watched| !watched.revents().is_empty()).collect();
        let (kept_told, connections_told) = told[1..].split_at(kept.len());
        let (mut kept_told, mut connections_told) = (kept_told.iter(), connections_told.iter());
        // Of a file system that is gone from the kernel, or a socket that nobody can use any more.
        kept.retain(|_| !kept_told.next().copied().unwrap_or(false));
        connections.retain(|one| {
            let asks = connections_told.next().copied().unwrap_or(false);
            !asks || answer(one.as_fd(), &mut kept).is_ok()
        });
        if told[0] {
            connections.push(rustix::net::accept(listener)?);
        }
    }
}

/// An error ends the connection.
fn answer(connection: BorrowedFd<'_>, kept: &mut Vec<(Name, OwnedFd)>) -> io::Result<()> {
    let mut buffer = [0; MESSAGE_MAX];
    let (length, descriptor) = receive(connection, &mut buffer)?;
    let (verb, name) = buffer[..length].split_first().ok_or(ErrorKind::UnexpectedEof)?;
    let name = std::str::from_utf8(name).ok().and_then(Name::from_text).ok_or(ErrorKind::InvalidData)?;
    match (*verb, descriptor) {
        (PUT, Some(descriptor)) => {
            kept.retain(|(known, _)| *known != name);
            kept.push((name, descriptor));
            send(connection, &[KEPT], None)
        }
        (TAKE, None) => match kept.iter().find(|(known, _)| *known == name) {
            Some((_, descriptor)) => send(connection, &[KEPT], Some(descriptor.as_fd())),
            None => send(connection, &[NONE], None),
        },
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

pub(super) fn send(to: impl AsFd, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    if !descriptors.is_empty() {
        rights.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    sendmsg(to, &[IoSlice::new(bytes)], &mut rights, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

/// One message, with the descriptor that came with it.
pub(super) fn receive(from: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let from = from.as_fd();
    // A socket with a timeout is interrupted by any signal, like that of a child that ended.
    let message = rustix::io::retry_on_intr(|| {
        recvmsg(from, &mut [IoSliceMut::new(&mut *buffer)], &mut rights, RecvFlags::CMSG_CLOEXEC)
    })?;
    let descriptor = rights.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((message.bytes, descriptor))
}
