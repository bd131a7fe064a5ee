//! What is written, what is local, and a disk that is full.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use ::image::Digest;
use bytes::Bytes;

use super::{Event, Present, Scheduler};
use crate::downloads::plan::{Plan, Target, index_of};
use crate::downloads::writer::Written;
use crate::metrics;
use crate::objects::PutError;

/// How long reading must pause before what nobody came for is written.
const HELD_FOR: Duration = Duration::from_secs(1);
/// After the disk was full, how long nothing is written.
const DISK_FULL_FOR: Duration = Duration::from_secs(10);
/// What is written at once of one chunk, however often it stands in its objects: what one writer does in a moment, so that
/// others come between, and what may still be written after its image is removed.
const BATCH_BYTES: usize = 16 << 20;

/// Things to write, each once.
#[derive(Default)]
struct Targets {
    list: Vec<Target>,
    /// Several images have the same objects, and one image a chunk of them more than once.
    seen: HashSet<(Digest, u32)>,
}

impl Targets {
    fn add(&mut self, plan: &Plan, positions: &[u32]) {
        for target in positions.iter().flat_map(|position| plan.targets(*position)) {
            let key = match &target {
                Target::Whole { object, .. } => (*object, 0),
                Target::Part { place, piece, .. } => (place.digest, piece.index),
            };
            if self.seen.insert(key) {
                self.list.push(target);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// How many positions of a chunk are written at once.
fn batch(bytes: &Bytes) -> usize {
    BATCH_BYTES / bytes.len().clamp(1, BATCH_BYTES)
}

impl Scheduler {
    /// Queues what is not on the disk yet of an arrived chunk: all of it, or, where it stands at very many positions, those
    /// that reads needed, or else the first. The others follow in the background.
    pub(super) fn write(&mut self, chunk: Digest, bytes: Bytes) {
        if self.writing.contains(&chunk) {
            return;
        }
        let max = batch(&bytes);
        let mut targets = Targets::default();
        for present in &mut self.images {
            let touched = match present.plan.positions_of(&chunk).len() > max {
                true => present.image.touched_last(&chunk),
                false => Vec::new(),
            };
            let wanted = match touched.iter().any(|position| present.plan.needs(*position)) {
                true => touched,
                false => present.plan.next_of(&chunk, max),
            };
            targets.add(&present.plan, &wanted);
        }
        self.push(chunk, bytes, targets);
    }

    /// Goes on with a chunk that stands at more positions than are written at once, as far as the background may.
    fn write_on(&mut self, chunk: Digest, bytes: Bytes, now: Instant) {
        let max = batch(&bytes);
        let goes_on = self.options.background && !self.is_over_budget() && self.may_write(now);
        let (last_demand, quiet) = (self.last_demand, self.options.background_quiet);
        let mut targets = Targets::default();
        for present in &mut self.images {
            if !goes_on || present.background_due(now, last_demand, quiet).is_some() {
                present.plan.stop_spreading(&chunk);
            } else if targets.is_empty() && present.plan.positions_of(&chunk).len() > max {
                let next = present.plan.next_of(&chunk, max);
                targets.add(&present.plan, &next);
            }
        }
        self.push(chunk, bytes, targets);
    }

    /// Whether the background stops, as there is as much on the disk as there may be.
    pub(super) fn is_over_budget(&self) -> bool {
        self.options.disk_budget.is_some_and(|budget| self.shared.objects.used() >= budget)
    }

    fn push(&mut self, chunk: Digest, bytes: Bytes, targets: Targets) {
        let targets = targets.list;
        if targets.is_empty() {
            return;
        }
        if self.disk_full_until.is_some() || self.writing.bytes() >= 2 * self.options.buffers.writing as usize
        {
            metrics::write_skipped();
            return;
        }
        self.writing.push(chunk, bytes, targets);
    }

    /// Keeps what was asked for ahead of any reader until one comes.
    pub(super) fn hold(&mut self, chunk: Digest, bytes: Bytes) {
        for (chunk, bytes) in self.held.push(chunk, bytes) {
            // Most are read, and nobody could tell any more.
            for present in &self.images {
                present.plan.positions_of(&chunk).iter().take(1).for_each(|position| {
                    present.image.touch(*position);
                });
            }
            self.write(chunk, bytes);
        }
    }

    /// Writes what no reader came for when reading has paused.
    pub(super) fn write_held(&mut self, now: Instant) {
        if self.held.is_empty() {
            return;
        }
        let due = self.last_read.map_or(now, |read| read + HELD_FOR);
        if now < due {
            self.wake = self.wake.min(due);
            return;
        }
        while self.writing.bytes() < self.options.buffers.writing as usize
            && let Some((chunk, bytes)) = self.held.pop()
        {
            self.write(chunk, bytes);
        }
    }

    pub(super) fn written(&mut self, written: Written) {
        self.writing.done(&written);
        let (chunk, bytes, failed) = (written.chunk, written.bytes.clone(), written.failed.is_some());
        for present in &mut self.images {
            for (object, index) in &written.pieces {
                present.plan.mark_piece(object, *index);
            }
            for object in &written.whole {
                present.plan.mark_local(object);
            }
            for object in &written.spoiled {
                present.plan.forget_pieces(object);
                present.spoiled += u32::from(index_of(present.plan.map(), object).is_some());
            }
        }
        for object in &written.spoiled {
            tracing::error!(%object, "the chunks of an object do not make up the object; it stays remote");
        }
        match written.failed {
            None => {}
            Some(PutError::Full(object)) => {
                tracing::warn!(%object, "the disk is full: the background stops, reads go on from memory");
                self.shared.events.disk_full();
                self.disk_full_until = Some(Instant::now() + DISK_FULL_FOR);
            }
            Some(error) => {
                tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "failed to keep a chunk");
                self.images.iter_mut().for_each(Present::postpone);
            }
        }
        if !failed {
            self.write_on(chunk, bytes, Instant::now());
        }
        metrics::disk_used(self.shared.objects.used());
        self.note_progress();
    }

    pub(super) fn start_writers(&mut self) {
        while let Some(job) = self.writing.next() {
            let (objects, events) = (self.shared.objects.clone(), self.events.clone());
            self.tasks.spawn_blocking(move || {
                // The scheduler is gone only when the node shuts down.
                let _ = events.blocking_send(Event::Written(job.run(&objects)));
            });
        }
    }

    /// Publishes what is local, and notices images that became complete.
    pub(super) fn note_progress(&self) {
        for present in self.images.iter().filter(|present| present.scanned) {
            let before = present.image.progress.borrow().complete;
            present.image.note_local(&present.plan);
            if !before && present.plan.is_complete() {
                tracing::info!(image = %present.image.id, objects = present.plan.objects_local(), "image is complete");
                metrics::image_completed();
                let objects = self.shared.objects.clone();
                self.tasks.spawn_blocking(move || {
                    if let Err(error) = objects.sync() {
                        tracing::warn!(error = format!("{error:#}"), "failed to sync a complete image");
                    }
                });
            }
        }
        if self.images.iter().all(|present| present.plan.is_complete()) {
            self.shared.memory().clear();
        }
    }

    /// Whether what lower classes fetch could be kept.
    pub(super) fn may_write(&mut self, now: Instant) -> bool {
        if let Some(until) = self.disk_full_until {
            if now < until {
                self.wake = self.wake.min(until);
                return false;
            }
            self.disk_full_until = None;
        }
        self.writing.bytes() < self.options.buffers.writing as usize
    }
}
