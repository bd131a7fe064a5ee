//! The snapshotter's socket of the process before, answered from the first moment on.
//!
//! containerd connected to it while no process was there, and waits about a second for a server's first bytes. What a start does before it knows
//! its snapshots (reaching the mesh, compiling policies, finding images) may take longer, and each container that is started
//! meanwhile would fail with `unavailable`. So connections are taken at once, and calls wait.

use anyhow::Context as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::descriptors::{Descriptors, Name};
use crate::ending::Ending;
use crate::node;
use crate::snapshots::{self, Snapshots};

/// What a process takes over before all else.
#[derive(Debug)]
pub struct Early {
    pub(crate) descriptors: Descriptors,
    /// Who waits for the snapshots; none: no socket was kept.
    pub(crate) snapshotter: Option<watch::Sender<Option<Snapshots>>>,
}

impl Early {
    /// Takes over what was kept; nothing is made anew.
    pub fn open(config: &Config, tasks: &TaskTracker, shutdown: &CancellationToken) -> anyhow::Result<Early> {
        let descriptors = Descriptors::kept_by(config.holder.as_deref()).context("cannot ask the holder")?;
        let kept = match &config.snapshotter {
            Some(socket) => node::listen_again(socket, Name::SnapshotterSocket, &descriptors)?,
            None => None,
        };
        let ending = Ending::new(tasks.clone(), shutdown.clone());
        let snapshotter = kept.map(|listener| snapshots::answer(listener, &ending, shutdown.clone()));
        Ok(Early { descriptors, snapshotter })
    }
}
