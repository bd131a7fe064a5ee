//! A name that one holder in the mesh has at a time.

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::in_process::Held;

/// A lease that is held. It is renewed until it is dropped, which gives it back.
#[derive(Debug)]
pub struct Lease {
    lost: CancellationToken,
    hold: Hold,
}

#[derive(Debug)]
enum Hold {
    InProcess(Held),
    Nats { release: DropGuard, keeper: JoinHandle<()> },
}

impl Lease {
    pub(crate) fn in_process(held: Held) -> Lease {
        Lease { lost: CancellationToken::new(), hold: Hold::InProcess(held) }
    }

    pub(crate) fn nats(lost: CancellationToken, release: CancellationToken, keeper: JoinHandle<()>) -> Lease {
        Lease { lost, hold: Hold::Nats { release: release.drop_guard(), keeper } }
    }

    /// Cancelled when the lease could not be renewed in time: somebody else may hold it now, and
    /// work that must not run twice has to stop. In one process this never happens.
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// Gives the lease back, and returns when others can take it.
    pub async fn release(self) {
        match self.hold {
            Hold::InProcess(held) => drop(held),
            Hold::Nats { release, keeper } => {
                drop(release);
                // It ends within one request's deadline, and cannot panic.
                let _ = keeper.await;
            }
        }
    }
}
