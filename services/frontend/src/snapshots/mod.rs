//! The snapshotter of containerd: for images that stream, and a complete ordinary overlay for all others.
//!
//! ```text
//! containerd --Prepare, a layer of an image--> wanted --> decide --streams--> ledger, "exists already": not fetched
//!                                                             \--ordinary--> ledger, folder, mounts: fetched as ever
//!            --Prepare, a container-----------------------------------------> ledger, folder, mounts over the image's tree
//! ```
//!
//! A layer that streams is an entry of the ledger and nothing else: no folder, no mount, no question to
//! anybody but for the first of an image. Protocol: `containerd.services.snapshots.v1`; that a layer which
//! "exists already" is then looked up by its labels is how containerd's metadata store does it.
//!
//! Concurrency: one lock around the ledger, taken on blocking threads only and never across a wait.

mod decide;
mod door;
mod filter;
mod folders;
mod ledger;
mod mounts;
mod pulls;
mod streaming;
mod wanted;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use anyhow::Context as _;
use proto::containerd::types::Mount;
use tonic::{Code, Status};

pub(crate) use decide::Ordinary;
pub(crate) use door::answer;
use filter::Filter;
use folders::Folders;
use ledger::{Kind, Ledger, LedgerError, Snapshot, Streamed, Usage};
use mounts::{Below, Folder};
use pulls::{Pull, Pulls};
pub(crate) use streaming::Streaming;
use wanted::{Layer, Place};

use crate::images::Need;
use crate::metrics;
use crate::mount::Above;

/// Whether overlayfs has an index to be switched off.
const INDEX: &str = "/sys/module/overlay/parameters/index";

type Labels = BTreeMap<String, String>;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Snapshots {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    images: Streaming,
    ledger: Mutex<Ledger>,
    folders: Folders,
    pulls: Pulls,
    index_off: bool,
}

/// What a Prepare or a View asks for.
#[derive(Debug)]
struct New {
    kind: Kind,
    key: String,
    parent: Option<String>,
    labels: Labels,
}

impl Snapshots {
    /// Opens the snapshots of an earlier process.
    pub(crate) fn open(state: &Path, images: Streaming) -> anyhow::Result<Snapshots> {
        let folders = Folders::open(state).context("cannot open the folder of the snapshots")?;
        mounts::check(&folders.content(0))?;
        let first = folders.first_free().context("cannot list the folders of the snapshots")?;
        let ledger = Ledger::open(&state.join("snapshots.redb"), first)?;
        let shared = Shared {
            images,
            ledger: Mutex::new(ledger),
            folders,
            pulls: Pulls::default(),
            index_off: Path::new(INDEX).exists(),
        };
        let snapshots = Snapshots { shared: Arc::new(shared) };
        snapshots.shared.claim();
        Ok(snapshots)
    }

    /// Removes the folders that an earlier process forgot and could not remove. They may be large, and nothing depends on it.
    pub(crate) async fn clean_up(&self) {
        if let Err(error) = self.clean().await {
            tracing::warn!(error = error.message(), "folders of forgotten snapshots stay");
        }
    }

    /// Makes a snapshot, and says how it is mounted. A layer that streams is recorded under its own name instead, and the
    /// answer is "exists already".
    async fn make(&self, new: New) -> Result<Vec<Mount>, Status> {
        let layer = Layer::of(&new.labels).filter(|_| new.kind == Kind::Active);
        if let Some(layer) = &layer {
            self.make_streamed(layer, &new).await?;
        }
        let below = self.below(new.parent.clone()).await?;
        let (kind, key) = (new.kind, new.key.clone());
        let id = self.begin(new, &below).await?;
        self.claim().await?;
        if let Some(manifest) = self.streams_over(&key).await {
            self.shared.images.begin_start(&manifest);
        }
        Ok(vec![self.shared.mount(id, kind, &below)])
    }

    /// Ends with "exists already" when the layer streams. The first layer of an image that is asked for is written down with
    /// those above it, which will be asked for next; should containerd not come back for them, its collection removes them.
    async fn make_streamed(&self, layer: &Layer, new: &New) -> Result<(), Status> {
        let exists = || {
            metrics::layer_streamed();
            Err(Status::already_exists(format!("layer {} streams", layer.target)))
        };
        if self.shared.images.goes_on() && self.known(&layer.target, new.parent.as_deref()).await?.is_some() {
            return exists();
        }
        // Held until the ledger claims the image by itself.
        let manifest = layer.image.as_ref().and_then(|image| image.manifest.as_deref());
        let _pull = manifest.map(|manifest| self.shared.pulls.begin(manifest));
        self.claim().await?;
        let Some(places) = self.decide(layer, new.parent.as_deref()).await? else { return Ok(()) };
        let _pull = if manifest.is_none() { self.hold(&places).await? } else { None };
        let labels = new.labels.clone();
        let snapshots = places.into_iter().map(|place| streamed_snapshot(place, &labels)).collect();
        self.with_ledger(move |shared| shared.ledger().add_layers(snapshots)).await?;
        self.claim().await?;
        exists()
    }

    /// Keeps an image of which only the answer said which one it is; it may have been evicted in between.
    async fn hold(&self, places: &[Place]) -> Result<Option<Pull>, Status> {
        let Some(Place { streamed, .. }) = places.first() else { return Ok(None) };
        let pull = self.shared.pulls.begin(&streamed.manifest);
        self.claim().await?;
        match self.shared.images.stays(&streamed.manifest).await {
            true => Ok(Some(pull)),
            false => Err(Status::unavailable(format!(
                "image {} was evicted while it was pulled",
                streamed.manifest
            ))),
        }
    }

    /// Makes folder and entry of a snapshot.
    async fn begin(&self, new: New, below: &Below) -> Result<u64, Status> {
        let top = below.top().map(Path::to_owned);
        let whole = below.streams && !mounts::may_lack_data(&new.key);
        self.with_ledger(move |shared| {
            let mut ledger = shared.ledger();
            ledger.check_new(&new.key, new.parent.as_deref())?;
            let id = ledger.new_id();
            shared.folders.make(id, new.kind, top.as_deref(), whole).map_err(redb::Error::Io)?;
            let snapshot = Snapshot {
                id,
                kind: new.kind,
                parent: new.parent,
                labels: new.labels,
                created: SystemTime::now(),
                updated: SystemTime::now(),
                streamed: None,
                usage: Usage::default(),
            };
            ledger.add(&new.key, snapshot).inspect_err(|_| {
                // Nobody names it: the next start would remove it, too.
                shared.folders.remove(id).ok();
            })?;
            Ok(id)
        })
        .await
    }

    async fn mounts(&self, key: String) -> Result<Vec<Mount>, Status> {
        let snapshot = self.stat(key.clone()).await?;
        if snapshot.kind == Kind::Committed {
            return Err(Status::failed_precondition(format!(
                "snapshot {key:?} is committed: it is not mounted"
            )));
        }
        let below = self.below(snapshot.parent).await?;
        Ok(vec![self.shared.mount(snapshot.id, snapshot.kind, &below)])
    }

    async fn commit(
        &self,
        key: String,
        name: String,
        labels: Labels,
        parent: Option<String>,
    ) -> Result<(), Status> {
        self.with_ledger(move |shared| {
            // Measured without the lock: a layer may have many files.
            let id = shared.ledger().active(&key)?.id;
            let usage = shared.folders.usage(id).map_err(redb::Error::Io)?;
            shared.ledger().commit(&key, &name, labels, parent.as_deref(), usage)
        })
        .await?;
        self.claim().await?;
        Ok(())
    }

    async fn remove(&self, name: String) -> Result<(), Status> {
        self.with_ledger(move |shared| {
            let removed = shared.ledger().remove(&name)?;
            if removed.streamed.is_none()
                && let Err(error) = shared.remove_folder(&removed)
            {
                // It is forgotten, whatever happens to its files: Cleanup, or the next start, tries again.
                tracing::warn!(snapshot = name, id = removed.id, %error, "the folder of a removed snapshot stays");
            }
            Ok(())
        })
        .await?;
        self.claim().await?;
        Ok(())
    }

    async fn stat(&self, name: String) -> Result<Snapshot, Status> {
        self.with_ledger(move |shared| shared.ledger().get(&name).cloned()).await
    }

    async fn set_labels(
        &self,
        name: String,
        change: impl FnOnce(&mut Labels) + Send + 'static,
    ) -> Result<Snapshot, Status> {
        self.with_ledger(move |shared| {
            let mut ledger = shared.ledger();
            let mut labels = ledger.get(&name)?.labels.clone();
            change(&mut labels);
            ledger.set_labels(&name, labels).cloned()
        })
        .await
    }

    async fn list(&self, filters: Vec<Filter>) -> Result<Vec<(String, Snapshot)>, Status> {
        self.with_ledger(move |shared| {
            let ledger = shared.ledger();
            let wanted = |name: &str, snapshot: &Snapshot| {
                filters.is_empty() || filters.iter().any(|filter| filter.holds(name, snapshot))
            };
            let all = ledger.all().iter().filter(|(name, snapshot)| wanted(name, snapshot));
            Ok(all.map(|(name, snapshot)| (name.clone(), snapshot.clone())).collect())
        })
        .await
    }

    /// Of an image that streams, the highest layer stands for all that is local of it.
    async fn usage(&self, name: String) -> Result<Usage, Status> {
        let snapshot = self.stat(name).await?;
        match snapshot.streamed {
            Some(streamed) if streamed.is_top() => {
                let bytes = self.shared.images.local_bytes(&streamed.manifest);
                Ok(Usage { bytes, inodes: 0 })
            }
            Some(_) => Ok(Usage::default()),
            None if snapshot.kind == Kind::Committed => Ok(snapshot.usage),
            None => {
                self.with_ledger(move |shared| {
                    Ok(shared.folders.usage(snapshot.id).map_err(redb::Error::Io)?)
                })
                .await
            }
        }
    }

    async fn clean(&self) -> Result<(), Status> {
        self.with_ledger(|shared| Ok(shared.clean().map_err(redb::Error::Io)?)).await
    }

    /// What a snapshot of this parent stands on; an image's tree is mounted when this returns.
    async fn below(&self, parent: Option<String>) -> Result<Below, Status> {
        let Some(parent) = parent else { return Ok(Below::default()) };
        let found = self.with_ledger(move |shared| {
            let ledger = shared.ledger();
            let chain = ledger.chain(&parent)?;
            let ordinary = chain.iter().take_while(|snapshot| snapshot.streamed.is_none());
            Ok((ordinary.map(|snapshot| snapshot.id).collect(), ledger.streams_below(&parent)?))
        });
        let (ordinary, streamed): (Vec<u64>, _) = found.await?;
        let folders = &self.shared.folders;
        let paths = |ids: &[u64]| ids.iter().map(|id| folders.content(*id)).collect::<Vec<_>>();
        let Some((name, image)) = streamed else {
            return Ok(Below { layers: paths(&ordinary), streams: false });
        };
        // Which files of a layer lack data, and where that is, only an overlay knows that says so to nobody above it.
        let lacking = ordinary.iter().position(|id| !folders.is_whole(*id));
        let above = lacking.map(|first| Above { id: ordinary[first], layers: paths(&ordinary[first..]) });
        let merged = self.stack_or_bring(&name, &image, above).await?;
        let mut layers = paths(&ordinary[..lacking.unwrap_or(ordinary.len())]);
        layers.push(merged);
        Ok(Below { layers, streams: true })
    }

    /// Where the layers are merged that a streamed snapshot stands for. containerd does not pull again what it knows: should the
    /// image have left this node behind its back (a power loss, a key that is no longer trusted), it is asked for again here.
    async fn stack_or_bring(
        &self,
        name: &str,
        image: &Streamed,
        above: Option<Above>,
    ) -> Result<PathBuf, Status> {
        let images = &self.shared.images;
        let stack = || async {
            let above = above.clone();
            match image.is_top() {
                true => images.stack(&image.manifest, above).await,
                false => images.stack_part(&image.manifest, image.layer + 1, name, above).await,
            }
        };
        match stack().await {
            Err(status) if status.code() == Code::NotFound => {
                self.bring_again(name, image, status).await?;
                stack().await
            }
            merged => merged,
        }
    }

    async fn bring_again(&self, name: &str, lost: &Streamed, status: Status) -> Result<(), Status> {
        let labels = self.stat(name.to_owned()).await?.labels;
        if self.shared.images.is_here(&lost.manifest) {
            return Ok(()); // Another container's start brought it meanwhile, or will not be helped by more.
        }
        let Some(asked) = Layer::of(&labels).and_then(|layer| layer.image) else { return Err(status) };
        let asked = asked.with_manifest(&lost.manifest);
        tracing::warn!(
            image = lost.manifest,
            reference = asked.reference,
            "a pulled image left this node: asking for it again"
        );
        self.record_of(&asked, Need::Required).await.map(drop)
    }

    /// The image that the snapshot stands on, if it streams.
    async fn streams_over(&self, key: &str) -> Option<String> {
        let key = key.to_owned();
        let found = self.with_ledger(move |shared| {
            let found = shared.ledger().streams_below(&key)?;
            Ok(found.map(|(part, image)| if image.is_top() { image.manifest } else { part }))
        });
        found.await.ok().flatten()
    }

    async fn claim(&self) -> Result<(), Status> {
        self.with_ledger(|shared| {
            shared.claim();
            Ok(())
        })
        .await
    }

    async fn with_ledger<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, Status> {
        let shared = self.shared.clone();
        let ended = tokio::task::spawn_blocking(move || work(&shared)).await;
        Ok(ended.map_err(|error| Status::internal(format!("work on the snapshots ended: {error}")))??)
    }
}

/// A layer by its name: by its labels containerd finds it again. What the first one of an image was asked for with says the
/// same of those above it, but for its own name and digest.
fn streamed_snapshot(place: Place, labels: &Labels) -> (String, Snapshot) {
    let mut labels = labels.clone();
    labels.insert(wanted::TARGET.to_owned(), place.name.clone());
    if let Some(digest) = labels.get_mut(wanted::LAYER) {
        digest.clone_from(&place.digest);
    }
    let snapshot = Snapshot {
        id: 0,
        kind: Kind::Committed,
        parent: place.parent,
        labels,
        created: SystemTime::now(),
        updated: SystemTime::now(),
        streamed: Some(place.streamed),
        usage: Usage::default(),
    };
    (place.name, snapshot)
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // The disk is written before memory is changed, one insertion at a time.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mount(&self, id: u64, kind: Kind, below: &Below) -> Mount {
        let own = Folder {
            content: self.folders.content(id),
            work: self.folders.work(id),
            whole: self.folders.is_whole(id),
        };
        mounts::mount(below, &own, kind == Kind::Active, self.index_off)
    }

    /// Removes the folder of a snapshot that is forgotten, and what was mounted for those above it.
    fn remove_folder(&self, removed: &Snapshot) -> std::io::Result<()> {
        if removed.kind == Kind::Committed && !self.folders.is_whole(removed.id) {
            self.images.unstack(removed.id)?;
        }
        self.folders.remove(removed.id)
    }

    /// Tells the images which of them are needed. Under the lock: of two that are told at the same time, the later one
    /// must be the newer.
    fn claim(&self) {
        let ledger = self.ledger();
        let mut claims = ledger.claims();
        self.pulls.add_to(&mut claims);
        self.images.claim(claims);
    }

    /// Removes folders that no snapshot names.
    fn clean(&self) -> std::io::Result<()> {
        let unnamed = {
            // Under the lock, as a folder is made before it is named. What nobody names now nobody ever will: numbers are not
            // used again.
            let ledger = self.ledger();
            if !ledger.is_whole() {
                tracing::warn!("folders that no snapshot names stay: some snapshots cannot be read");
                return Ok(());
            }
            self.folders.others(&ledger.all().values().map(|snapshot| snapshot.id).collect())?
        };
        if !unnamed.is_empty() {
            tracing::info!(folders = unnamed.len(), "removing folders that no snapshot names");
        }
        for id in unnamed.iter().filter(|id| !self.folders.is_whole(**id)) {
            self.images.unstack(*id)?;
        }
        self.folders.remove_all(&unnamed)
    }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem)
}

impl From<LedgerError> for Status {
    fn from(error: LedgerError) -> Status {
        let message = error.to_string();
        match error {
            LedgerError::NotFound(_) => Status::not_found(message),
            LedgerError::Exists(_) => Status::already_exists(message),
            LedgerError::ParentNotCommitted(_) => Status::invalid_argument(message),
            LedgerError::NotActive(_) | LedgerError::HasChild { .. } => Status::failed_precondition(message),
            LedgerError::Full => Status::resource_exhausted(message),
            LedgerError::Disk(redb::Error::Io(error)) if is_full(&error) => {
                Status::resource_exhausted(message)
            }
            LedgerError::Disk(_) => Status::internal(message),
        }
    }
}
