//! What starts of an image read crosses the network again and again, and each time somebody waits for it: once it is known, it
//! is compressed again, as small as it gets.
//!
//! One image at a time, on a thread that gets what others leave of the processors. How far an image has come stands in its history;
//! a fetcher that ends in the middle leaves the rest to whoever hears of the image next. Nothing depends on it: what fails is
//! logged, and nothing else.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use image::Digest;
use proto::RefreshRequest;
use store::ProjectStore;
use tokio::sync::{Semaphore, oneshot};

use super::Service;
use super::starts::history;
use crate::profile::History;
use crate::recompress::{Recompressed, recompress};

/// Chunks between two looks at the history: what a fetcher that ends loses.
const BATCH: usize = 64;
/// Images that wait for their turn. One that is not taken is taken the next time that it is heard of.
const WAITING_MAX: usize = 1024;
/// How long caches have to say that they heard; nobody needs their answer.
const REFRESH_WAIT: Duration = Duration::from_millis(500);
/// Lower than that of everything else on the machine, see nice(2).
const NICENESS: i32 = 19;

/// Whose turn it is.
#[derive(Debug)]
pub(super) struct Recompressing {
    /// Of zstd; 0: nothing is compressed again.
    level: i32,
    turn: Semaphore,
    /// Project and manifest of images that are at work or wait.
    known: Mutex<BTreeSet<(String, String)>>,
}

/// What has been gained, for the log.
#[derive(Default)]
struct Gain {
    chunks: usize,
    before: usize,
    after: usize,
}

impl Recompressing {
    pub(super) fn new(level: i32) -> Recompressing {
        Recompressing { level, turn: Semaphore::new(1), known: Mutex::default() }
    }

    /// Whether the image was not known; it is now.
    fn enter(&self, image: &(String, String)) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.len() < WAITING_MAX && known.insert(image.clone())
    }

    fn leave(&self, image: &(String, String)) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(image);
    }
}

impl Service {
    /// Has what starts of the image read compressed again, as far as that is not done.
    pub(super) fn recompress_later(
        self: &Arc<Self>,
        project: &ProjectStore,
        manifest: &str,
        known: &History,
    ) {
        let image = (project.name().to_owned(), manifest.to_owned());
        let wanted = self.recompressing.level > 0 && known.starts() > 0 && !known.to_recompress().is_empty();
        if !wanted || !self.recompressing.enter(&image) {
            return;
        }
        let (service, project) = (self.clone(), project.clone());
        self.tasks.spawn(async move {
            let work = service.recompress_image(&project, &image.1);
            if let Some(Err(error)) = service.shutdown.run_until_cancelled(work).await {
                let error = format!("{error:#}");
                tracing::warn!(
                    manifest = image.1,
                    error,
                    "what its starts read stays as it was compressed first"
                );
            }
            service.recompressing.leave(&image);
        });
    }

    async fn recompress_image(&self, project: &ProjectStore, manifest: &str) -> anyhow::Result<()> {
        let _turn = self.recompressing.turn.acquire().await?;
        let mut gain = Gain::default();
        loop {
            let mut batch = history(project, manifest).await?.to_recompress();
            batch.truncate(BATCH);
            if batch.is_empty() {
                break;
            }
            self.recompress_batch(project, &batch, &mut gain).await?;
            // Starts may have been reported meanwhile.
            let mut history = history(project, manifest).await?;
            history.recompressed(&batch);
            project.put_profile(manifest, history.encode()?.into()).await?;
        }
        let Gain { chunks, before, after } = gain;
        tracing::info!(manifest, chunks, before, after, "what its starts read is stored as small as it gets");
        Ok(())
    }

    /// Afterwards each of them is as small as it gets, or cannot be read: that shows where somebody needs it.
    async fn recompress_batch(
        &self,
        project: &ProjectStore,
        batch: &[Digest],
        gain: &mut Gain,
    ) -> anyhow::Result<()> {
        let mut renewed = Vec::new();
        for digest in batch {
            let stored = match project.chunk(*digest).await {
                Err(error) if error.is_not_found() => continue,
                stored => stored?,
            };
            let (digest, before, level) = (*digest, stored.len(), self.recompressing.level);
            match aside(move || recompress(&digest, &stored, level)).await? {
                Ok(Recompressed::Unchanged) => {}
                Ok(Recompressed::Smaller(again)) => {
                    (gain.chunks, gain.before) = (gain.chunks + 1, gain.before + before);
                    gain.after += again.len();
                    metrics::counter!("sluice_fetcher_recompressed_chunks_total").increment(1);
                    metrics::counter!("sluice_fetcher_recompressed_saved_bytes_total")
                        .increment((before - again.len()) as u64);
                    project.replace_chunk(digest, again.into()).await?;
                    renewed.push(digest.as_bytes().to_vec());
                }
                Err(error) => tracing::warn!(chunk = %digest, %error, "a chunk cannot be compressed again"),
            }
        }
        if !renewed.is_empty() {
            let request = RefreshRequest { project: project.name().to_owned(), chunks: renewed };
            self.bus.gather(request, REFRESH_WAIT).await?;
        }
        Ok(())
    }
}

/// Runs `work` on a thread of its own, which gets only what the others leave of the processors. Not one of the runtime's: what
/// was made nice stays so.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new().name("recompress".to_owned()).spawn(move || {
        if let Err(error) = rustix::process::nice(NICENESS) {
            tracing::debug!(%error, "compressing again at the priority of everything else");
        }
        // Nobody may be waiting any more.
        let _ = sender.send(work());
    })?;
    receiver.await.context("the thread ended")
}
