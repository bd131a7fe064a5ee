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

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bus::Bus;
use futures::StreamExt as _;
use prost::Message as _;
use proto::revocation::Scope;
use proto::signed::{Domain, TrustedKeys};
use proto::subjects::REVOCATIONS;
use proto::{Grant, Refusal, Revocation, Revocations as List, Signed};
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
    known: Mutex<Option<Known>>,
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
    #[error("node {0:?} was revoked")]
    Node(String),
    #[error("grants for {0} that are as old were revoked: pull the image again")]
    Image(String),
    #[error("grants of project {0:?} that are as old were revoked: pull the image again")]
    Project(String),
}

impl Revocations {
    /// Reads the list, and follows it until `shutdown`.
    pub async fn follow(
        store: Store,
        bus: Bus,
        trusted: TrustedKeys,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> Revocations {
        let revocations = Revocations::unknown(store, trusted);
        let first = tokio::time::timeout(FIRST_MAX, revocations.look()).await;
        if !matches!(first, Ok(Ok(()))) {
            tracing::warn!("what was revoked cannot be read: no grant counts until it is");
        }
        let (looking, listening) = (revocations.clone(), revocations.clone());
        let stop = shutdown.clone();
        tasks.spawn(async move { stop.run_until_cancelled(looking.look_again()).await });
        tasks.spawn(async move { shutdown.run_until_cancelled(listening.listen(&bus)).await });
        revocations
    }

    /// A list that nobody reads, for who gives nothing and admits nothing.
    pub fn unknown(store: Store, trusted: TrustedKeys) -> Revocations {
        Revocations { shared: Arc::new(Shared { store, trusted, known: Mutex::default() }) }
    }

    /// Whether a grant still counts. Not whether it has expired.
    pub fn admit(&self, grant: &Grant) -> Result<(), Refused> {
        let refused = match &*self.shared.known() {
            None => Some(Refused::Unknown),
            Some(known) => known.refuses(grant),
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
        self.shared.known().as_ref().map_or(0, |known| known.list.epoch)
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
        let mut list = self.shared.known().as_ref().map(|known| known.list.clone()).unwrap_or_default();
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

    /// Keeps a list that was signed, and tells everybody.
    pub async fn keep(&self, signed: &Signed, bus: &Bus) -> Result<(), Status> {
        self.shared.believe(signed)?;
        self.shared.store.put_revocations(signed.encode_to_vec().into()).await?;
        // Who does not hear it reads it soon.
        bus.teller(REVOCATIONS).tell(signed);
        Ok(())
    }

    async fn look(&self) -> Result<(), Status> {
        let read = tokio::time::timeout(READ_MAX, self.shared.store.revocations()).await;
        let read = read.map_err(|_| Status::unavailable("the store did not answer in time"))?;
        match read? {
            None => self.shared.take(List::default()),
            Some(bytes) => {
                if bytes.len() > BYTES_MAX {
                    return Err(Status::data_loss("the list of revocations is too large"));
                }
                let signed = Signed::decode(bytes).map_err(|error| {
                    Status::data_loss(format!("the list of revocations cannot be read: {error}"))
                })?;
                self.shared.believe(&signed)?;
            }
        }
        Ok(())
    }

    async fn look_again(&self) {
        loop {
            let pause = match self.shared.known().is_some() {
                true => LOOK_EVERY,
                false => LOOK_AGAIN,
            };
            tokio::time::sleep(pause).await;
            if let Err(status) = self.look().await {
                tracing::warn!(error = status.message(), "what was revoked cannot be read");
            }
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
        let refused = |error: String| {
            Status::permission_denied(format!("the list of revocations is not to be trusted: {error}"))
        };
        let payload =
            self.trusted.verify(Domain::Revocations, signed).map_err(|error| refused(error.to_string()))?;
        self.take(List::decode(payload).map_err(|error| refused(error.to_string()))?);
        Ok(())
    }

    /// An older list than the one that is known is of no use: it is late, or somebody put it back.
    fn take(&self, list: List) {
        let mut known = self.known();
        if known.as_ref().is_some_and(|known| known.list.epoch > list.epoch) {
            return;
        }
        metrics::gauge!(EPOCH).set(list.epoch as f64);
        let index = list.entries.iter().map(|entry| (key(entry), entry.epoch)).collect();
        *known = Some(Known { list, index });
    }

    fn known(&self) -> MutexGuard<'_, Option<Known>> {
        // It is replaced as a whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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
            Refused::Node(_) => "node",
            Refused::Image(_) => "image",
            Refused::Project(_) => "project",
        }
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Status {
        match refused {
            Refused::Unknown => Refusal::Unreachable.status(refused.to_string()),
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use ed25519_dalek::SigningKey;
    use proto::signed::sign;

    use super::*;

    fn grant(node: &str, image: &str, epoch: u64) -> Grant {
        Grant {
            project: "p".to_owned(),
            node: node.to_owned(),
            manifest_digest: image.to_owned(),
            epoch,
            ..Grant::default()
        }
    }

    fn entry(scope: Scope, project: &str, name: &str) -> Revocation {
        Revocation {
            scope: scope.into(),
            project: project.to_owned(),
            name: name.to_owned(),
            ..Revocation::default()
        }
    }

    struct Site {
        _folder: tempfile::TempDir,
        store: Store,
        bus: Bus,
        key: SigningKey,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    }

    impl Site {
        fn new() -> Site {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path().to_str().unwrap(), &HashMap::new()).unwrap();
            let key = SigningKey::from_bytes(&[1; 32]);
            let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
            Site { _folder: folder, store, bus: Bus::in_process(), key, tasks, shutdown }
        }

        async fn follow(&self) -> Revocations {
            let trusted = vec![self.key.verifying_key()].into();
            Revocations::follow(
                self.store.clone(),
                self.bus.clone(),
                trusted,
                &self.tasks,
                self.shutdown.clone(),
            )
            .await
        }

        async fn revoke(&self, at: &Revocations, entry: Revocation, undo: bool) {
            let list = at.changed(entry, undo, 1_000, 0).await.unwrap();
            at.keep(&sign(&self.key, Domain::Revocations, list.encode_to_vec()), &self.bus).await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_revoked_counts_no_more_here_and_elsewhere() {
        let site = Site::new();
        let (here, there) = (site.follow().await, site.follow().await);
        here.admit(&grant("n", "i", 0)).unwrap();
        site.revoke(&here, entry(Scope::Image, "p", "i"), false).await;
        assert!(matches!(here.admit(&grant("n", "i", 0)), Err(Refused::Image(_))));
        here.admit(&grant("n", "other", 0)).unwrap();
        here.admit(&grant("n", "i", here.epoch())).unwrap();
        // Told; and whoever comes later reads it.
        while there.epoch() < here.epoch() {
            tokio::task::yield_now().await;
        }
        assert!(there.admit(&grant("n", "i", 0)).is_err());
        site.revoke(&there, entry(Scope::Project, "p", ""), false).await;
        let later = site.follow().await;
        assert!(matches!(later.admit(&grant("n", "other", 1)), Err(Refused::Project(_))));
        later.admit(&grant("n", "other", 2)).unwrap();
        site.shutdown.cancel();
    }

    #[tokio::test]
    async fn a_node_is_out_until_that_is_undone() {
        let site = Site::new();
        let revocations = site.follow().await;
        site.revoke(&revocations, entry(Scope::Node, "", "n"), false).await;
        assert!(matches!(revocations.admit(&grant("n", "i", 99)), Err(Refused::Node(_))));
        assert!(revocations.admit_node("q", "n").is_err());
        revocations.admit_node("p", "m").unwrap();
        site.revoke(&revocations, entry(Scope::Node, "", "n"), true).await;
        revocations.admit_node("q", "n").unwrap();
        for wrong in
            [entry(Scope::Unspecified, "p", "n"), entry(Scope::Image, "", "i"), entry(Scope::Project, "", "")]
        {
            assert!(revocations.changed(wrong, false, 0, 0).await.is_err());
        }
        site.shutdown.cancel();
    }

    #[tokio::test]
    async fn only_a_fetcher_revokes_and_nobody_puts_an_old_list_back() {
        let site = Site::new();
        let revocations = site.follow().await;
        let list = revocations.changed(entry(Scope::Node, "", "n"), false, 1, 0).await.unwrap();
        let forged = sign(&SigningKey::from_bytes(&[2; 32]), Domain::Revocations, list.encode_to_vec());
        assert!(revocations.keep(&forged, &site.bus).await.is_err());
        revocations.admit_node("p", "n").unwrap();
        site.revoke(&revocations, entry(Scope::Node, "", "n"), false).await;
        let old = sign(&site.key, Domain::Revocations, List::default().encode_to_vec());
        revocations.shared.believe(&old).unwrap();
        assert!(revocations.admit_node("p", "n").is_err());
        site.shutdown.cancel();
    }
}
