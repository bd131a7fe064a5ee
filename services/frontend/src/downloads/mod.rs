//! Brings the content of the node's images here, in the order in which it is needed.
//!
//! ```text
//! read() --memory? disk?--> Demand --> [scheduler] --> requests (content) --> verified chunks
//!    ^                                            |    ^                                   |
//!    '------------- bytes of the chunk -----------'    '------------- Event ---------------'
//!                                                 '--> writer (blocking threads) --> objects
//! ```
//!
//! One task, the scheduler, owns what is in flight, what is local and what comes next; it never waits for
//! the network or the disk. Three classes, strictly ordered: a read that a process waits for; the
//! profile of earlier starts, in its order; everything else in map order. With what a read waits for travels what is
//! likely to be read next (`ahead`), as much as a round trip has room for. While a read waits for the network,
//! lower classes ask for nothing, and what they asked for already stops being read unless the read
//! waits for it too.
//!
//! Bounds, all in bytes, and all named where they are used: chunks in memory, chunks being written, chunks
//! in flight of each class.

mod ahead;
mod bandwidth;
mod buffers;
mod flights;
mod held;
mod image;
mod memory;
mod plan;
mod read;
mod request;
mod scan;
mod scheduler;
#[cfg(test)]
mod tests;
mod writer;
mod writing;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use ::image::{Digest, Profile};
use proto::{DownloadProgress, ReadTrace};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::events::NodeEvents;
use crate::objects::Objects;
use crate::seldom::Seldom;
use image::Image;
use memory::Memory;
use plan::Plan;
use scheduler::{Control, Demand, Event, Inbox, Scheduler};

pub use buffers::Buffers;
pub use image::{ImageId, NewImage, Prefetch};
pub use read::{ReadError, Seek};

/// Reads waiting to be taken by the scheduler, which never blocks: more than the kernel asks at once.
const DEMANDS_QUEUED: usize = 256;
/// Chunks handed to the scheduler and not taken yet; each may be 2 MiB.
const EVENTS_QUEUED: usize = 2;
/// How often changes are made safe against a power loss: what a loss costs is at most fetched again.
const SYNC_INTERVAL: Duration = Duration::from_secs(30);

/// What an operator may set.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Fetch everything of every image, not only what is read.
    pub background: bool,
    /// Stored bytes a second that the background may ask for; `None`: no cap.
    pub background_bandwidth: Option<u64>,
    /// The background waits until no read needed the network for this long.
    pub background_quiet: Duration,
    /// Disk bytes at which the background stops; `None`: only a full disk stops it.
    pub disk_budget: Option<u64>,
    pub buffers: Buffers,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            background: true,
            background_bandwidth: None,
            background_quiet: Duration::from_secs(2),
            disk_budget: None,
            buffers: Buffers::default(),
        }
    }
}

/// The node's downloads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Downloads {
    shared: Arc<Shared>,
    /// As rare as mounts and unmounts: without a bound of its own.
    control: mpsc::UnboundedSender<Control>,
    demands: mpsc::Sender<Demand>,
    events: mpsc::Sender<Event>,
    tasks: TaskTracker,
}

/// What readers and the scheduler share.
#[derive(Debug)]
struct Shared {
    objects: Arc<Objects>,
    events: NodeEvents,
    /// Of reads that wait for a quota.
    short_said: Seldom,
    memory: Mutex<Memory>,
    /// The present images, the newest last.
    images: RwLock<Arc<[Arc<Image>]>>,
}

impl Downloads {
    /// Starts the scheduler and the regular sync on `tasks`; both end with `shutdown`.
    pub fn start(
        objects: Arc<Objects>,
        events: NodeEvents,
        options: Options,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> Downloads {
        let shared = Arc::new(Shared {
            objects,
            events,
            short_said: Seldom::default(),
            memory: Mutex::new(Memory::new(options.buffers.memory as usize)),
            images: RwLock::new(Arc::default()),
        });
        let (control, control_taken) = mpsc::unbounded_channel();
        let (demands, demands_taken) = mpsc::channel(DEMANDS_QUEUED);
        let (events, events_taken) = mpsc::channel(EVENTS_QUEUED);
        let inbox = Inbox { control: control_taken, demands: demands_taken, events: events_taken };
        let scheduler = Scheduler::new(shared.clone(), options, events.clone(), tasks.clone());
        let scheduling = tokio::spawn(scheduler.run(inbox, shutdown.clone()));
        let ending = shutdown.clone();
        tasks.spawn(async move {
            // Nobody would be served any more: the next process does.
            if let Err(error) = scheduling.await {
                tracing::error!(%error, "the scheduler of downloads ended, and the frontend with it");
                ending.cancel();
            }
        });
        tasks.spawn(sync_regularly(shared.objects.clone(), shutdown));
        Downloads { shared, control, demands, events, tasks: tasks.clone() }
    }

    /// Makes an image's objects readable, starts its prefetch, and its background when that is due. An image
    /// that is here already is replaced.
    pub async fn add_image(&self, new: NewImage) -> anyhow::Result<()> {
        let mut new = new;
        let prefetch = std::mem::take(&mut new.prefetch.chunks);
        let profile = new.profile.chunks.clone();
        let image = Arc::new(Image::new(new));
        let (objects, map) = (self.objects().clone(), image.map.clone());
        let plan = tokio::task::spawn_blocking(move || {
            let mut plan = Plan::new(map, &prefetch, &profile);
            scan::of_prefetch(&objects, &plan, &prefetch).map(|local| {
                local.tell(&mut plan);
                plan
            })
        });
        let plan = plan.await??;
        self.shared.change_images(|images| {
            images.retain(|other| other.id != image.id);
            images.push(image.clone());
        });
        let add = Control::Add { image: image.clone(), plan: Box::new(plan) };
        self.control.send(add).map_err(|_| anyhow::anyhow!("the downloads stopped"))?;
        self.tasks.spawn(scan_all(self.objects().clone(), image, self.events.clone()));
        Ok(())
    }

    /// Stops everything that is done for an image. Its objects stay on the disk; some may still arrive
    /// until [`Downloads::settled`].
    pub fn remove_image(&self, id: &ImageId) {
        self.shared.change_images(|images| {
            images.retain(|image| {
                if image.id == *id {
                    image.removed.cancel();
                }
                image.id != *id
            });
        });
        // Without a scheduler nothing is done for anybody.
        let _ = self.control.send(Control::Remove { id: id.clone() });
    }

    /// Waits until nothing is written any more that was under way, or queued, when this was called: before
    /// the objects of a removed image are evicted.
    pub async fn settled(&self) {
        let (done, settled) = oneshot::channel();
        if self.control.send(Control::Settle { done }).is_ok() {
            // An error means that the scheduler stopped, and writes no more.
            let _ = settled.await;
        }
    }

    /// Whether some present image names the object.
    pub fn contains(&self, object: &Digest) -> bool {
        self.images().iter().any(|image| plan::index_of(&image.map, object).is_some())
    }

    pub fn progress(&self, id: &ImageId) -> Option<DownloadProgress> {
        self.image(id).map(|image| *image.progress.borrow())
    }

    /// The progress, to be followed. Closed when the image is removed.
    pub fn follow(&self, id: &ImageId) -> Option<watch::Receiver<DownloadProgress>> {
        self.image(id).map(|image| image.progress.subscribe())
    }

    /// Waits until everything of the image is local; false when it was removed before, or is unknown.
    pub async fn completed(&self, id: &ImageId) -> bool {
        let Some(image) = self.image(id) else { return false };
        let mut progress = image.progress.subscribe();
        tokio::select! {
            complete = progress.wait_for(|progress| progress.complete) => complete.is_ok(),
            () = image.removed.cancelled() => false,
        }
    }

    /// What arrived for the image and when, since its mount was asked for.
    pub fn trace(&self, id: &ImageId) -> Vec<ReadTrace> {
        self.image(id).map(|image| image.trace()).unwrap_or_default()
    }

    /// What this start read, in the order it was first needed.
    pub fn profile(&self, id: &ImageId) -> Option<Profile> {
        self.image(id).map(|image| image.profile())
    }

    /// The local objects.
    pub fn objects(&self) -> &Arc<Objects> {
        &self.shared.objects
    }

    fn image(&self, id: &ImageId) -> Option<Arc<Image>> {
        self.images().iter().find(|image| image.id == *id).cloned()
    }

    fn images(&self) -> Arc<[Arc<Image>]> {
        self.shared.images.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.shared.memory()
    }

    async fn demand(&self, demand: Demand) -> Result<(), mpsc::error::SendError<Demand>> {
        self.demands.send(demand).await
    }
}

impl Shared {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_images(&self, change: impl FnOnce(&mut Vec<Arc<Image>>)) {
        let mut images = self.images.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = images.to_vec();
        change(&mut changed);
        *images = changed.into();
    }
}

/// Looks for all of an image on the disk, and tells the scheduler: its background waits for that.
async fn scan_all(objects: Arc<Objects>, image: Arc<Image>, events: mpsc::Sender<Event>) {
    let map = image.map.clone();
    let local = tokio::task::spawn_blocking(move || scan::of_all(&objects, &map)).await;
    let local = match local {
        Ok(Ok(local)) => local,
        Ok(Err(error)) => {
            tracing::warn!(image = %image.id, %error, "failed to look for local objects; fetching all");
            scan::Local::default()
        }
        Err(_) => return,
    };
    // The scheduler is gone only when the node shuts down.
    let _ = events.send(Event::Scanned { image, local }).await;
}

async fn sync_regularly(objects: Arc<Objects>, shutdown: CancellationToken) {
    loop {
        if tokio::time::timeout(SYNC_INTERVAL, shutdown.cancelled()).await.is_ok() {
            // Readers wait until the next process serves them: they do not wait for the disk, too.
            return;
        }
        let objects = objects.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || objects.sync()).await {
            tracing::warn!(%error, "failed to sync the local objects");
        }
    }
}
