//! The connection to the kernel: opens `/dev/fuse` and mounts, or goes on with what the process before had;
//! runs the threads that answer.
//!
//! Concurrency: the threads end by themselves when the last user of the file system is gone. Overlays
//! keep their own hold on it, so detaching the mount point takes nothing from a running container.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::Context as _;
use fuser::SessionACL;
use rustix::mount::{MountFlags, UnmountFlags};

use super::holder::Keeper;
use super::{PROBE_NAME, Remote, takeover};
use crate::descriptors::{Descriptors, Name};
use crate::mount::table;

/// Two decode and answer metadata: one may be in a copy to the kernel while the other goes on.
const THREADS: usize = 2;
/// The most that one read asks for, in bytes: a page fault waits for its own piece of the read-ahead, not for all.
const READ_MAX: u32 = 128 * 1024;

/// Where the connection is kept for the next process: with `descriptors`, and, where nobody else is named, in a process of our own
/// that is found in the folder `state`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hold<'a> {
    pub(crate) descriptors: &'a Descriptors,
    pub(crate) state: &'a Path,
}

/// The mount point, and what keeps the connection alive.
#[derive(Debug)]
pub(crate) struct Session {
    point: PathBuf,
    _keeper: Option<Keeper>,
    stays: bool,
}

/// The other half: answers, once it is told to.
#[derive(Debug)]
pub(crate) struct Serving {
    session: fuser::Session<Remote>,
    point: PathBuf,
}

impl Session {
    /// Mounts `remote` at the folder `point`. `hold`: who keeps the connection for the next process; absent: nobody does.
    pub(crate) fn start(
        remote: Remote,
        point: &Path,
        read_ahead: u64,
        hold: Option<Hold<'_>>,
    ) -> anyhow::Result<(Session, Serving)> {
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
        // From here on a drop takes the mount away again.
        let mut session = Session { point: point.to_owned(), _keeper: None, stays: false };
        let device = OwnedFd::from(device);
        let kept = device.try_clone().context("cannot duplicate /dev/fuse")?;
        let serving = fuser::Session::from_fd(remote, device, SessionACL::All, threads())
            .context("the kernel's fuse did not shake hands")?;
        session.set_read_ahead(read_ahead);
        session._keeper = keep(hold, kept, Keeper::start)?;
        Ok((session, Serving { session: serving, point: point.to_owned() }))
    }

    /// Goes on where the process before ended: `remote` stands at `point`, and its connection is `device`. Containers read
    /// through it: until [`Session::stay`] says otherwise it outlives this process, also one that fails to start.
    pub(crate) fn resume(
        remote: Remote,
        point: &Path,
        device: OwnedFd,
        hold: Hold<'_>,
    ) -> anyhow::Result<(Session, Serving)> {
        let kept = device.try_clone().context("cannot duplicate the kept connection")?;
        let serving = takeover::resume(remote, device, SessionACL::All, threads())
            .context("cannot go on with the kept connection")?;
        let keeper = keep(Some(hold), kept, Keeper::resume)?;
        let session = Session { point: point.to_owned(), _keeper: keeper, stays: true };
        Ok((session, Serving { session: serving, point: point.to_owned() }))
    }

    /// Whether the mount is left where it is when this is dropped: the next process goes on with it.
    pub(crate) fn stay(&mut self, stays: bool) {
        self.stays = stays;
    }

    /// Takes the mount point away. Overlays that use the file system go on.
    pub(crate) fn detach(&self) -> io::Result<()> {
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

impl Serving {
    /// Answers until nobody uses the file system any more; then tells that it `ended`.
    pub(crate) fn go(self, ended: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
        let (session, probe) = (self.session, self.point.join(PROBE_NAME));
        let run = move || {
            if let Err(error) = session.run() {
                tracing::error!(%error, "the file system of remote objects ended");
            }
            ended();
        };
        let start = |name: &str| thread::Builder::new().name(name.to_owned());
        start("fuse").spawn(run).context("cannot start the thread of the remote objects")?;
        start("probe").spawn(move || teach(&probe)).context("cannot start the thread of the probe")?;
        Ok(())
    }
}

/// Opens and closes a file once, for the kernel to learn that it need not tell us of either. Until then who closes a file
/// while nobody answers waits for an answer, and cannot be killed: a process that ends, even one that is to become the next frontend.
fn teach(probe: &Path) {
    if let Err(error) = fs::File::open(probe) {
        tracing::warn!(%error, "the kernel goes on asking about every file that is opened and closed");
    }
}

fn threads() -> fuser::Config {
    let mut config = fuser::Config::default();
    config.n_threads = Some(THREADS);
    config
}

fn keep(
    hold: Option<Hold<'_>>,
    device: OwnedFd,
    keeper: fn(&Path, OwnedFd) -> io::Result<Keeper>,
) -> anyhow::Result<Option<Keeper>> {
    let Some(Hold { descriptors, state }) = hold else { return Ok(None) };
    if let Err(error) = descriptors.put(Name::FuseConnection, &device) {
        tracing::warn!(%error, "systemd does not store the kernel's connection");
    }
    if descriptors.have_a_holder() {
        return Ok(None);
    }
    keeper(state, device).map(Some).context("cannot start the holder of the kernel's connection")
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        if let Err(error) = self.detach() {
            tracing::debug!(point = %self.point.display(), %error, "the remote objects were not mounted any more");
        }
    }
}
