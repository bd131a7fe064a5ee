//! The epoch that the mesh remembers beside the store.
//!
//! A table on the bus keeps it: NATS is not the store, fetchers alone may write there, and every service can read it, also one that has
//! no disk of its own and has just started. While it cannot be read, as NATS is away, the store's word counts; what is known of
//! it later still refuses an older list. Without a mesh there is no such memory: whoever can write to the store of one machine is its owner.

use std::sync::Arc;
use std::time::Duration;

use bus::{Bus, Change, Entry, Table};
use futures::StreamExt as _;
use lifecycle::Probe;
use proto::{Revocations as List, Role};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};

use crate::{Refused, Revocations};

const TABLE: &str = "revocations";
const KEY: &str = "epoch";
/// How long what begins waits for the table.
const FIRST_MAX: Duration = Duration::from_secs(3);
/// How often it is written again when another fetcher was faster: each of them has made it larger.
const WRITES_MAX: usize = 8;

#[derive(Debug)]
pub(crate) struct Floor {
    table: Table,
    writes: bool,
    settled: watch::Sender<bool>,
}

/// Whether it is known what counts.
pub const KNOWN: Probe = Probe {
    what: "revocations",
    gauge: "sluice_revocations_known",
    every: Duration::from_secs(1),
    within: Duration::from_secs(5),
};

impl Floor {
    pub(crate) fn new(bus: &Bus, of: Role) -> Floor {
        let writes = of == Role::Fetcher;
        let table = if writes { bus.table(TABLE) } else { bus.table_to_read(TABLE) };
        Floor { table, writes, settled: watch::Sender::new(false) }
    }

    /// Never less than what stands there.
    async fn raise(&self, epoch: u64) -> Result<(), Status> {
        for _ in 0..WRITES_MAX {
            let entry = self.table.get(KEY).await?;
            if entry.as_ref().and_then(read).is_some_and(|known| known >= epoch) {
                return Ok(());
            }
            let over = entry.map_or(0, |entry| entry.revision);
            match self.table.update(KEY, epoch.to_string().into(), over).await {
                Err(status) if status.code() == Code::Aborted => {}
                written => return written.map(drop),
            }
        }
        Err(Status::aborted("others change it all the time"))
    }
}

impl Revocations {
    /// Until `shutdown`; returns once it was read, or cannot be for now.
    pub(crate) async fn follow_floor(&self, tasks: &TaskTracker, shutdown: &CancellationToken) {
        let Some(floor) = &self.shared.floor else { return };
        let mut changes = floor.table.watch();
        let (revocations, stop) = (self.clone(), shutdown.clone());
        tasks.spawn(stop.run_until_cancelled_owned(async move {
            while let Some(change) = changes.next().await {
                match change {
                    Change::Put(entry) if entry.key == KEY => match read(&entry) {
                        Some(epoch) => revocations.rise(epoch).await,
                        None => tracing::error!("the epoch that the mesh remembers is no number"),
                    },
                    Change::Settled => revocations.settle(),
                    // Whoever may delete it may as well write another one: what is known stays.
                    Change::Put(_) | Change::Deleted(_) => {}
                }
            }
        }));
        let mut settled = floor.settled.subscribe();
        let first = tokio::time::timeout(FIRST_MAX, settled.wait_for(|settled| *settled)).await;
        if first.is_err() {
            tracing::warn!(
                "the epoch of revocations that the mesh remembers cannot be read: the store's word counts until it is"
            );
        }
    }

    fn settle(&self) {
        if let Some(floor) = &self.shared.floor {
            floor.settled.send_replace(true);
        }
    }

    /// The mesh has a newer list than this process: it stands in the store before the mesh remembers it.
    async fn rise(&self, epoch: u64) {
        let behind = {
            let mut state = self.shared.state();
            state.floor = state.floor.max(epoch);
            state.known.as_ref().is_some_and(|known| known.list.epoch < state.floor)
        };
        if behind && let Err(status) = self.look().await {
            tracing::warn!(error = status.message(), "what was revoked cannot be read");
        }
    }

    /// Has the mesh remember what this fetcher knows.
    pub(crate) async fn remember(&self) {
        let Some(floor) = self.shared.floor.as_ref().filter(|floor| floor.writes) else { return };
        let epoch = self.epoch();
        if epoch == 0 || self.shared.state().floor >= epoch {
            return;
        }
        match tokio::time::timeout(FIRST_MAX, floor.raise(epoch)).await {
            Ok(Ok(())) => {
                let mut state = self.shared.state();
                state.floor = state.floor.max(epoch);
            }
            Ok(Err(status)) => tracing::error!(epoch, error = status.message(), "{NOT_REMEMBERED}"),
            Err(_) => tracing::error!(epoch, error = "no answer in time", "{NOT_REMEMBERED}"),
        }
    }

    /// The store's list as it stands, to be signed as the newest one: the store was restored from a backup, and its operator says so.
    pub async fn restored(&self) -> Result<List, Status> {
        let mut list = self.stored().await?;
        let state = self.shared.state();
        let floor = state.floor;
        if list.epoch >= floor {
            return Err(Status::failed_precondition(
                "the store's list of revocations is not older than the mesh knows",
            ));
        }
        // What this process read before the store went back is more than the store says.
        if let Some(known) = state.known.as_ref().filter(|known| known.list.epoch > list.epoch) {
            list = known.list.clone();
        }
        list.epoch = floor + 1;
        Ok(list)
    }

    /// Why no grant counts, for who asks whether this process can work.
    pub fn probe(&self) -> impl Fn() -> std::future::Ready<Result<(), String>> + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || {
            let state = shared.state();
            std::future::ready(match (&state.known, state.older) {
                (Some(_), _) => Ok(()),
                (None, Some(older)) => Err(Refused::Older(older, state.floor).to_string()),
                (None, None) => Err(Refused::Unknown.to_string()),
            })
        }
    }
}

const NOT_REMEMBERED: &str = "the mesh does not remember the epoch of revocations: until the next one an older list would count after a restart";

fn read(entry: &Entry) -> Option<u64> {
    std::str::from_utf8(&entry.value).ok()?.parse().ok()
}
