//! Goes on with a connection to the kernel that another process began.
//!
//! fuser wants to see the handshake that opens a connection. It took place long ago, so fuser is shown another
//! one on a socket; then the real connection takes the socket's place. What the process before had
//! read and not answered is asked for again: the kernel resends it (Linux 6.9).
//!
//! Formats: the kernel's include/uapi/linux/fuse.h.

use std::fs::File;
use std::io::{self, Write as _};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use fuser::{Config, Filesystem, Session, SessionACL};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

/// `FUSE_INIT`.
const INIT: u32 = 26;
/// The version that is shown; nothing that is used here came later.
const VERSION: [u32; 2] = [7, 40];
/// `FUSE_NOTIFY_RESEND`.
const NOTIFY_RESEND: u32 = 7;
/// struct fuse_in_header and struct fuse_init_in, in bytes.
const HANDSHAKE: u32 = 40 + 64;
/// struct fuse_out_header, in bytes.
const NOTIFICATION: u32 = 16;

/// A session of `filesystem` on `device`, where another process shook hands.
pub(super) fn resume<F: Filesystem>(
    filesystem: F,
    device: OwnedFd,
    acl: SessionACL,
    config: Config,
) -> io::Result<Session<F>> {
    // Keeps the borders between messages, as the device does.
    let (kernel, socket) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    send(&kernel, &handshake(), SendFlags::NOSIGNAL)?;
    let number = socket.as_raw_fd();
    let session = Session::from_fd(filesystem, socket, acl, config)?;
    #[expect(
        unsafe_code,
        reason = "fuser owns the descriptor and gives no other way to exchange what it names"
    )]
    // SAFETY: `session` owns this descriptor and keeps it open: it is valid here, and never closed by this alias.
    let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
    rustix::io::dup2(&device, &mut place)?;
    if let Err(error) = File::from(device).write_all(&resend()) {
        // An older kernel: what was in flight then waits for its reader to give up, nothing else does.
        tracing::warn!(%error, "the kernel does not resend the reads that were in flight");
    }
    Ok(session)
}

fn handshake() -> Vec<u8> {
    // Header: length, opcode, unique (64 bits), and of no meaning here: node (64), uid, gid, pid, extensions.
    let mut words = vec![HANDSHAKE, INIT, 1, 0, 0, 0, 0, 0, 0, 0];
    // Body: version, read-ahead, flags, more flags, unused. Any flag may be offered: the answer is thrown away.
    words.extend(VERSION);
    words.extend([128 * 1024, u32::MAX, u32::MAX]);
    words.resize(HANDSHAKE as usize / size_of::<u32>(), 0);
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}

fn resend() -> Vec<u8> {
    // Length, code, unique (64 bits): 0 says that it answers nothing.
    [NOTIFICATION, NOTIFY_RESEND, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_lengths_that_they_say() {
        assert_eq!(handshake().len(), HANDSHAKE as usize);
        assert_eq!(resend().len(), NOTIFICATION as usize);
    }
}
