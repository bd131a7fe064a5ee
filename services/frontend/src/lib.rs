//! The node agent: mounts streamed images, brings their bytes, keeps them on the node's disk.
//!
//! ```text
//! containerd --> snapshots --\
//! node (unix socket) --> images --> mount      tree, overlay
//!                           |  \--> downloads --> content --> cache replicas, object store
//!                           |          ^   \--> objects (disk)
//!    kernel --> fuse -------|----------/ reads of what is not local yet
//! ```
//!
//! [`Frontend::start`] is all that a process needs, be it this crate's own binary or `sluice` with
//! every service in it.

pub mod budget;
mod config;
pub mod content;
mod descriptors;
mod doors;
pub mod downloads;
mod early;
mod ending;
mod events;
mod fuse;
mod idle;
mod image_service;
mod images;
mod known;
mod metrics;
mod mount;
mod node;
pub mod objects;
mod reservation;
mod seldom;
mod snapshots;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use bus::Bus;
use credentials::Sources;
use proto::signed::TrustedKeys;
use store::Store;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::Config;
pub use early::Early;
pub use node::InUse;
pub use reservation::{LEAST as MEMORY_LEAST, budget as memory_budget, node_memory, reservation};

use content::Mesh;
use descriptors::{Descriptors, Name};
use doors::Doors;
use downloads::Downloads;
use ending::Ending;
use events::NodeEvents;
use fuse::{Hold, Registry, Remote, Session};
use images::Images;
use mount::Mounts;
use objects::Objects;
use snapshots::Streaming;

/// What a program does that was started as one of those that keep descriptors; none: it was started as itself.
pub fn holder_entry() -> Option<ExitCode> {
    fuse::holder::entry().or_else(descriptors::holder::entry)
}

/// A frontend that runs until its shutdown token is cancelled.
#[derive(Debug)]
pub struct Frontend {
    socket: PathBuf,
}

impl Frontend {
    /// Starts the node: checks the machine, takes its state folder, finds what an earlier process left, serves.
    ///
    /// `early`: of the same configuration. `store`: read when no cache has a chunk. `trusted`: keys believed beside those of the configuration.
    pub async fn start(
        config: Config,
        early: Early,
        store: Option<Store>,
        bus: Bus,
        trusted: TrustedKeys,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Frontend> {
        if let Err(missing) = mount::probe::check() {
            doors::open_ordinary(&config, early, missing, &bus, tasks, shutdown)?;
            return Ok(Frontend { socket: config.socket });
        }
        let descriptors = early.descriptors.clone();
        let lock = node::lock(&config.state)?;
        let objects = Arc::new(Objects::open(&config.state)?);
        let (held, mounts) = take_over_or_prepare(&config, &objects, &descriptors)?;
        let events = NodeEvents::new(bus.events().clone(), &config.node);
        let options = download_options(&config);
        let downloads = Downloads::start(objects.clone(), events.clone(), options, tasks, shutdown.clone());
        let known = Arc::new(Registry::default());
        let remote = Remote::new(known.clone(), downloads.clone(), Handle::current(), config.read_timeout);
        let (point, read_ahead) = (mounts.remote_point(), config.read_ahead.as_u64());
        let hold = Hold { descriptors: &descriptors, state: &config.state };
        let (mut session, serving) = match held {
            Some(device) => Session::resume(remote, &point, device, hold)?,
            None => Session::start(remote, &point, read_ahead, config.hold.then_some(hold))?,
        };
        let tls = config.tls.open()?;
        let mesh = Mesh::new(bus.clone(), store, events.clone(), content_options(&config)).over(tls.clone());
        tasks.spawn(locate(mesh.clone(), shutdown.clone()));
        let credentials = Arc::new(Sources::open(&config.credentials)?);
        let ending = Ending::new(tasks.clone(), shutdown.clone());
        let (socket, exit_when_idle) = (config.socket.clone(), config.exit_when_idle);
        let (holds, doors) = (config.hold, Doors::of(&config, early, &ending, &shutdown));
        let switched_on = config.streaming;
        let shutdown_of_images = shutdown.clone();
        let images = Images::start(images::Parts {
            config,
            bus,
            events,
            credentials: credentials.clone(),
            trusted,
            mesh,
            objects,
            downloads,
            known,
            mounts,
            tasks: ending.clone(),
            shutdown: shutdown_of_images,
        })
        .await?;
        let events = images.events().clone();
        doors.open(Streaming::Possible { images: images.clone(), switched_on }, credentials, events)?;
        let listener = node::listen(&socket, Name::NodeSocket, &descriptors)?;
        // Only now is known what earlier roots may read; and nothing can fail any more, so that no question is taken and left.
        serving.go(ending.end_unless_ending("the file system of remote objects"))?;
        session.stay(holds);
        if let Some(at_least) = exit_when_idle {
            tasks.spawn(idle::end_when_idle(images.clone(), at_least, shutdown.clone()));
        }
        tasks.spawn(async move {
            if let Err(error) = node::serve(listener, images.clone(), &ending, shutdown).await {
                tracing::error!(%error, "the node's socket is no longer served");
            }
            if holds && images.in_use() {
                tracing::info!("roots stand: the next process goes on with the connection to the kernel");
            } else {
                images.detach();
                session.stay(false);
            }
            drop((session, descriptors, lock));
        });
        Ok(Frontend { socket })
    }

    /// Where `node.v1` is served.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// Whether this machine can stream images, or what it lacks and what to do about that.
pub fn check_machine() -> Result<(), String> {
    mount::probe::check().map_err(|missing| missing.to_string())
}

/// Finds the replicas and connects to them before the first image is asked for.
async fn locate(mesh: Mesh, shutdown: CancellationToken) {
    shutdown.run_until_cancelled(mesh.locate()).await;
}

/// The connection and the mounts of the process before, if a holder kept them; else fresh mounts.
fn take_over_or_prepare(
    config: &Config,
    objects: &Objects,
    descriptors: &Descriptors,
) -> anyhow::Result<(Option<OwnedFd>, Mounts)> {
    let held = fuse::holder::take(&config.state);
    let stored = match descriptors.take(Name::FuseConnection) {
        Err(error) if descriptors.have_a_holder() => {
            return Err(error).context("the holder of the kernel's connection cannot be asked: start again");
        }
        stored => stored.unwrap_or_else(|error| {
            tracing::warn!(%error, "what systemd stored cannot be taken");
            None
        }),
    };
    // A holder that does not answer may have what containers read through: beginning anew would take it from them.
    let held = match (held, stored) {
        (Ok(held), stored) => held.or(stored),
        (Err(error), Some(stored)) => {
            tracing::warn!(%error, "the holder of the kernel's connection cannot be asked");
            Some(stored)
        }
        (Err(error), None) => {
            return Err(error).context("the holder of the kernel's connection cannot be asked: start again");
        }
    };
    if let Some(device) = held {
        if let Some(mounts) = Mounts::resume(&config.state, &objects.local_dir(), config.share_mounts)? {
            tracing::info!("going on with the connection of the process before");
            return Ok((Some(device), mounts));
        }
        tracing::warn!(
            "a connection was kept, but its mount is gone: what still reads through it waits in vain"
        );
    }
    Ok((None, Mounts::prepare(&config.state, &objects.local_dir(), config.share_mounts)?))
}

fn download_options(config: &Config) -> downloads::Options {
    downloads::Options {
        background: config.background,
        background_bandwidth: config.background_cap(),
        disk_budget: Some(config.disk_budget.as_u64()),
        buffers: downloads::Buffers::within(config.memory_budget()),
        ..downloads::Options::default()
    }
}

/// Bytes of the memory budget for each tree or map that is inflated: each takes up to 10 MiB, mostly 4.
const MEMORY_PER_INDEX: u64 = 20 * 1024 * 1024;

fn content_options(config: &Config) -> content::Options {
    let all = content::Options::default();
    let fit = config.memory_budget() / MEMORY_PER_INDEX;
    let indexes_at_once = usize::try_from(fit).unwrap_or(usize::MAX).clamp(1, all.indexes_at_once);
    content::Options {
        demand_patience: config.read_timeout,
        indexes_at_once,
        quota_wait: config.quota_wait,
        quota_patience: config.quota_read_timeout,
        quota_bypass: config.quota_bypass_store,
        ..all
    }
}
