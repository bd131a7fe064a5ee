//! The temporary folder of a comparison, and everything that lives in it.
//!
//! Services of a comparison end asynchronously, and mount file systems below the folder. It is removed only after
//! they have ended and nothing is mounted there any more, whichever way the comparison ends.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

/// How long services may take to end after the comparison did.
const DRAIN: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Scratch {
    folder: TempDir,
    services: Mutex<Vec<TaskTracker>>,
}

impl Scratch {
    /// A new folder in `parent`, which should be on a disk: what is compared is not memory.
    pub fn new(parent: &Path) -> anyhow::Result<Scratch> {
        let folder = tempfile::Builder::new().prefix("compare-").tempdir_in(parent);
        let folder = folder.with_context(|| format!("make a temporary folder in {}", parent.display()))?;
        Ok(Scratch { folder, services: Mutex::default() })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The folder's, which no other has.
    pub fn name(&self) -> String {
        self.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The tasks of one more service that must have ended before the folder goes.
    pub fn tasks(&self) -> TaskTracker {
        let tasks = TaskTracker::new();
        self.services.lock().unwrap_or_else(PoisonError::into_inner).push(tasks.clone());
        tasks
    }

    /// Waits for the services, which were told to end by their owners' drop, and removes the folder.
    pub async fn close(self) {
        let services = std::mem::take(&mut *self.services.lock().unwrap_or_else(PoisonError::into_inner));
        let ended = futures::future::join_all(services.iter().map(|tasks| {
            tasks.close();
            tasks.wait()
        }));
        if tokio::time::timeout(DRAIN, ended).await.is_err() {
            tracing::warn!("services of the comparison did not end in time");
        }
        // Unmounting and removing block.
        let _removed = tokio::task::spawn_blocking(move || drop(self)).await;
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        detach_below(self.folder.path());
    }
}

/// Takes away every mount below `folder`, the latest first; what is in use goes when its last user does.
fn detach_below(folder: &Path) {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    for target in mounts_below(&table, folder) {
        if let Err(error) = unmount(&target, UnmountFlags::DETACH) {
            tracing::warn!(path = %target.display(), error = %error, "unmount");
        }
    }
}

fn mounts_below(table: &[u8], folder: &Path) -> Vec<PathBuf> {
    let table = String::from_utf8_lossy(table);
    let targets = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut below: Vec<PathBuf> = targets.filter(|target| target.starts_with(folder)).collect();
    below.reverse();
    below
}

/// mountinfo writes blanks and backslashes as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let mut text = field.to_owned();
    for (escaped, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(escaped, plain);
    }
    PathBuf::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_mounted_below_latest_first() {
        let table = b"1 0 8:1 / / rw - ext4 /dev/sda rw\n\
            2 1 0:5 / /tmp/a\\040b rw - tmpfs t rw\n3 2 0:6 / /tmp/a\\040b/c rw - erofs e ro\n\
            4 1 0:7 / /tmp/a rw - tmpfs t rw\n";
        let below = mounts_below(table, Path::new("/tmp/a b"));
        assert_eq!(below, [PathBuf::from("/tmp/a b/c"), PathBuf::from("/tmp/a b")]);
    }

    #[tokio::test]
    async fn removes_its_folder_after_its_services() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(parent.path()).unwrap();
        let (path, file) = (scratch.path().to_owned(), scratch.path().join("late"));
        let (ended, end) = tokio::sync::oneshot::channel();
        scratch.tasks().spawn(async move {
            let _told: Result<(), _> = end.await;
            std::fs::write(file, "x").unwrap();
        });
        drop(ended);
        scratch.close().await;
        assert!(!path.exists());
    }
}
