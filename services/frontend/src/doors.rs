//! The sockets that the container runtime and the kubelet connect to.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bus::Bus;
use credentials::Sources;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::descriptors::Name;
use crate::early::Early;
use crate::ending::Ending;
use crate::events::NodeEvents;
use crate::image_service::Pulls;
use crate::mount::probe::{self, Missing};
use crate::snapshots::{self, Snapshots, Streaming};
use crate::{fuse, image_service, node};

/// How often a machine that cannot stream is looked at again.
const PROBE_EVERY: Duration = Duration::from_secs(30);

/// What a node serves beside its own socket, until it ends.
#[derive(Debug)]
pub(crate) struct Doors {
    snapshotter: Option<PathBuf>,
    image_service: Option<PathBuf>,
    runtime: PathBuf,
    state: PathBuf,
    early: Early,
    ending: Ending,
    shutdown: CancellationToken,
}

impl Doors {
    pub(crate) fn of(config: &Config, early: Early, ending: &Ending, shutdown: &CancellationToken) -> Doors {
        Doors {
            snapshotter: config.snapshotter.clone(),
            image_service: config.image_service.clone(),
            runtime: config.runtime.clone(),
            state: config.state.clone(),
            early,
            ending: ending.clone(),
            shutdown: shutdown.clone(),
        }
    }

    pub(crate) fn open(
        mut self,
        streaming: Streaming,
        credentials: Arc<Sources>,
        events: NodeEvents,
    ) -> anyhow::Result<()> {
        if let Some(socket) = self.snapshotter.take() {
            self.serve_snapshotter(&socket, streaming)?;
        }
        if let Some(socket) = self.image_service.take() {
            self.serve_image_service(&socket, credentials, events)?;
        }
        Ok(())
    }

    fn serve_snapshotter(&mut self, socket: &Path, streaming: Streaming) -> anyhow::Result<()> {
        let snapshots = Snapshots::open(&self.state, streaming)?;
        let found = match self.early.snapshotter.take() {
            Some(found) => found,
            None => {
                let listener = node::listen(socket, Name::SnapshotterSocket, &self.early.descriptors)?;
                snapshots::answer(listener, &self.ending, self.shutdown.clone())
            }
        };
        found.send_replace(Some(snapshots.clone()));
        tracing::info!(socket = %socket.display(), "serving containerd's snapshotter");
        self.ending.spawn(async move { snapshots.clean_up().await });
        Ok(())
    }

    fn serve_image_service(
        &self,
        socket: &Path,
        credentials: Arc<Sources>,
        events: NodeEvents,
    ) -> anyhow::Result<()> {
        let listener = node::listen(socket, Name::ImageServiceSocket, &self.early.descriptors)?;
        let shutdown = self.shutdown.clone();
        let runtime = self.runtime.clone();
        tracing::info!(socket = %socket.display(), runtime = %runtime.display(), "serving the image service");
        let ending = self.ending.clone();
        self.ending.spawn(async move {
            let pulls = Pulls { credentials, events };
            if let Err(error) = image_service::serve(listener, &runtime, pulls, &ending, shutdown).await {
                tracing::error!(%error, "the image service's socket is no longer served");
            }
        });
        Ok(())
    }
}

/// On a machine that cannot stream: a node of a fleet is to start its containers all the same. Its images are ordinary ones, and
/// say why. Without a container runtime to serve nothing is left to do.
pub(crate) fn open_ordinary(
    config: &Config,
    early: Early,
    missing: Missing,
    bus: &Bus,
    tasks: &TaskTracker,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let why = format!("this machine cannot stream images: {missing}");
    let held = !matches!(fuse::holder::take(&config.state), Ok(None))
        || !matches!(early.descriptors.take(Name::FuseConnection), Ok(None));
    // What a container reads through is not left alone: the next start may find what is missing.
    if config.snapshotter.is_none() || missing == Missing::Capability || held {
        return Err(missing).context("this machine cannot stream images");
    }
    tracing::error!(why, "all images of this node are pulled as ever");
    let lock = node::lock(&config.state)?;
    let events = NodeEvents::new(bus.events().clone(), &config.node);
    let doors = Doors::of(config, early, &Ending::new(tasks.clone(), shutdown.clone()), &shutdown);
    let credentials = Arc::new(Sources::open(&config.credentials)?);
    doors.open(Streaming::Impossible { why, events: events.clone() }, credentials, events)?;
    tasks.spawn(async move {
        // A module that is loaded late, a device that comes later.
        while shutdown.run_until_cancelled(sleep(PROBE_EVERY)).await.is_some() {
            if probe::check().is_ok() {
                tracing::warn!("this machine can stream now: ending, to be started again");
                shutdown.cancel();
            }
        }
        drop(lock);
    });
    Ok(())
}
