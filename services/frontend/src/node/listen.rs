//! The node's socket, and the lock that keeps a second frontend off the same state folder.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use lifecycle::private;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use tokio::net::UnixListener;

use crate::descriptors::{Descriptors, Name};

/// What a unix socket's address holds, in bytes, without the terminating zero.
const SOCKET_PATH_MAX: usize = 107;

/// What stands in a state folder, of this process and of those that share it; beside sockets and files whose names begin so.
const OWN: [&str; 18] = [
    "cache",
    "checking",
    "fetcher.key",
    "grants",
    "incoming",
    "layers",
    "lock",
    "maps",
    "mnt",
    "names",
    "objects",
    "partial",
    "plugins",
    "records",
    "run",
    "runtime",
    "synced",
    "trees",
];
const OWN_BEGINS: [&str; 3] = ["serve.log", "snapshots", "store"];

/// Held for as long as the frontend runs. The kernel lets go of it whichever way the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// A frontend has this state folder already.
#[derive(Debug, thiserror::Error)]
#[error("another frontend works in {}", .0.display())]
pub struct InUse(PathBuf);

/// Takes the state folder, and closes to other users what an earlier version left open.
pub(crate) fn lock(state: &Path) -> anyhow::Result<Lock> {
    private::make(state).with_context(|| format!("cannot make the state folder {}", state.display()))?;
    let path = state.join("lock");
    // Read is enough for the lock, and possible where nothing can be written any more.
    let file = match OpenOptions::new().read(true).open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let made = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
            made.and_then(|_| File::open(&path))
        }
        opened => opened,
    };
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            private::close_own(state, is_own);
            Ok(Lock { _file: file })
        }
        Err(Errno::WOULDBLOCK) => Err(InUse(state.to_owned()).into()),
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

fn is_own(name: &str) -> bool {
    let begins = || {
        OWN_BEGINS.iter().any(|begin| {
            name.strip_prefix(begin).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    };
    OWN.contains(&name) || name.contains(".sock") || begins()
}

/// Listens on `path`, for the owner only. Where `descriptors` kept the socket of the process before, it is the same one, with all who
/// connected meanwhile; else what an earlier process left there is replaced, which the lock makes safe.
pub(crate) fn listen(path: &Path, name: Name, descriptors: &Descriptors) -> anyhow::Result<UnixListener> {
    if let Some(kept) = listen_again(path, name, descriptors)? {
        return Ok(kept);
    }
    let listener = bind(path, &made_as(path))?;
    if let Err(error) = descriptors.put(name, &listener) {
        tracing::warn!(%error, socket = %path.display(), "systemd does not store the socket");
    }
    Ok(listener)
}

/// The socket of the process before on `path`, if `descriptors` kept it.
pub(crate) fn listen_again(
    path: &Path,
    name: Name,
    descriptors: &Descriptors,
) -> anyhow::Result<Option<UnixListener>> {
    let Some(kept) = kept(path, &made_as(path), name, descriptors) else { return Ok(None) };
    tracing::info!(socket = %path.display(), "going on with the socket of the process before");
    // The next holder wants it, too.
    if descriptors.have_a_holder()
        && let Err(error) = descriptors.put(name, &kept)
    {
        tracing::warn!(%error, socket = %path.display(), "systemd does not store the socket");
    }
    let listener = kept.set_nonblocking(true).and_then(|()| UnixListener::from_std(kept));
    listener.map(Some).with_context(listening(path))
}

/// Sockets are made under another name, so that nobody finds them before their mode is set.
fn made_as(path: &Path) -> PathBuf {
    path.with_added_extension("new")
}

/// What was kept, if it is what stands at `path`.
fn kept(
    path: &Path,
    new: &Path,
    name: Name,
    descriptors: &Descriptors,
) -> Option<std::os::unix::net::UnixListener> {
    let kept = descriptors.take(name).unwrap_or_else(|error| {
        tracing::warn!(%error, socket = %path.display(), "the socket that was kept cannot be taken");
        None
    });
    let kept = std::os::unix::net::UnixListener::from(kept?);
    let stands = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let same = kept.local_addr().is_ok_and(|address| address.as_pathname() == Some(new));
    (stands && same).then_some(kept)
}

fn listening(path: &Path) -> impl Fn() -> String {
    move || format!("cannot listen on {}", path.display())
}

fn bind(path: &Path, new: &Path) -> anyhow::Result<UnixListener> {
    if new.as_os_str().len() > SOCKET_PATH_MAX {
        bail!("the socket's path {} is longer than {} bytes", path.display(), SOCKET_PATH_MAX - ".new".len());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    if let Err(error) = fs::remove_file(new)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("cannot remove {}", new.display()));
    }
    let listener = UnixListener::bind(new).or_else(|error| {
        // A disk that is out of inodes: the one of the process before is of no more use, and has one.
        match error.kind() == ErrorKind::StorageFull && fs::remove_file(path).is_ok() {
            true => UnixListener::bind(new),
            false => Err(error),
        }
    });
    let listener = listener.with_context(listening(path))?;
    fs::set_permissions(new, Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(new, path))
        .with_context(|| format!("cannot put the socket at {}", path.display()))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_frontend_per_state_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path()).unwrap();
        assert!(lock(folder.path()).unwrap_err().to_string().contains("another frontend"));
        drop(first);
        lock(folder.path()).unwrap();
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/node.sock");
        drop(listen(&path, Name::NodeSocket, &Descriptors::default()).unwrap());
        let _listener = listen(&path, Name::NodeSocket, &Descriptors::default()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        tokio::net::UnixStream::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn a_path_that_is_too_long_is_named() {
        let error = listen(
            Path::new(&format!("/tmp/{}", "x".repeat(120))),
            Name::NodeSocket,
            &Descriptors::default(),
        )
        .unwrap_err();
        assert!(error.to_string().contains("longer than"), "{error}");
    }
}
