//! Keeps the connection to the kernel open while this process ends and the next one begins.
//!
//! ```text
//! frontend --starts--> holder    stdin: a listening socket, stdout: /dev/fuse
//! frontend <--SCM_RIGHTS, one byte-- holder      to whoever connects; then the connection stays open,
//!                                                so that each side sees when the other dies
//! ```
//!
//! The holder is this same program under another first argument. It reads nothing and knows nothing; it ends when the
//! file system is gone from the kernel. A holder that was killed is started again by the frontend that serves.

use std::fs;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// The first argument of a program that is the holder.
const ARGUMENT: &str = "hold-fuse-connection";
/// Frontends that a holder listens to at once; there is one, and for a moment the one before.
const FRONTENDS_MAX: usize = 8;
/// A holder answers at once; one that does not is as good as none.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Between two starts of a holder that does not stay.
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// What a program does that was started as the holder; none: it was started as itself.
pub(crate) fn entry() -> Option<ExitCode> {
    if std::env::args_os().nth(1)? != ARGUMENT {
        return None;
    }
    Some(match hold(rustix::stdio::stdin(), rustix::stdio::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

/// Hands `device` to all who connect, until it is of no more use.
fn hold(listener: BorrowedFd<'_>, device: BorrowedFd<'_>) -> io::Result<()> {
    let mut frontends: Vec<OwnedFd> = Vec::new();
    loop {
        // Who comes when there are enough waits until one left.
        let room = if frontends.len() < FRONTENDS_MAX { PollFlags::IN } else { PollFlags::empty() };
        let mut watched = vec![
            PollFd::from_borrowed_fd(device, PollFlags::empty()),
            PollFd::from_borrowed_fd(listener, room),
        ];
        watched.extend(frontends.iter().map(|frontend| PollFd::new(frontend, PollFlags::RDHUP)));
        match poll(&mut watched, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let told: Vec<bool> = watched.iter().map(|watched| !watched.revents().is_empty()).collect();
        let came = watched[1].revents().contains(PollFlags::IN);
        if told[0] {
            return Ok(());
        }
        let mut left = told[2..].iter();
        frontends.retain(|_| !left.next().copied().unwrap_or(false));
        if came && room.contains(PollFlags::IN) {
            let frontend = rustix::net::accept(listener)?;
            // Whoever went away meanwhile needs nothing.
            if give(&frontend, device).is_ok() {
                frontends.push(frontend);
            }
        }
    }
}

fn give(to: &OwnedFd, device: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let devices = [device];
    rights.push(SendAncillaryMessage::ScmRights(&devices));
    sendmsg(to, &[IoSlice::new(b"f")], &mut rights, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The connection that a holder kept, if there is one.
pub(crate) fn take(state: &Path) -> io::Result<Option<OwnedFd>> {
    match connect(state) {
        Ok((device, _)) => Ok(Some(device)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
        Err(error) => Err(error),
    }
}

fn connect(state: &Path) -> io::Result<(OwnedFd, UnixStream)> {
    let stream = UnixStream::connect(socket(state))?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let (mut rights, mut byte) = (RecvAncillaryBuffer::new(&mut space), [0]);
    let mut receive =
        || recvmsg(&stream, &mut [IoSliceMut::new(&mut byte)], &mut rights, RecvFlags::CMSG_CLOEXEC);
    // A socket with a timeout is interrupted by any signal, like that of a child that ended.
    rustix::io::retry_on_intr(&mut receive)?;
    let device = rights.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut devices) => devices.next(),
        _ => None,
    });
    stream.set_read_timeout(None)?;
    let device =
        device.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "the holder sent no connection"))?;
    Ok((device, stream))
}

/// Sees to it that a holder has `device`, until dropped.
#[derive(Debug)]
pub(super) struct Keeper {
    ending: Arc<AtomicBool>,
}

impl Keeper {
    /// Returns once a new holder has it. One that is there has another connection, as long as somebody uses that.
    pub(super) fn start(state: &Path, device: OwnedFd) -> io::Result<Keeper> {
        let held = start(state, &device)?;
        Keeper::keep(state, device, held)
    }

    /// Returns once a holder has it: the one that it was taken from, if that still lives.
    pub(super) fn resume(state: &Path, device: OwnedFd) -> io::Result<Keeper> {
        let held = find_or_start(state, &device)?;
        Keeper::keep(state, device, held)
    }

    fn keep(state: &Path, device: OwnedFd, held: Held) -> io::Result<Keeper> {
        let keeper = Keeper { ending: Arc::default() };
        let (state, ending) = (state.to_owned(), keeper.ending.clone());
        let mut held = Some(held);
        thread::Builder::new().name("fuse-holder".to_owned()).spawn(move || {
            loop {
                if let Some(held) = held.take() {
                    held.wait();
                }
                if ending.load(Ordering::Relaxed) || is_gone(&device) {
                    return;
                }
                tracing::warn!("the holder of the kernel's connection is gone: starting another");
                match find_or_start(&state, &device) {
                    Ok(found) => held = Some(found),
                    Err(error) => {
                        tracing::error!(%error, "no holder of the kernel's connection can be started")
                    }
                }
                thread::sleep(RESTART_PAUSE);
            }
        })?;
        Ok(keeper)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
    }
}

/// A holder that answers.
struct Held {
    stream: UnixStream,
    child: Option<Child>,
}

impl Held {
    /// Until it dies.
    fn wait(mut self) {
        // It never sends anything more: this ends with it.
        self.stream.read_exact(&mut [0]).ok();
        if let Some(mut child) = self.child {
            child.wait().ok();
        }
    }
}

/// Whether the kernel has no more use for the connection.
fn is_gone(device: &OwnedFd) -> bool {
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(device, PollFlags::empty())], Some(&now)).is_ok_and(|told| told > 0)
}

fn find_or_start(state: &Path, device: &OwnedFd) -> io::Result<Held> {
    if let Ok((_, stream)) = connect(state) {
        return Ok(Held { stream, child: None });
    }
    start(state, device)
}

fn start(state: &Path, device: &OwnedFd) -> io::Result<Held> {
    let path = socket(state);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg(ARGUMENT).arg(state).stdin(Stdio::from(OwnedFd::from(listener)));
    command.stdout(Stdio::from(device.as_fd().try_clone_to_owned()?)).stderr(Stdio::null());
    // A signal to the frontend's group is none to the holder.
    let child = command.process_group(0).current_dir("/").spawn()?;
    let (_, stream) = connect(state)?;
    Ok(Held { stream, child: Some(child) })
}

/// Inside the state folder, which only its owner may enter.
fn socket(state: &Path) -> PathBuf {
    state.join("holder.sock")
}
