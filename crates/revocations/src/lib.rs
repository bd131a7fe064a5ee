//! What was given and counts no more: grants of a node, of an image, of a project.
//!
//! ```text
//! operator --revoke--> fetcher --> store (signed)          read by all, every LOOK_EVERY
//!                             \--> told on the bus          heard by all, at once
//! ```
//!
//! Each change has a number, the epoch, and each grant the epoch in which it was given; so a revocation says "grants before this one", and
//! no clock is compared. The store keeps the list: a cache that was away, or whose bus is, knows it within [`LOOK_EVERY`]. Until it
//! was read once, nothing is admitted: nobody knows what counts.
//!
//! Whoever can write to the store could put an older list back, signed as it is. So the mesh remembers the epoch in a table on the bus,
//! which fetchers alone write ([`floor`]): a list below it is refused, also by who has just started.

mod floor;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bus::Bus;
use floor::Floor;
pub use floor::KNOWN;
use futures::StreamExt as _;
use prost::Message as _;
use proto::revocation::Scope;
use proto::signed::{Domain, TrustedKeys};
use proto::subjects::REVOCATIONS;
use proto::{Grant, Refusal, Revocation, Revocations as List, Role, Signed};
use store::Store;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

/// How old the list may be where nobody told of a change.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// After the store did not answer.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// One read of the store.
const READ_MAX: Duration = Duration::from_secs(10);
/// How long what begins waits for the first read; it goes on, and admits nothing, when that fails.
const FIRST_MAX: Duration = Duration::from_secs(5);
/// Before what is told is listened for again.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);
/// Of entries; images and projects leave the list when no grant can be as old.
pub const ENTRIES_MAX: usize = 10_000;
/// The list, in bytes: more than [`ENTRIES_MAX`] entries take.
const BYTES_MAX: usize = 8 * 1024 * 1024;

/// The epoch that this process knows of.
const EPOCH: &str = "sluice_revocation_epoch";
/// Grants that were refused since they were revoked, by scope.
const REFUSED: &str = "sluice_revoked_grants_refused_total";

/// The list as this process knows it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Revocations {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    trusted: TrustedKeys,
    /// Where the mesh remembers the epoch; none for who follows nothing.
    floor: Option<Floor>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// None: the list was not read so far, or is an older one.
    known: Option<Known>,
    /// The epoch that the mesh remembers.
    floor: u64,
    /// Of the list in the store, while that is older than the mesh remembers.
    older: Option<u64>,
}

#[derive(Debug, Default)]
struct Known {
    list: List,
    /// By scope, project and name.
    index: HashMap<(i32, String, String), u64>,
}

/// Why a grant does not count, or nobody knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("what was revoked is not known yet: the store has not answered")]
    Unknown,
    #[error(
        "the store's list of what was revoked is of epoch {0}, and the mesh knows of {1}: somebody put an older one back, and no grant \
         counts; if the store was restored from a backup, `sluice revoke restored` accepts it"
    )]
    Older(u64, u64),
    #[error("node {0:?} was revoked")]
    Node(String),
    #[error("grants for {0} that are as old were revoked: pull the image again")]
    Image(String),
    #[error("grants of project {0:?} that are as old were revoked: pull the image again")]
    Project(String),
}

impl Revocations {
    /// Reads the list, and follows it until `shutdown`. `of`: fetchers also see to it that the mesh remembers the epoch.
    pub async fn follow(
        (store, trusted): (Store, TrustedKeys),
        bus: Bus,
        of: Role,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> Revocations {
        let floor = Some(Floor::new(&bus, of));
        let state = Mutex::default();
        let revocations = Revocations { shared: Arc::new(Shared { store, trusted, floor, state }) };
        revocations.follow_floor(tasks, &shutdown).await;
        let first = tokio::time::timeout(FIRST_MAX, revocations.look()).await;
        if !matches!(first, Ok(Ok(()))) {
            tracing::warn!("what was revoked cannot be read: no grant counts until it is");
        }
        revocations.remember().await;
        let (looking, listening) = (revocations.clone(), revocations.clone());
        let stop = shutdown.clone();
        tasks.spawn(async move { stop.run_until_cancelled(Box::pin(looking.look_again())).await });
        tasks.spawn(async move { shutdown.run_until_cancelled(listening.listen(&bus)).await });
        revocations
    }

    /// A list that nobody reads, for who gives nothing and admits nothing.
    pub fn unknown(store: Store, trusted: TrustedKeys) -> Revocations {
        Revocations { shared: Arc::new(Shared { store, trusted, floor: None, state: Mutex::default() }) }
    }

    /// Whether a grant still counts. Not whether it has expired.
    pub fn admit(&self, grant: &Grant) -> Result<(), Refused> {
        let refused = {
            let state = self.shared.state();
            match (&state.known, state.older) {
                (Some(known), _) => known.refuses(grant),
                (None, Some(older)) => Some(Refused::Older(older, state.floor)),
                (None, None) => Some(Refused::Unknown),
            }
        };
        let Some(refused) = refused else { return Ok(()) };
        metrics::counter!(REFUSED, "scope" => refused.label()).increment(1);
        Err(refused)
    }

    /// Whether a node may be given anything.
    pub fn admit_node(&self, project: &str, node: &str) -> Result<(), Refused> {
        let grant =
            Grant { project: project.to_owned(), node: node.to_owned(), epoch: u64::MAX, ..Grant::default() };
        self.admit(&grant)
    }

    /// For grants that are given now.
    pub fn epoch(&self) -> u64 {
        self.shared.state().known.as_ref().map_or(0, |known| known.list.epoch)
    }

    /// The list with one more entry, or one less; whoever signs it hands it to [`Revocations::keep`]. Under a lease: of two who change it at
    /// once one would be lost. `forget_before`: images and projects that were revoked earlier concern no grant any more.
    pub async fn changed(
        &self,
        entry: Revocation,
        undo: bool,
        now_unix: u64,
        forget_before: u64,
    ) -> Result<List, Status> {
        check(&entry, undo)?;
        self.look().await?;
        let mut list = {
            let state = self.shared.state();
            if let Some(older) = state.older.filter(|_| state.known.is_none()) {
                return Err(Status::failed_precondition(Refused::Older(older, state.floor).to_string()));
            }
            state.known.as_ref().map(|known| known.list.clone()).unwrap_or_default()
        };
        let key = key(&entry);
        list.epoch += 1;
        list.entries.retain(|known| {
            let old = known.scope() != Scope::Node && known.at_unix < forget_before;
            self::key(known) != key && !old
        });
        if !undo {
            list.entries.push(Revocation { epoch: list.epoch, at_unix: now_unix, ..entry });
        }
        match list.entries.len() > ENTRIES_MAX {
            true => Err(Status::resource_exhausted(format!(
                "{ENTRIES_MAX} revocations stand: undo those of nodes that are gone"
            ))),
            false => Ok(list),
        }
    }

    /// Keeps a list that was signed, and tells everybody. The mesh remembers its epoch once it can be read.
    pub async fn keep(&self, signed: &Signed, bus: &Bus) -> Result<(), Status> {
        self.shared.believe(signed)?;
        self.shared.store.put_revocations(signed.encode_to_vec().into()).await?;
        self.remember().await;
        // Who does not hear it reads it soon.
        bus.teller(REVOCATIONS).tell(signed);
        Ok(())
    }

    async fn look(&self) -> Result<(), Status> {
        let list = self.stored().await?;
        self.shared.take(list);
        Ok(())
    }

    /// As it stands in the store, whatever the mesh remembers.
    async fn stored(&self) -> Result<List, Status> {
        let read = tokio::time::timeout(READ_MAX, self.shared.store.revocations()).await;
        let read = read.map_err(|_| Status::unavailable("the store did not answer in time"))?;
        let Some(bytes) = read? else { return Ok(List::default()) };
        if bytes.len() > BYTES_MAX {
            return Err(Status::data_loss("the list of revocations is too large"));
        }
        let signed = Signed::decode(bytes)
            .map_err(|error| Status::data_loss(format!("the list of revocations cannot be read: {error}")))?;
        self.shared.opened(&signed)
    }

    async fn look_again(&self) {
        loop {
            let pause = match self.shared.state().known.is_some() {
                true => LOOK_EVERY,
                false => LOOK_AGAIN,
            };
            tokio::time::sleep(pause).await;
            if let Err(status) = self.look().await {
                tracing::warn!(error = status.message(), "what was revoked cannot be read");
            }
            self.remember().await;
        }
    }

    async fn listen(&self, bus: &Bus) {
        loop {
            match bus.listen_to::<Signed>(REVOCATIONS).await {
                Ok(mut told) => {
                    while let Some(signed) = told.next().await {
                        if let Err(status) = self.shared.believe(&signed) {
                            tracing::warn!(
                                error = status.message(),
                                "a told list of revocations is not believed"
                            );
                        }
                    }
                }
                Err(error) => tracing::debug!(%error, "revocations cannot be listened for"),
            }
            tokio::time::sleep(LISTEN_AGAIN).await;
        }
    }
}

impl Shared {
    fn believe(&self, signed: &Signed) -> Result<(), Status> {
        self.take(self.opened(signed)?);
        Ok(())
    }

    fn opened(&self, signed: &Signed) -> Result<List, Status> {
        let refused = |error: String| {
            Status::permission_denied(format!("the list of revocations is not to be trusted: {error}"))
        };
        let payload =
            self.trusted.verify(Domain::Revocations, signed).map_err(|error| refused(error.to_string()))?;
        List::decode(payload).map_err(|error| refused(error.to_string()))
    }

    /// An older list than the one that is known is of no use: it is late, or somebody put it back.
    fn take(&self, list: List) {
        let mut state = self.state();
        let known = state.known.as_ref().map(|known| known.list.epoch);
        if list.epoch < state.floor {
            if known.is_none_or(|known| known < state.floor) {
                let (older, floor) = (list.epoch, state.floor);
                if state.older.replace(older) != Some(older) {
                    tracing::error!(older, floor, "{}", Refused::Older(older, floor));
                }
                state.known = None;
            }
            return;
        }
        if known.is_some_and(|known| known > list.epoch) {
            return;
        }
        metrics::gauge!(EPOCH).set(list.epoch as f64);
        let index = list.entries.iter().map(|entry| (key(entry), entry.epoch)).collect();
        (state.known, state.older) = (Some(Known { list, index }), None);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What is known is replaced as a whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn refuses(&self, grant: &Grant) -> Option<Refused> {
        let Grant { project, node, manifest_digest, epoch, .. } = grant;
        let at = |scope: Scope, project: &str, name: &str| {
            self.index.get(&(scope.into(), project.to_owned(), name.to_owned())).copied()
        };
        if self.index.is_empty() {
            return None;
        }
        if at(Scope::Node, project, node).or_else(|| at(Scope::Node, "", node)).is_some() {
            return Some(Refused::Node(node.clone()));
        }
        if at(Scope::Image, project, manifest_digest).is_some_and(|since| *epoch < since) {
            return Some(Refused::Image(manifest_digest.clone()));
        }
        at(Scope::Project, project, "")
            .is_some_and(|since| *epoch < since)
            .then(|| Refused::Project(project.clone()))
    }
}

impl Refused {
    fn label(&self) -> &'static str {
        match self {
            Refused::Unknown => "unknown",
            Refused::Older(..) => "older",
            Refused::Node(_) => "node",
            Refused::Image(_) => "image",
            Refused::Project(_) => "project",
        }
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Status {
        match refused {
            Refused::Unknown | Refused::Older(..) => Refusal::Unreachable.status(refused.to_string()),
            _ => Refusal::Denied.status(refused.to_string()),
        }
    }
}

fn key(entry: &Revocation) -> (i32, String, String) {
    (entry.scope, entry.project.clone(), entry.name.clone())
}

fn check(entry: &Revocation, undo: bool) -> Result<(), Status> {
    let good = match entry.scope() {
        Scope::Unspecified => false,
        Scope::Node => !entry.name.is_empty(),
        Scope::Image => !entry.name.is_empty() && !entry.project.is_empty() && !undo,
        Scope::Project => entry.name.is_empty() && !entry.project.is_empty() && !undo,
    };
    match good {
        true => Ok(()),
        false => Err(Status::invalid_argument(
            "revoke: a node, an image of a project, or a project; only a node's revocation can be undone",
        )),
    }
}
