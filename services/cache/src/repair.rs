//! Asks the fetcher to bring back what the store has lost or spoilt.
//!
//! One repair covers a whole image, however many of its chunks are found bad, and an image is repaired
//! at most once in [`INTERVAL`].

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bus::Bus;
use proto::RepairRequest;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::meters;

/// Between two repairs of one image: reading an image's source again is expensive.
const INTERVAL: Duration = Duration::from_secs(60);
/// Images whose repairs are remembered; when so many are broken, asking for more helps nobody.
const IMAGES_MAX: usize = 256;
/// A repair may have to download every layer again.
const REPAIR_MAX: Duration = Duration::from_secs(600);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Image {
    pub(crate) project: String,
    pub(crate) manifest: String,
}

#[derive(Debug)]
pub(crate) struct Repairs {
    bus: Bus,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    asked: Mutex<HashMap<Image, Asked>>,
}

#[derive(Debug)]
struct Asked {
    at: Instant,
    /// Closed when the repair ended.
    ended: watch::Receiver<()>,
}

impl Repairs {
    pub(crate) fn new(bus: Bus, tasks: TaskTracker, shutdown: CancellationToken) -> Repairs {
        Repairs { bus, tasks, shutdown, asked: Mutex::default() }
    }

    /// Has `image` repaired, unless that was asked for lately. What it returns is closed when the
    /// latest repair ended, however it ended.
    pub(crate) fn ask(&self, image: &Image) -> Option<watch::Receiver<()>> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|_, repair| repair.at.elapsed() < INTERVAL || repair.ended.has_changed().is_ok());
        if let Some(repair) = asked.get(image) {
            return Some(repair.ended.clone());
        }
        if image.manifest.is_empty() || asked.len() >= IMAGES_MAX {
            return None;
        }
        let (running, ended) = watch::channel(());
        asked.insert(image.clone(), Asked { at: Instant::now(), ended: ended.clone() });
        metrics::counter!(meters::REPAIRS).increment(1);
        let (bus, shutdown, image) = (self.bus.clone(), self.shutdown.clone(), image.clone());
        self.tasks.spawn(async move {
            shutdown.run_until_cancelled(repair(&bus, &image)).await;
            drop(running);
        });
        Some(ended)
    }
}

async fn repair(bus: &Bus, image: &Image) {
    let Image { project, manifest } = image;
    let request = RepairRequest { project: project.clone(), manifest_digest: manifest.clone() };
    tracing::warn!(project, manifest, "asking for a repair");
    match bus.call(request, REPAIR_MAX).await {
        Ok(reply) => tracing::info!(project, manifest, restored = reply.restored, "repaired"),
        Err(status) => tracing::error!(project, manifest, error = status.message(), "the repair failed"),
    }
}
