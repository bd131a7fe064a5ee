//! The frontend's side of the [holder](super::holder): what was put there is put again whenever another holder has come.

use std::io::{self, ErrorKind, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use super::Name;
use super::holder::{KEPT, MESSAGE_MAX, NONE, PUT, TAKE, receive, send};

/// A holder answers at once; one that does not is as good as none.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Between two looks at a holder that is away, and at one that lives.
const AWAY_PAUSE: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_millis(500);

/// Sees to it that a holder has what was put, until dropped.
#[derive(Debug)]
pub(super) struct Client {
    socket: PathBuf,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// What holders are given, one of each name at most.
    descriptors: Vec<(Name, Arc<OwnedFd>)>,
    /// Whether the holder that lives has all of it.
    given: bool,
}

impl Client {
    pub(super) fn start(socket: &Path) -> io::Result<Arc<Client>> {
        let client = Arc::new(Client { socket: socket.to_owned(), kept: Mutex::default() });
        let watching = Arc::downgrade(&client);
        thread::Builder::new().name("holder".to_owned()).spawn(move || watch(&watching))?;
        Ok(client)
    }

    /// Returns when a holder has it, or is away: then the next one gets it.
    pub(super) fn put(&self, name: Name, descriptor: OwnedFd) {
        let descriptor = Arc::new(descriptor);
        {
            let mut kept = self.kept();
            kept.descriptors.retain(|(known, _)| *known != name);
            kept.descriptors.push((name, descriptor.clone()));
        }
        if let Err(error) = self.connect().and_then(|stream| give(&stream, name, &descriptor)) {
            tracing::warn!(%error, socket = %self.socket.display(), "the holder takes no descriptor: it is asked again");
            self.kept().given = false;
        }
    }

    /// None: there is no holder, and with it what it had is gone, or it has none of that name.
    pub(super) fn take(&self, name: Name) -> io::Result<Option<OwnedFd>> {
        let stream = match self.connect() {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            connected => connected?,
        };
        match ask(&stream, TAKE, name, None)? {
            (KEPT, Some(descriptor)) => Ok(Some(descriptor)),
            (NONE, None) => Ok(None),
            _ => Err(unexpected()),
        }
    }

    fn connect(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        Ok(stream)
    }

    /// Gives a holder all that there is.
    fn give_all(&self) -> io::Result<UnixStream> {
        let stream = self.connect()?;
        let all = {
            let mut kept = self.kept();
            kept.given = true;
            kept.descriptors.clone()
        };
        all.iter().try_for_each(|(name, descriptor)| give(&stream, *name, descriptor))?;
        Ok(stream)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Until nobody has the client any more.
fn watch(client: &Weak<Client>) {
    let (mut holder, mut told): (Option<UnixStream>, bool) = (None, false);
    while let Some(client) = client.upgrade() {
        if !client.kept().given {
            holder = None;
        }
        let Some(stream) = &mut holder else {
            match client.give_all().and_then(|stream| stream.set_read_timeout(Some(LOOK)).map(|()| stream)) {
                Ok(stream) => {
                    tracing::info!(socket = %client.socket.display(), "a holder keeps the descriptors");
                    (holder, told) = (Some(stream), false);
                }
                Err(error) if !told => {
                    tracing::warn!(%error, socket = %client.socket.display(), "no holder keeps the descriptors");
                    told = true;
                }
                Err(_) => {}
            }
            drop(client);
            thread::sleep(AWAY_PAUSE);
            continue;
        };
        drop(client);
        // It never sends anything unasked: this ends with it, or with the time.
        match stream.read(&mut [0]) {
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            _ => holder = None,
        }
    }
}

fn give(stream: &UnixStream, name: Name, descriptor: &OwnedFd) -> io::Result<()> {
    match ask(stream, PUT, name, Some(descriptor))? {
        (KEPT, None) => Ok(()),
        _ => Err(unexpected()),
    }
}

fn ask(
    stream: &UnixStream,
    verb: u8,
    name: Name,
    descriptor: Option<&OwnedFd>,
) -> io::Result<(u8, Option<OwnedFd>)> {
    let message = [&[verb], name.text().as_bytes()].concat();
    send(stream, &message, descriptor.map(|descriptor| descriptor.as_fd()))?;
    let mut answer = [0; MESSAGE_MAX];
    match receive(stream, &mut answer)? {
        (1, descriptor) => Ok((answer[0], descriptor)),
        _ => Err(unexpected()),
    }
}

fn unexpected() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "the holder's answer is none")
}
