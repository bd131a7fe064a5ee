//! Chunks between their arrival and the disk, in order. Pure.

use std::collections::{BTreeSet, HashMap, VecDeque};

use ::image::Digest;
use bytes::Bytes;
use tokio::sync::oneshot;

use super::plan::Target;
use super::writer::{Job, Written};

/// Jobs on blocking threads at a time: one large object's final check must not hold up small ones.
const WRITERS: usize = 2;

#[derive(Debug, Default)]
pub(super) struct Writing {
    queued: VecDeque<Job>,
    /// Queued and being written: reads are answered from here.
    chunks: HashMap<Digest, Bytes>,
    bytes: usize,
    running: usize,
    /// The number of the next job, and those of all that are not done.
    sequence: u64,
    undone: BTreeSet<u64>,
    /// Who waits for all jobs before a number.
    settling: Vec<(u64, oneshot::Sender<()>)>,
}

impl Writing {
    pub(super) fn push(&mut self, chunk: Digest, bytes: Bytes, targets: Vec<Target>) {
        self.bytes += bytes.len();
        self.chunks.insert(chunk, bytes.clone());
        self.undone.insert(self.sequence);
        self.queued.push_back(Job { sequence: self.sequence, chunk, bytes, targets });
        self.sequence += 1;
    }

    /// The next job to run now.
    pub(super) fn next(&mut self) -> Option<Job> {
        if self.running >= WRITERS {
            return None;
        }
        let job = self.queued.pop_front()?;
        self.running += 1;
        Some(job)
    }

    pub(super) fn done(&mut self, written: &Written) {
        self.running = self.running.saturating_sub(1);
        self.chunks.remove(&written.chunk);
        self.bytes = self.bytes.saturating_sub(written.bytes.len());
        self.undone.remove(&written.sequence);
        self.tell_settled();
    }

    pub(super) fn get(&self, chunk: &Digest) -> Option<Bytes> {
        self.chunks.get(chunk).cloned()
    }

    pub(super) fn contains(&self, chunk: &Digest) -> bool {
        self.chunks.contains_key(chunk)
    }

    /// Plain bytes that wait for the disk.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Tells `done` when everything that was pushed before is done.
    pub(super) fn settle(&mut self, done: oneshot::Sender<()>) {
        self.settling.push((self.sequence, done));
        self.tell_settled();
    }

    fn tell_settled(&mut self) {
        let oldest = self.undone.first().copied().unwrap_or(u64::MAX);
        for (_, done) in self.settling.extract_if(.., |(before, _)| *before <= oldest) {
            // Whoever asked may have stopped waiting.
            let _ = done.send(());
        }
    }
}
