//! Asks the fetcher to bring back what the store has lost or spoilt.
//!
//! One repair covers a whole image, however many of its chunks are found bad, and an image is repaired
//! at most once in [`INTERVAL`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bus::Bus;
use proto::RepairRequest;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Code;

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
    asked: Arc<Mutex<HashMap<Image, Asked>>>,
}

#[derive(Debug)]
struct Asked {
    at: Instant,
    /// Closed when the repair ended.
    ended: watch::Receiver<()>,
}

impl Repairs {
    pub(crate) fn new(bus: Bus, tasks: TaskTracker, shutdown: CancellationToken) -> Repairs {
        Repairs { bus, tasks, shutdown, asked: Arc::default() }
    }

    /// Has `image` repaired, unless that was asked for lately. What it returns is closed when the
    /// latest repair ended, however it ended.
    pub(crate) fn ask(&self, image: &Image) -> Option<watch::Receiver<()>> {
        let mut asked = lock(&self.asked);
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
        let asked = self.asked.clone();
        self.tasks.spawn(async move {
            let outcome = shutdown.run_until_cancelled(repair(&bus, &image)).await;
            if outcome == Some(Outcome::NobodyThere) {
                // Nothing was repaired, so the next who finds bad content asks again.
                lock(&asked).remove(&image);
            }
            drop(running);
        });
        Some(ended)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Tried,
    NobodyThere,
}

async fn repair(bus: &Bus, image: &Image) -> Outcome {
    let Image { project, manifest } = image;
    let request = RepairRequest { project: project.clone(), manifest_digest: manifest.clone() };
    tracing::warn!(project, manifest, "asking for a repair");
    // Once: a process waits, and is told that the content is bad rather than that nobody is there.
    match bus.call_once(request, REPAIR_MAX).await {
        Ok(reply) => tracing::info!(project, manifest, restored = reply.restored, "repaired"),
        Err(status) => {
            tracing::error!(project, manifest, error = status.message(), "the repair failed");
            if status.code() == Code::Unavailable {
                return Outcome::NobodyThere;
            }
        }
    }
    Outcome::Tried
}

fn lock(asked: &Mutex<HashMap<Image, Asked>>) -> MutexGuard<'_, HashMap<Image, Asked>> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use bus::Answer;
    use proto::RepairReply;
    use tokio::sync::mpsc;

    use super::*;

    fn image(manifest: &str) -> Image {
        Image { project: "default".to_owned(), manifest: manifest.to_owned() }
    }

    async fn ended(mut repair: watch::Receiver<()>) {
        while repair.changed().await.is_ok() {}
    }

    #[tokio::test]
    async fn an_image_is_repaired_once_in_a_while() {
        let bus = Bus::in_process();
        let repairs = Repairs::new(bus.clone(), TaskTracker::new(), CancellationToken::new());
        // Nobody is there yet: that was no repair.
        ended(repairs.ask(&image("one")).unwrap()).await;

        let (sender, mut received) = mpsc::unbounded_channel();
        let _fetcher = bus
            .answer(Answer { in_flight: 1, instance: None }, move |request: RepairRequest| {
                sender.send(request.manifest_digest).unwrap();
                std::future::ready(Ok(RepairReply::default()))
            })
            .await
            .unwrap();
        for name in ["one", "one", "two", "one"] {
            ended(repairs.ask(&image(name)).unwrap()).await;
        }
        assert!(repairs.ask(&image("")).is_none());
        assert_eq!(
            (received.recv().await.unwrap(), received.recv().await.unwrap()),
            ("one".into(), "two".into())
        );
        assert!(received.try_recv().is_err());
    }
}
