//! The node's socket, and the lock that keeps a second frontend off the same state folder.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use tokio::net::UnixListener;

/// What a unix socket's address holds, in bytes, without the terminating zero.
const SOCKET_PATH_MAX: usize = 107;

/// Held for as long as the frontend runs. The kernel lets go of it whichever way the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

pub(crate) fn lock(state: &Path) -> anyhow::Result<Lock> {
    fs::create_dir_all(state).with_context(|| format!("cannot make the state folder {}", state.display()))?;
    let path = state.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock { _file: file }),
        Err(Errno::WOULDBLOCK) => bail!("another frontend works in {}", state.display()),
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Listens on `path`, for the owner only. What an earlier process left there is replaced, which the lock makes safe.
pub(crate) fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    // Made under another name, so that nobody finds it before its mode is set.
    let new = path.with_added_extension("new");
    if new.as_os_str().len() > SOCKET_PATH_MAX {
        bail!("the socket's path {} is longer than {} bytes", path.display(), SOCKET_PATH_MAX - ".new".len());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    if let Err(error) = fs::remove_file(&new)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("cannot remove {}", new.display()));
    }
    let listener =
        UnixListener::bind(&new).with_context(|| format!("cannot listen on {}", path.display()))?;
    fs::set_permissions(&new, Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&new, path))
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
        drop(listen(&path).unwrap());
        let _listener = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        tokio::net::UnixStream::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn a_path_that_is_too_long_is_named() {
        let error = listen(Path::new(&format!("/tmp/{}", "x".repeat(120)))).unwrap_err();
        assert!(error.to_string().contains("longer than"), "{error}");
    }
}
