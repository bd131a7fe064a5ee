//! Content by name: from memory, from disk, or from the store, verified before anyone sees it.
//!
//! One flight per name: whoever asks while it is being read waits for the same read. A request takes
//! a permit of its class before it may start or join a flight, so a started flight never waits in a
//! queue, and a demand that joins a background flight does not wait behind other downloads.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{FutureExt, Shared};
use image::Digest;
use proto::chunks_request::Priority;
use store::{ProjectStore, Put, Store, StoreError, verify};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::meters;
use crate::repair::{Image, Repairs};
use crate::tiers::{Kind, Name, Tier, Tiers};

/// Reads of disk and store at a time, by class. Each class has its own, so none takes another's.
const DEMANDS_MAX: usize = 64;
const PREFETCHES_MAX: usize = 32;
const BACKGROUNDS_MAX: usize = 16;
/// One read of the store, its own retries included.
const STORE_READ_MAX: Duration = Duration::from_secs(30);
/// How long a demand waits for a repair before it is told that the content is bad; the reader on the
/// node asks again.
const REPAIR_WAIT: Duration = Duration::from_secs(10);

/// Why content cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unserved {
    #[error("{0}")]
    Missing(String),
    #[error("{0}")]
    Corrupt(String),
    #[error("{0}")]
    Unavailable(String),
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    pub(crate) project: ProjectStore,
    /// What is repaired when content is bad.
    pub(crate) image: Image,
    pub(crate) class: Priority,
}

#[derive(Debug)]
pub(crate) struct Content {
    shelf: Arc<Shelf>,
    store: Store,
    repairs: Repairs,
    demands: Semaphore,
    prefetches: Semaphore,
    backgrounds: Semaphore,
    flights: Arc<Mutex<HashMap<Name, Flight>>>,
    tasks: TaskTracker,
}

/// What a flight works with.
#[derive(Debug)]
struct Shelf {
    tiers: Tiers,
    /// One chunk at a time is looked after in the store; what comes in between is left.
    healing: Arc<Semaphore>,
    tasks: TaskTracker,
}

type Outcome = Result<Bytes, Unserved>;
type Flight = Shared<oneshot::Receiver<Outcome>>;

/// Takes a flight off the list however it ends.
struct Landing {
    name: Name,
    flights: Arc<Mutex<HashMap<Name, Flight>>>,
}

impl Content {
    pub(crate) fn new(tiers: Tiers, store: Store, repairs: Repairs, tasks: TaskTracker) -> Content {
        let shelf = Shelf { tiers, healing: Arc::new(Semaphore::new(1)), tasks: tasks.clone() };
        Content {
            shelf: Arc::new(shelf),
            store,
            repairs,
            demands: Semaphore::new(DEMANDS_MAX),
            prefetches: Semaphore::new(PREFETCHES_MAX),
            backgrounds: Semaphore::new(BACKGROUNDS_MAX),
            flights: Arc::default(),
            tasks,
        }
    }

    pub(crate) fn project(&self, project: &str) -> Result<ProjectStore, StoreError> {
        self.store.project(project)
    }

    /// The stored bytes of `digest`, verified.
    pub(crate) async fn get(&self, reader: &Reader, kind: Kind, digest: Digest) -> Outcome {
        metrics::counter!(meters::REQUESTS, "kind" => kind.label()).increment(1);
        let name = Name { project: reader.project.name().into(), kind, digest };
        if let Some(stored) = self.shelf.tiers.memory(&name) {
            served("memory", &stored);
            return Ok(stored);
        }
        let outcome = match self.read(reader, &name).await {
            Err(Unserved::Missing(_) | Unserved::Corrupt(_)) => self.read_repaired(reader, &name).await,
            outcome => outcome,
        };
        if let Err(failure) = &outcome {
            let (kind, project) = (kind.label(), reader.project.name());
            metrics::counter!(meters::FAILED, "reason" => failure.label()).increment(1);
            tracing::warn!(project, kind, %digest, error = %failure, "content cannot be served");
        }
        outcome
    }

    /// Asks for a repair and reads again: after the repair when a process waits for the content, at
    /// once otherwise, as a download comes back later anyway.
    async fn read_repaired(&self, reader: &Reader, name: &Name) -> Outcome {
        if let (Some(mut ended), Priority::Demand) = (self.repairs.ask(&reader.image), reader.class) {
            let closed = async { while ended.changed().await.is_ok() {} };
            // Repaired or not, reading tells.
            let _ = tokio::time::timeout(REPAIR_WAIT, closed).await;
        }
        self.read(reader, name).await
    }

    async fn read(&self, reader: &Reader, name: &Name) -> Outcome {
        let permits = match reader.class {
            Priority::Demand => &self.demands,
            Priority::Prefetch => &self.prefetches,
            Priority::Background => &self.backgrounds,
        };
        let ended = || Unserved::Unavailable("the cache is ending".to_owned());
        let _permit = permits.acquire().await.map_err(|_| ended())?;
        self.flight(reader, name).await.unwrap_or_else(|_| Err(ended()))
    }

    /// The flight that reads `name`: the one under way, or a new one.
    fn flight(&self, reader: &Reader, name: &Name) -> Flight {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(name) {
            return flight.clone();
        }
        let (sender, receiver) = oneshot::channel();
        let flight = receiver.shared();
        flights.insert(name.clone(), flight.clone());
        let landing = Landing { name: name.clone(), flights: self.flights.clone() };
        let (shelf, project) = (self.shelf.clone(), reader.project.clone());
        self.tasks.spawn(async move {
            let outcome = shelf.obtain(&project, &landing.name).await;
            // First off the list: who comes now finds the content in memory, or tries anew.
            drop(landing);
            // Nobody may be waiting any more.
            let _ = sender.send(outcome);
        });
        flight
    }

    /// Reads those of these chunks that are kept here from the store again. What cannot be read stays as it was.
    pub(crate) async fn refresh(&self, project: &str, chunks: &[Digest]) {
        let Ok(store) = self.store.project(project) else { return };
        for digest in chunks {
            let name = Name { project: store.name().into(), kind: Kind::Chunk, digest: *digest };
            if !self.shelf.tiers.may_hold(&name) {
                continue;
            }
            let Ok(_permit) = self.backgrounds.acquire().await else { return };
            match self.shelf.fill(&store, &name).await {
                Ok(stored) => self.shelf.tiers.keep(&name, stored),
                Err(error) => tracing::debug!(chunk = %digest, %error, "a chunk stays as it is kept"),
            }
        }
    }

    pub(crate) async fn close(&self) {
        self.shelf.tiers.close().await;
    }
}

impl Shelf {
    async fn obtain(self: &Arc<Self>, project: &ProjectStore, name: &Name) -> Outcome {
        if let Some((stored, tier)) = self.tiers.get(name).await {
            match tier {
                Tier::Memory => served("memory", &stored),
                Tier::Disk => {
                    served("disk", &stored);
                    self.heal(project, name, &stored);
                }
            }
            return Ok(stored);
        }
        let started = Instant::now();
        let stored = self.fill(project, name).await?;
        metrics::histogram!(meters::FILL_SECONDS).record(started.elapsed());
        served("store", &stored);
        self.tiers.keep(name, stored.clone());
        Ok(stored)
    }

    async fn fill(&self, project: &ProjectStore, name: &Name) -> Outcome {
        let digest = name.digest;
        let read = async {
            match name.kind {
                Kind::Chunk => project.chunk(digest).await,
                Kind::Index(index) => project.index(index, digest).await,
            }
        };
        let stored = match tokio::time::timeout(STORE_READ_MAX, read).await {
            Ok(Ok(stored)) => stored,
            Ok(Err(error)) if error.is_not_found() => return Err(Unserved::Missing(error.to_string())),
            Ok(Err(error)) => return Err(Unserved::Unavailable(error.to_string())),
            Err(_) => {
                let late = format!("reading {digest}: the store did not answer within {STORE_READ_MAX:?}");
                return Err(Unserved::Unavailable(late));
            }
        };
        let (bytes, kind) = (stored.clone(), name.kind);
        // Inflating and hashing a large index takes long enough to hold up other requests.
        let verified = tokio::task::spawn_blocking(move || match kind {
            Kind::Chunk => verify::open_chunk(&digest, &bytes).map(drop),
            Kind::Index(_) => verify::open_index(&digest, &bytes).map(drop),
        });
        match verified.await {
            Ok(Ok(())) => Ok(stored),
            Ok(Err(corrupt)) => {
                metrics::counter!(meters::CORRUPT, "place" => "store").increment(1);
                Err(Unserved::Corrupt(corrupt.to_string()))
            }
            Err(_) => Err(Unserved::Unavailable(format!("verifying {digest} was broken off"))),
        }
    }

    /// Writes a chunk back that only the disk tier still has. Looked after now and then, not for
    /// every chunk: it costs a request to the store.
    fn heal(self: &Arc<Self>, project: &ProjectStore, name: &Name, stored: &Bytes) {
        let Ok(turn) = self.healing.clone().try_acquire_owned() else { return };
        let (project, digest, stored) = (project.clone(), name.digest, stored.clone());
        self.tasks.spawn(async move {
            let lost = matches!(project.has_chunk(digest).await, Ok(false));
            if lost && matches!(project.put_chunk(digest, stored).await, Ok(Put::Written)) {
                metrics::counter!(meters::HEALED).increment(1);
                tracing::warn!(project = project.name(), chunk = %digest, "wrote a lost chunk back");
            }
            drop(turn);
        });
    }
}

impl Unserved {
    fn label(&self) -> &'static str {
        match self {
            Unserved::Missing(_) => "missing",
            Unserved::Corrupt(_) => "corrupt",
            Unserved::Unavailable(_) => "unavailable",
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        lock(&self.flights).remove(&self.name);
    }
}

fn served(tier: &'static str, stored: &Bytes) {
    metrics::counter!(meters::SERVED, "tier" => tier).increment(1);
    metrics::counter!(meters::SERVED_BYTES).increment(stored.len() as u64);
}

fn lock(flights: &Mutex<HashMap<Name, Flight>>) -> MutexGuard<'_, HashMap<Name, Flight>> {
    flights.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
