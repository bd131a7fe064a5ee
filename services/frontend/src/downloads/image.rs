//! One image that is present on the node, as readers and the scheduler share it.
//!
//! Readers note what they touch; the scheduler notes what arrives. Both under short locks of their own.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use image::{Digest, Map, Profile};
use proto::read_trace::ChunkClass;
use proto::{DownloadProgress, ReadTrace};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::plan::Plan;
use crate::content::{Class, Content};
use crate::objects::Bits;

/// Arrivals kept of one image: 32 bytes each. A start has a few thousand; the background of a huge
/// image is not worth more.
const TRACE_MAX: usize = 8192;

/// Touches that are looked through for where a chunk was needed: more than reads wait at once.
const LAST_TOUCHED: usize = 1024;

/// Names a present image: its manifest digest.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId(Arc<str>);

/// What is needed to bring an image here.
#[derive(Debug)]
pub struct NewImage {
    pub id: ImageId,
    pub map: Arc<Map>,
    /// What earlier starts read; part of what this one is reported to read.
    pub profile: Profile,
    pub prefetch: Prefetch,
    pub content: Content,
    /// When the mount was asked for: where the trace begins.
    pub asked: Instant,
}

/// What is fetched of an image without being read first.
#[derive(Clone, Debug)]
pub struct Prefetch {
    /// At once, in this order.
    pub chunks: Vec<Digest>,
    /// Everything else follows, when the node has backgrounds at all.
    pub background: bool,
    /// Stored bytes a second of this image's background, below the node's own cap. `chunks` are not held back.
    pub bandwidth: Option<u64>,
}

impl Prefetch {
    /// What earlier starts read, and then the rest: where no policy has another plan.
    pub fn learned(profile: &Profile) -> Prefetch {
        Prefetch { chunks: profile.chunks.clone(), background: true, bandwidth: None }
    }
}

#[derive(Debug)]
pub(super) struct Image {
    pub(super) id: ImageId,
    pub(super) map: Arc<Map>,
    pub(super) content: Content,
    pub(super) progress: watch::Sender<DownloadProgress>,
    /// Ends every request that is made for this image.
    pub(super) removed: CancellationToken,
    pub(super) background: bool,
    pub(super) bandwidth: Option<u64>,
    profile: Profile,
    asked: Instant,
    touches: Mutex<Touches>,
    arrivals: Mutex<Vec<Arrival>>,
}

/// The positions that reads needed, in the order in which they first did.
#[derive(Debug)]
struct Touches {
    seen: Bits,
    order: Vec<u32>,
}

/// One chunk's arrival.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    pub(super) asked: Instant,
    pub(super) position: u32,
    pub(super) stored_len: u32,
    pub(super) class: Class,
    pub(super) waiters: u32,
    pub(super) arrived: Instant,
}

impl ImageId {
    pub fn new(manifest_digest: &str) -> ImageId {
        ImageId(manifest_digest.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ImageId {
    fn from(manifest_digest: &str) -> ImageId {
        ImageId::new(manifest_digest)
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ImageId({})", self.0)
    }
}

impl Image {
    pub(super) fn new(new: NewImage) -> Image {
        let progress = DownloadProgress {
            objects_total: new.map.objects.len() as u64,
            bytes_total: new.map.plain_bytes(),
            ..DownloadProgress::default()
        };
        let touches = Touches { seen: Bits::new(new.map.chunks.len()), order: Vec::new() };
        Image {
            id: new.id,
            map: new.map,
            content: new.content,
            progress: watch::Sender::new(progress),
            removed: CancellationToken::new(),
            background: new.prefetch.background,
            bandwidth: new.prefetch.bandwidth,
            profile: new.profile,
            asked: new.asked,
            touches: Mutex::new(touches),
            arrivals: Mutex::default(),
        }
    }

    /// A read needs the chunk at `position`; tells whether none did before.
    pub(super) fn touch(&self, position: u32) -> bool {
        let mut touches = lock(&self.touches);
        let first = touches.seen.set(position as usize);
        if first {
            touches.order.push(position);
        }
        first
    }

    /// The positions of a chunk among those that were needed last.
    pub(super) fn touched_last(&self, chunk: &Digest) -> Vec<u32> {
        let touches = lock(&self.touches);
        let last = touches.order.iter().rev().take(LAST_TOUCHED);
        last.copied().filter(|position| self.map.chunks[*position as usize].digest == *chunk).collect()
    }

    pub(super) fn was_touched(&self, position: u32) -> bool {
        self.touched(position..position + 1) == 1
    }

    /// How many of these positions reads needed.
    pub(super) fn touched(&self, positions: Range<u32>) -> u32 {
        let touches = lock(&self.touches);
        positions.map(|position| u32::from(touches.seen.get(position as usize))).sum()
    }

    pub(super) fn note_arrival(&self, arrival: Arrival) {
        let mut arrivals = lock(&self.arrivals);
        if arrivals.len() < TRACE_MAX {
            arrivals.push(arrival);
        }
        drop(arrivals);
        let stored_len = u64::from(arrival.stored_len);
        self.progress.send_modify(|progress| {
            progress.received_bytes += stored_len;
            match arrival.class {
                Class::Demand => progress.demand_bytes += stored_len,
                Class::Prefetch => progress.prefetch_bytes += stored_len,
                Class::Background => {}
            }
        });
    }

    pub(super) fn note_local(&self, plan: &Plan) {
        self.progress.send_modify(|progress| {
            progress.objects_local = plan.objects_local();
            progress.bytes_local = plan.bytes_local();
            progress.complete = plan.is_complete();
        });
    }

    pub(super) fn trace(&self) -> Vec<ReadTrace> {
        let since_asked = |instant: Instant| instant.saturating_duration_since(self.asked).as_micros() as u64;
        let arrivals = lock(&self.arrivals);
        let trace = arrivals.iter().map(|arrival| ReadTrace {
            at_us: since_asked(arrival.arrived),
            took_us: arrival.arrived.saturating_duration_since(arrival.asked).as_micros() as u64,
            chunk: self.map.chunks[arrival.position as usize].digest.as_bytes().to_vec(),
            stored_bytes: arrival.stored_len,
            class: match arrival.class {
                Class::Demand => ChunkClass::Demand,
                Class::Prefetch => ChunkClass::Prefetch,
                Class::Background => ChunkClass::Background,
            }
            .into(),
            waiters: arrival.waiters,
        });
        trace.collect()
    }

    /// What this start is known to have read, in order. Reads of objects that were local before their
    /// first open are the kernel's own business and not seen here; what the earlier profile brought is
    /// therefore kept, in its order, and what was missing in it follows.
    pub(super) fn profile(&self) -> Profile {
        let touches = lock(&self.touches);
        let touched = touches.order.iter().map(|position| self.map.chunks[*position as usize].digest);
        let mut once = HashSet::new();
        let chunks: Vec<Digest> =
            self.profile.chunks.iter().copied().chain(touched).filter(|chunk| once.insert(*chunk)).collect();
        Profile { starts: 1, chunks }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
