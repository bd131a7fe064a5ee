//! The images of this node: from a name to a mounted root, and away again.
//!
//! ```text
//! (unknown) --mount--> present, mounted --umount--> present, at rest --evict--> (unknown)
//!                      present: its record, tree and map are on the disk, its objects are
//!                      known to the remote file system, its download goes on
//! ```
//!
//! An image stays present when its last root is unmounted: it was pulled, and the next start shall find it.
//! An earlier process's images, and the roots that still stand, are found again at the start.
//!
//! Concurrency: shared by all requests. What is done to one image takes its turn, eviction waits for all
//! turns ([`turns`]); what looks at a target and then mounts on it takes the one turn of all targets. `present` is never held across a wait.

mod bring;
mod claim;
mod evict;
mod facts;
mod find;
mod grants;
mod mount;
mod names;
mod openings;
mod planning;
mod report;
mod resolve;
mod rest;
mod room;
mod space;
mod status;
mod stream;
mod turns;
mod unmount;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bus::Bus;
use credentials::Sources;
use image::ImageRecord;
use proto::DownloadProgress;
use proto::signed::TrustedKeys;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::config::Config;
use crate::content::{Content, Mesh};
use crate::downloads::Downloads;
use crate::ending::{self, Ending};
use crate::events::NodeEvents;
use crate::fuse::Registry;
use crate::mount::Mounts;
use crate::objects::Objects;
pub(crate) use claim::Claims;
use names::Names;
use openings::Openings;
use resolve::Resolver;
use room::Room;
pub(crate) use stream::Need;
use turns::Turns;

/// What images are made of on this node. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    node: Arc<Node>,
}

/// The parts of the node that images need.
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) bus: Bus,
    pub(crate) events: NodeEvents,
    pub(crate) credentials: Arc<Sources>,
    pub(crate) trusted: TrustedKeys,
    pub(crate) mesh: Mesh,
    pub(crate) objects: Arc<Objects>,
    pub(crate) downloads: Downloads,
    pub(crate) known: Arc<Registry>,
    pub(crate) mounts: Mounts,
    pub(crate) tasks: Ending,
    pub(crate) shutdown: CancellationToken,
}

#[derive(Debug)]
struct Node {
    config: Config,
    bus: Bus,
    events: NodeEvents,
    credentials: Arc<Sources>,
    resolver: Resolver,
    names: Names,
    mesh: Mesh,
    objects: Arc<Objects>,
    downloads: Downloads,
    known: Arc<Registry>,
    mounts: Mounts,
    tasks: Ending,
    shutdown: CancellationToken,
    present: Mutex<BTreeMap<String, Present>>,
    claims: Mutex<claim::Claims>,
    /// Images that lost their last claim and could not go yet.
    unclaimed: Mutex<BTreeSet<String>>,
    turns: Turns,
    openings: Arc<Openings>,
    targets: tokio::sync::Mutex<()>,
    room: Room,
    /// Held by every mount that is under way.
    busy: Arc<()>,
}

/// One image of this node, under its manifest digest.
#[derive(Clone, Debug)]
pub(crate) struct Present {
    /// As it was asked for last.
    pub(crate) reference: String,
    pub(crate) record: Arc<ImageRecord>,
    pub(crate) targets: BTreeSet<PathBuf>,
    /// How its content is read; absent while it is at rest and nothing of it is in memory.
    content: Option<Content>,
    /// When a root of it was mounted or unmounted last.
    last_used: SystemTime,
    /// Chunks of the profile that was reported last.
    reported: usize,
    /// Starts that are watched.
    starts: usize,
    /// Where its download ended, once everything is local and its tables have left memory.
    done: Option<DownloadProgress>,
    /// What an earlier process left of it on the disk.
    found: Option<DownloadProgress>,
}

impl Images {
    /// Finds the images that an earlier process left, and the roots that still stand.
    pub(crate) async fn start(parts: Parts) -> anyhow::Result<Images> {
        let Parts {
            config,
            bus,
            events,
            credentials,
            trusted,
            mesh,
            objects,
            downloads,
            known,
            mounts,
            tasks,
            shutdown,
        } = parts;
        let node = Node {
            names: Names::open(&config.state)?,
            resolver: Resolver::new(bus.clone(), trusted, config.tls.open()?, events.clone()),
            room: Room::within(config.memory_budget()),
            config,
            bus,
            events,
            credentials,
            mesh,
            objects,
            downloads,
            known,
            mounts,
            tasks,
            shutdown,
            present: Mutex::default(),
            claims: Mutex::default(),
            unclaimed: Mutex::default(),
            turns: Turns::default(),
            openings: Arc::default(),
            targets: tokio::sync::Mutex::default(),
            busy: Arc::default(),
        };
        let images = Images { node: Arc::new(node) };
        images.find().await?;
        images.notice_unmounts()?;
        images.keep_budget();
        Ok(images)
    }

    pub(crate) fn events(&self) -> &NodeEvents {
        &self.node.events
    }

    /// All images, by manifest digest.
    pub(crate) fn list(&self) -> BTreeMap<String, Present> {
        self.present().clone()
    }

    /// The image that this reference or manifest digest names.
    pub(crate) fn named(&self, name: &str) -> Result<String, Status> {
        let present = self.present();
        if present.contains_key(name) {
            return Ok(name.to_owned());
        }
        let mut named =
            present.iter().filter(|(_, image)| image.reference == name).map(|(manifest, _)| manifest);
        match (named.next(), named.next()) {
            (Some(manifest), None) => Ok(manifest.clone()),
            (Some(_), Some(_)) => Err(Status::failed_precondition(format!(
                "{name:?} names several images: give the manifest digest"
            ))),
            (None, _) => Err(Status::not_found(format!("no image {name:?} on this node"))),
        }
    }

    fn get(&self, manifest: &str) -> Result<Present, Status> {
        let image = self.present().get(manifest).cloned();
        image.ok_or_else(|| Status::not_found(format!("no image {manifest} on this node")))
    }

    fn present(&self) -> MutexGuard<'_, BTreeMap<String, Present>> {
        // Every change is one insertion or removal: a panic cannot leave half of one.
        self.node.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` to its end even if whoever asked for it goes away.
    async fn whole<T: Send + 'static>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Result<T, Status> {
        let ended = self.node.tasks.spawn(work).await;
        let ended = ended.map_err(|error| Status::internal(format!("{what} ended: {error}")))?;
        ended.unwrap_or_else(|| Err(ending::cut_off()))
    }

    /// Runs what blocks in the kernel or on the disk beside the runtime.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Node) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let node = self.node.clone();
        tokio::task::spawn_blocking(move || work(&node))
            .await
            .unwrap_or_else(|error| Err(Status::internal(format!("work on the disk ended: {error}"))))
    }
}

/// What went wrong on the disk, for whoever asked.
fn disk_status(doing: &str, error: &std::io::Error) -> Status {
    let code = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem => {
            tonic::Code::ResourceExhausted
        }
        _ => tonic::Code::Internal,
    };
    Status::new(code, format!("cannot {doing}: {error}"))
}
