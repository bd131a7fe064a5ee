//! Pulls that are under way, and what the mesh said about their images.
//!
//! All layers of an image are asked for one after the other: the mesh is asked for the first of them only.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use image::ImageRecord;
use proto::ResolveRequest;
use tonic::Status;

use super::decide::{Ordinary, Reason, decide};
use super::ledger::{Kind, Streamed};
use super::wanted::{Image, Layer, Place};
use super::{LedgerError, Snapshots};
use crate::ending::cut_off;
use crate::images::Need;
use crate::metrics;

/// How long an answer is good for the next layer of the same pull.
const ANSWER_KEPT: Duration = Duration::from_secs(60);
/// How long a telling of an image is not repeated for layers above: as long as fetching the layer between may take.
const TOLD_KEPT: Duration = Duration::from_secs(600);
/// Answers that are kept at once; the oldest goes first.
const ANSWERS_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Pulls {
    /// How many requests are under way for each image.
    pulling: Arc<Mutex<BTreeMap<String, usize>>>,
    answers: Mutex<BTreeMap<Key, (Instant, Arc<ImageRecord>)>>,
    /// Images of which an operator was just told that they do not stream, and when.
    told: Mutex<BTreeMap<Key, Instant>>,
}

/// Reference as asked for, and manifest digest where it was said.
type Key = (String, Option<String>);

/// Keeps an image from being evicted until dropped.
#[derive(Debug)]
pub(super) struct Pull {
    manifest: String,
    pulling: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Pulls {
    pub(super) fn begin(&self, manifest: &str) -> Pull {
        *lock(&self.pulling).entry(manifest.to_owned()).or_default() += 1;
        Pull { manifest: manifest.to_owned(), pulling: self.pulling.clone() }
    }

    pub(super) fn add_to(&self, claims: &mut BTreeMap<String, bool>) {
        for manifest in lock(&self.pulling).keys() {
            claims.entry(manifest.clone()).or_insert(false);
        }
    }

    fn answer(&self, image: &Image) -> Option<Arc<ImageRecord>> {
        let mut answers = lock(&self.answers);
        answers.retain(|_, (at, _)| at.elapsed() < ANSWER_KEPT);
        answers.get(&key(image)).map(|(_, record)| record.clone())
    }

    fn keep(&self, image: &Image, record: &Arc<ImageRecord>) {
        let mut answers = lock(&self.answers);
        make_room(&mut answers, |(at, _)| *at);
        answers.insert(key(image), (Instant::now(), record.clone()));
    }

    /// Notes that an operator is told of this image now. Whether that is the first time for a while.
    fn first_told(&self, image: Option<&Image>) -> bool {
        let mut told = lock(&self.told);
        told.retain(|_, at| at.elapsed() < TOLD_KEPT);
        make_room(&mut told, |at| *at);
        told.insert(image.map(key).unwrap_or_default(), Instant::now()).is_none()
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        let mut pulling = lock(&self.pulling);
        if let Some(count) = pulling.get_mut(&self.manifest) {
            *count -= 1;
            if *count == 0 {
                pulling.remove(&self.manifest);
            }
        }
    }
}

impl Snapshots {
    /// This layer and those above it, if their image streams. Why not is written down here.
    pub(super) async fn decide(
        &self,
        layer: &Layer,
        parent: Option<&str>,
    ) -> Result<Option<Vec<Place>>, Status> {
        match self.try_to_stream(layer, parent).await? {
            Ok(places) => Ok(Some(places)),
            Err(_) if self.shared.images.is_ending() => Err(cut_off()),
            Err(ordinary) => {
                self.tell(layer, &ordinary);
                Ok(None)
            }
        }
    }

    fn tell(&self, layer: &Layer, ordinary: &Ordinary) {
        let (reason, message) = (ordinary.reason.code(), &ordinary.message);
        metrics::layer_ordinary(reason);
        let first = self.shared.pulls.first_told(layer.image.as_ref());
        let image = layer.image.as_ref();
        let (image, manifest) = image
            .map_or(("", ""), |image| (&*image.reference, image.manifest.as_deref().unwrap_or_default()));
        let layer_id = &layer.target;
        // All layers above the first that is ordinary are, too: one telling for each pull.
        if ordinary.reason == Reason::OverOrdinary && !first {
            return tracing::debug!(image, layer_id, reason, message);
        }
        tracing::warn!(image, layer_id, reason, message, "pulled without streaming");
        self.shared.images.events().ordinary(image, manifest, layer_id, ordinary);
    }

    async fn try_to_stream(
        &self,
        layer: &Layer,
        parent: Option<&str>,
    ) -> Result<Result<Vec<Place>, Ordinary>, Status> {
        if let Some(parent) = parent
            && self.stat(parent.to_owned()).await?.streamed.is_none()
        {
            return Ok(Err(Ordinary::new(
                Reason::OverOrdinary,
                format!(
                    "the layer below, {parent}, is ordinary: this pull's, or of an image that was pulled before"
                ),
            )));
        }
        if let Some(ordinary) = self.shared.images.ordinary() {
            return Ok(Err(ordinary));
        }
        let Some(image) = &layer.image else {
            let hint = "containerd hands no annotations on: set disable_snapshot_annotations = false, and \
                        enable_remote_snapshot_annotations = \"true\" where the transfer service pulls";
            return Ok(Err(Ordinary::new(Reason::NoAnnotations, hint)));
        };
        Ok(decide(layer, parent, self.record_of(image, Need::OrPulled).await))
    }

    /// The layer as an earlier pull recorded it, or the first request of this one.
    pub(super) async fn known(&self, target: &str, parent: Option<&str>) -> Result<Option<Streamed>, Status> {
        let (target, parent) = (target.to_owned(), parent.map(str::to_owned));
        self.with_ledger(move |shared| match shared.ledger().get(&target) {
            Ok(found) if found.kind == Kind::Committed && found.parent == parent => {
                Ok(found.streamed.clone())
            }
            Ok(_) | Err(LedgerError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        })
        .await
    }

    pub(super) async fn record_of(&self, image: &Image, need: Need) -> Result<Arc<ImageRecord>, Status> {
        // It may have been removed since.
        if let Some(record) = self.shared.pulls.answer(image)
            && self.shared.images.stays(&record.manifest_digest).await
        {
            return Ok(record);
        }
        let request = ResolveRequest { reference: image.pinned(), ..ResolveRequest::default() };
        let record = self.shared.images.stream(request, need).await?;
        if image.manifest.as_ref().is_some_and(|manifest| record.manifest_digest != *manifest) {
            return Err(Status::internal(format!(
                "{} was resolved to {}",
                image.pinned(),
                record.manifest_digest
            )));
        }
        self.shared.pulls.keep(image, &record);
        Ok(record)
    }
}

/// Takes the oldest out of a full table.
fn make_room<T>(table: &mut BTreeMap<Key, T>, at: impl Fn(&T) -> Instant) {
    if table.len() >= ANSWERS_MAX
        && let Some(oldest) = table.iter().min_by_key(|(_, value)| at(value)).map(|(key, _)| key.clone())
    {
        table.remove(&oldest);
    }
}

fn key(image: &Image) -> Key {
    (image.reference.clone(), image.manifest.clone())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one insertion or removal.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
