//! How far an import is, for everyone who follows it.
//!
//! Written by the import's tasks and threads, read through a watch channel: a slow reader sees the
//! latest state, never a backlog.

use std::sync::Arc;

use proto::layer_progress::State;
use proto::{ImportProgress, LayerProgress};
use tokio::sync::watch;

use crate::source::LayerDescriptor;

/// Compressed bytes between two revisions of one layer: a bar that moves, not one that costs.
const STEP_BYTES: u64 = 256 * 1024;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    state: Arc<watch::Sender<ImportProgress>>,
}

/// One layer's part of it.
#[derive(Debug)]
pub(super) struct LayerMeter {
    progress: Progress,
    index: usize,
    /// Read, and not shown yet.
    pending: u64,
}

impl Progress {
    pub(crate) fn new() -> Progress {
        let first = ImportProgress { revision: 1, ..ImportProgress::default() };
        Progress { state: Arc::new(watch::Sender::new(first)) }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<ImportProgress> {
        self.state.subscribe()
    }

    /// Shows the layers, in the image's order; `known` ones need no download.
    pub(super) fn begin<'a>(&self, layers: impl Iterator<Item = (&'a LayerDescriptor, bool)>) {
        self.change(|state| {
            for (layer, known) in layers {
                let size = layer.size;
                if !known {
                    state.compressed_total = state.compressed_total.saturating_add(size);
                }
                state.layers.push(LayerProgress {
                    digest: layer.digest.clone(),
                    size,
                    done: if known { size } else { 0 },
                    state: if known { State::Known } else { State::Waiting }.into(),
                });
            }
        });
    }

    /// Shows whether others are imported first.
    pub(super) fn queued(&self, queued: bool) {
        self.change(|state| state.queued = queued);
    }

    /// Shows plain bytes that were scanned.
    pub(super) fn plain(&self, bytes: u64) {
        self.change(|state| state.plain_done += bytes);
    }

    pub(super) fn layer(&self, index: usize) -> LayerMeter {
        let meter = LayerMeter { progress: self.clone(), index, pending: 0 };
        meter.show(State::Reading);
        meter
    }

    fn change(&self, change: impl FnOnce(&mut ImportProgress)) {
        self.state.send_modify(|state| {
            change(state);
            state.revision += 1;
        });
    }
}

impl LayerMeter {
    pub(super) fn read(&mut self, bytes: u64) {
        self.pending += bytes;
        if self.pending >= STEP_BYTES {
            self.flush();
        }
    }

    pub(super) fn done(mut self) {
        self.flush();
        self.show(State::Done);
    }

    fn flush(&mut self) {
        let bytes = std::mem::take(&mut self.pending);
        self.progress.change(|state| {
            state.compressed_done += bytes;
            if let Some(layer) = state.layers.get_mut(self.index) {
                layer.done += bytes;
            }
        });
    }

    fn show(&self, shown: State) {
        self.progress.change(|state| {
            if let Some(layer) = state.layers.get_mut(self.index) {
                layer.state = shown.into();
            }
        });
    }
}
