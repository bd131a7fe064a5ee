//! A container's folder.

use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Pid;

/// Marks a folder that stays.
const KEEP: &str = "keep";
const ROOT: &str = "rootfs";
const ROOT_MODE: u32 = 0o755;
/// The number of the process that attends to the container, and holds the lock.
const ATTENDANT: &str = "attendant";

/// `<state>/run/<id>`, gone when dropped. Whoever made it holds its lock for as long as it lives: a
/// folder that nobody locks was left behind.
#[derive(Debug)]
pub struct Folder {
    pub id: String,
    pub path: PathBuf,
    pub keep: bool,
    _lock: File,
}

impl Folder {
    /// A new one in `parent`, of this name or of one that no other has.
    pub fn create(parent: &Path, name: Option<&str>, keep: bool) -> anyhow::Result<Folder> {
        // What containers wrote is nobody else's.
        lifecycle::private::folder(parent).with_context(|| format!("create {}", parent.display()))?;
        let path = match name {
            Some(name) => {
                let path = parent.join(name);
                match std::fs::create_dir(&path) {
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                        bail!("a container named {name} exists, or was kept: {}", path.display())
                    }
                    result => result.with_context(|| format!("create {}", path.display()))?,
                }
                path
            }
            None => tempfile::Builder::new().prefix("c").tempdir_in(parent)?.keep(),
        };
        let mut folder = Folder::lock(path)?.context("the container's new folder is in use")?;
        folder.keep = keep;
        if keep {
            std::fs::write(folder.path.join(KEEP), b"").context("mark the folder as kept")?;
        }
        std::fs::write(folder.path.join(ATTENDANT), std::process::id().to_string())
            .context("note who attends to the container")?;
        // Last the root: a folder without one is not complete, or not to be taken away.
        for part in ["upper", "work", ROOT] {
            let path = folder.path.join(part);
            // The upper folder is the container's `/`, which its users pass through whatever the umask here is.
            std::fs::create_dir(&path)
                .and_then(|()| std::fs::set_permissions(&path, Permissions::from_mode(ROOT_MODE)))
                .with_context(|| format!("create {}", path.display()))?;
        }
        Ok(folder)
    }

    /// Folders in `parent` whose makers were killed.
    pub fn left_behind(parent: &Path) -> anyhow::Result<Vec<Folder>> {
        let whole = Folder::all(parent)?;
        Ok(whole.into_iter().filter_map(|path| Folder::lock(path).ok().flatten()).collect())
    }

    /// Those in `parent`, locked or not.
    pub fn all(parent: &Path) -> anyhow::Result<Vec<PathBuf>> {
        let listed = match std::fs::read_dir(parent) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            listed => listed.with_context(|| format!("list {}", parent.display()))?,
        };
        let paths = listed.filter_map(|entry| Some(entry.ok()?.path()));
        Ok(paths.filter(|path| path.join(ROOT).symlink_metadata().is_ok()).collect())
    }

    /// The process that attends to the container in `path`.
    pub fn attendant(path: &Path) -> anyhow::Result<Pid> {
        let file = path.join(ATTENDANT);
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let number = text.trim().parse().ok().and_then(Pid::from_raw);
        number.with_context(|| format!("{} names no process", file.display()))
    }

    /// Waits until nobody holds it, and what became of it then: none when it is gone.
    pub fn released(path: &Path) -> anyhow::Result<Option<Folder>> {
        let lock = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.with_context(|| format!("open {}", path.display()))?,
        };
        flock(&lock, FlockOperation::LockExclusive).with_context(|| format!("lock {}", path.display()))?;
        drop(lock);
        if path.join(ROOT).symlink_metadata().is_err() {
            return Ok(None);
        }
        Folder::lock(path.to_owned())
    }

    /// `None` when another process holds it.
    pub fn lock(path: PathBuf) -> anyhow::Result<Option<Folder>> {
        let lock = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            locked => locked.with_context(|| format!("lock {}", path.display()))?,
        }
        let id = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let keep = path.join(KEEP).exists();
        Ok(Some(Folder { id, path, keep, _lock: lock }))
    }

    /// Whether the container's root is.
    pub fn is_mounted(&self) -> bool {
        let root = self.path.join(ROOT);
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        table.lines().any(|line| line.split(' ').nth(4).map(Path::new) == Some(&root))
    }

    pub fn part(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    /// Unlocks it and lets it be.
    pub fn leave(mut self) {
        self.path = PathBuf::new();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.path.as_os_str().is_empty() {
            return;
        }
        // Not emptied but removed: if it is still mounted this fails, and nothing of the image is touched.
        let emptied = std::fs::remove_dir(self.path.join(ROOT));
        let removed = match (&emptied, self.keep) {
            (Ok(()), false) => std::fs::remove_dir_all(&self.path),
            _ => emptied,
        };
        if let Err(error) = removed {
            tracing::warn!(path = %self.path.display(), error = %error, "remove the container's folder");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_exclusive_and_go_away_unless_kept() {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder::create(parent.path(), Some("web"), false).unwrap();
        assert!(Folder::create(parent.path(), Some("web"), false).unwrap_err().to_string().contains("web"));
        let own = rustix::process::getpid();
        assert_eq!(Folder::attendant(&folder.path).unwrap(), own);
        let path = folder.path.clone();
        drop(folder);
        assert!(!path.exists());
        let kept = Folder::create(parent.path(), None, true).unwrap();
        let upper = kept.path.join("upper");
        drop(kept);
        assert!(upper.exists());
        assert!(Folder::left_behind(parent.path()).unwrap().is_empty(), "what is kept was not left behind");
    }

    #[test]
    fn what_nobody_locks_was_left_behind() {
        let parent = tempfile::tempdir().unwrap();
        assert!(Folder::left_behind(&parent.path().join("none")).unwrap().is_empty());
        let (used, kept) = (
            Folder::create(parent.path(), Some("used"), false),
            Folder::create(parent.path(), Some("kept"), true),
        );
        let killed = Folder::create(parent.path(), Some("killed"), false).unwrap();
        assert!(Folder::left_behind(parent.path()).unwrap().is_empty());
        killed.leave();
        kept.unwrap().leave();
        let mut left = Folder::left_behind(parent.path()).unwrap();
        left.sort_by(|a, b| a.id.cmp(&b.id));
        assert_eq!(left.iter().map(|folder| folder.id.as_str()).collect::<Vec<_>>(), ["kept", "killed"]);
        drop(left);
        assert!(!parent.path().join("killed").exists());
        assert!(parent.path().join("kept/upper").exists(), "what was written must be kept");
        drop(used);
    }
}
