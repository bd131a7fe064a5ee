//! What starts of an image read crosses the network again and again, and each time somebody waits for it: once it is known, it
//! is compressed again, as small as it gets.
//!
//! One image at a time, and one fetcher for an image, on a thread that gets what others leave of the processors. How far an image
//! has come stands in its history;
//! a fetcher that ends in the middle leaves the rest to whoever hears of the image next. Nothing depends on it: what fails is
//! logged, and nothing else.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use image::{Digest, Profile};
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
/// How long after its end an image is another fetcher's.
const LEASE: Duration = Duration::from_secs(60);
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
        profile: &Profile,
    ) {
        let image = (project.name().to_owned(), manifest.to_owned());
        let wanted =
            self.recompressing.level > 0 && known.starts() > 0 && !known.to_recompress(profile).is_empty();
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
        let name = format!("recompress {} {manifest}", project.name());
        // Another fetcher is at it.
        let Some(_lease) = self.bus.lease(&name, LEASE).await? else { return Ok(()) };
        let mut gain = Gain::default();
        // Once: what is reported meanwhile waits for the next turn, as do other images.
        let known = history(project, manifest).await?;
        let pending = known.to_recompress(&known.profile());
        for batch in pending.chunks(BATCH) {
            let done = self.recompress_batch(project, batch, &mut gain).await?;
            // Starts may have been reported meanwhile.
            let mut history = history(project, manifest).await?;
            history.recompressed(&done);
            project.put_profile(manifest, history.encode()?.into()).await?;
        }
        let Gain { chunks, before, after } = gain;
        tracing::info!(manifest, chunks, before, after, "what its starts read is stored as small as it gets");
        Ok(())
    }

    /// Those that are as small as they get now. One that cannot be read is not: where somebody needs it, it is repaired.
    async fn recompress_batch(
        &self,
        project: &ProjectStore,
        batch: &[Digest],
        gain: &mut Gain,
    ) -> anyhow::Result<Vec<Digest>> {
        let mut done = Vec::new();
        for digest in batch {
            let stored = match project.chunk(*digest).await {
                Err(error) if error.is_not_found() => continue,
                stored => stored?,
            };
            let (digest, before, level) = (*digest, stored.len(), self.recompressing.level);
            match aside(move || recompress(&digest, &stored, level)).await? {
                Ok(Recompressed::Unchanged) => done.push(digest),
                Ok(Recompressed::Smaller(again)) => {
                    gain.add(before, again.len());
                    project.replace_chunk(digest, again.into()).await?;
                    done.push(digest);
                }
                Err(error) => tracing::warn!(chunk = %digest, %error, "a chunk cannot be compressed again"),
            }
        }
        // All of them: what was replaced by a fetcher that ended before it said so is among those that did not change.
        let chunks = done.iter().map(|digest| digest.as_bytes().to_vec()).collect();
        let request = RefreshRequest { project: project.name().to_owned(), chunks };
        if let Err(error) = self.bus.gather(request, REFRESH_WAIT).await {
            tracing::warn!(%error, "caches go on with the larger frames that they hold");
        }
        Ok(done)
    }

    /// A repair brings chunks back as imports store them.
    pub(super) async fn recompress_repaired(self: &Arc<Self>, project: &ProjectStore, manifest: &str) {
        let forget = async {
            let mut history = history(project, manifest).await?;
            history.forget_recompressed();
            project.put_profile(manifest, history.encode()?.into()).await?;
            anyhow::Ok(history)
        };
        match forget.await {
            Ok(history) => self.recompress_later(project, manifest, &history, &history.profile()),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(manifest, error, "what was repaired stays as it was compressed first");
            }
        }
    }
}

impl Gain {
    fn add(&mut self, before: usize, after: usize) {
        (self.chunks, self.before, self.after) = (self.chunks + 1, self.before + before, self.after + after);
        metrics::counter!("sluice_fetcher_recompressed_chunks_total").increment(1);
        metrics::counter!("sluice_fetcher_recompressed_saved_bytes_total").increment((before - after) as u64);
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
