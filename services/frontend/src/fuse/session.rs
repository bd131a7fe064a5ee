//! The connection to the kernel: opens `/dev/fuse`, mounts, runs the threads that answer.
//!
//! Concurrency: the threads end by themselves when the last user of the file system is gone. Overlays
//! keep their own hold on it, so detaching the mount point takes nothing from a running container.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::Context as _;
use fuser::SessionACL;
use rustix::mount::{MountFlags, UnmountFlags};

use super::Remote;
use crate::mount::table;

/// Two decode and answer metadata: one may be in a copy to the kernel while the other goes on.
const THREADS: usize = 2;
/// The most that one read asks for, in bytes: a page fault waits for its own piece of the read-ahead, not for all.
const READ_MAX: u32 = 128 * 1024;

#[derive(Debug)]
pub(crate) struct Session {
    point: PathBuf,
}

impl Session {
    /// Mounts `remote` at the folder `point` and answers there until nobody uses it.
    pub(crate) fn start(remote: Remote, point: &Path, read_ahead: u64) -> anyhow::Result<Session> {
        let device =
            OpenOptions::new().read(true).write(true).open("/dev/fuse").context("cannot open /dev/fuse")?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,max_read={READ_MAX}",
            device.as_raw_fd()
        );
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
        let options = CString::new(options).context("mount options")?;
        rustix::mount::mount("sluice", point, "fuse.sluice", flags, options.as_c_str())
            .with_context(|| format!("cannot mount the remote objects at {}", point.display()))?;
        let session = Session { point: point.to_owned() };
        let mut config = fuser::Config::default();
        config.n_threads = Some(THREADS);
        let serving = fuser::Session::from_fd(remote, OwnedFd::from(device), SessionACL::All, config)
            .context("the kernel's fuse did not shake hands")?;
        thread::Builder::new()
            .name("fuse".to_owned())
            .spawn(move || {
                if let Err(error) = serving.run() {
                    tracing::error!(%error, "the file system of remote objects ended");
                }
            })
            .context("cannot start the thread of the remote objects")?;
        session.set_read_ahead(read_ahead);
        Ok(session)
    }

    /// Takes the mount point away. Overlays that use the file system go on.
    pub(crate) fn detach(&self) -> std::io::Result<()> {
        Ok(rustix::mount::unmount(&self.point, UnmountFlags::DETACH)?)
    }

    /// The kernel's own default stays when it cannot be set: slower or less exact, never wrong.
    fn set_read_ahead(&self, bytes: u64) {
        let set = || -> anyhow::Result<()> {
            let table = table::read()?;
            let entry = table
                .iter()
                .rev()
                .find(|entry| entry.point == self.point)
                .context("not in the mount table")?;
            let setting = format!("/sys/class/bdi/{}/read_ahead_kb", entry.device);
            fs::write(&setting, (bytes / 1024).to_string()).with_context(|| format!("cannot write {setting}"))
        };
        if let Err(error) = set() {
            tracing::warn!(
                error = format!("{error:#}"),
                "the read-ahead of remote objects stays the kernel's default"
            );
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            tracing::debug!(point = %self.point.display(), %error, "the remote objects were not mounted any more");
        }
    }
}
