//! Tells when the mount table changes, so that a root that somebody unmounted is noticed.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::Notify;

use super::table;

/// How long the watching thread outlives the watch at most.
const LINGER: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// A wait on the mount table. The kernel flags the open file whenever a mount comes or goes; a thread waits
/// for that, since nothing else than `poll` can.
#[derive(Debug)]
pub(crate) struct Watch {
    changed: Arc<Notify>,
}

impl Watch {
    pub(crate) fn start() -> io::Result<Watch> {
        let table = File::open(table::PATH)?;
        let changed = Arc::new(Notify::new());
        let watched = Arc::downgrade(&changed);
        thread::Builder::new().name("mount-table".to_owned()).spawn(move || {
            while watched.strong_count() > 0 {
                // An interruption or the end of the wait is no change, and a needless look does no harm.
                if let Ok(1..) = poll(&mut [PollFd::new(&table, PollFlags::PRI)], Some(&LINGER))
                    && let Some(changed) = watched.upgrade()
                {
                    changed.notify_one();
                }
            }
        })?;
        Ok(Watch { changed })
    }

    /// Returns after a change since the last call; changes in between count once.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}
