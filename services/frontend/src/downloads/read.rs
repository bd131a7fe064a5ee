//! Answers a read: from memory, from the disk, or by waiting for chunks.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use image::map::Slice;
use image::record::ObjectPlace;
use image::{Digest, Map};
use proto::quota::Refused;
use tokio::sync::oneshot;

use super::Downloads;
use super::image::Image;
use super::scheduler::Demand;
use crate::content::FetchError;
use crate::metrics;
use crate::objects::Objects;

/// A read that takes longer is told to operators.
const STALLED: Duration = Duration::from_secs(5);

/// Why a read failed, after everything within the bounds was tried. Never zeros instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("no image of this node names object {0}")]
    Unknown(Digest),
    #[error("object {object} cannot be read")]
    Fetch { object: Digest, source: FetchError },
    #[error("object {object} cannot be read from the disk: {reason}")]
    Disk { object: Digest, reason: String },
    /// This process ends: no failure, the next one goes on.
    #[error("the downloads stopped while object {0} was waited for")]
    Stopped(Digest),
}

/// What is looked for in an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    Data,
    Hole,
}

/// What a read answers: the bytes of its slices, and zeros where the map says that there is a hole. A map that was checked says
/// so: nothing else becomes zeros.
struct Frame {
    start: u64,
    len: usize,
    /// Where each slice's bytes go.
    offsets: Vec<u64>,
    has_holes: bool,
}

impl Downloads {
    /// Up to `len` bytes of an object at `offset`: fewer only at its end. Waits until they are here.
    pub async fn read(&self, object: Digest, offset: u64, len: usize) -> Result<Bytes, ReadError> {
        let read = self.try_read(object, offset, len).await;
        if let Err(error) = &read
            && !matches!(error, ReadError::Stopped(_))
        {
            metrics::read_failed();
            self.tell_failed(&object, offset, len, error);
        }
        read
    }

    fn tell_failed(&self, object: &Digest, offset: u64, len: usize, error: &ReadError) {
        let image = self.find(object).map(|(image, _)| image.id.to_string()).unwrap_or_default();
        self.shared.events.read_failed(&image, object, offset, len, error);
    }

    async fn try_read(&self, object: Digest, offset: u64, len: usize) -> Result<Bytes, ReadError> {
        let Some((image, place)) = self.find(&object) else {
            return self.read_whole(object, offset, len).await;
        };
        let end = offset.saturating_add(len as u64);
        let slices: Vec<Slice> = image.map.slices(&place, offset..end).collect();
        let frame = Frame::new(&place, offset..end, &slices);
        let touched_first =
            slices.iter().map(|slice| image.touch(slice.chunk).then_some(slice)).fold(None, Option::or);
        if let Some(parts) = self.read_memory(&image, &slices) {
            metrics::read("memory");
            self.hint(&image, touched_first);
            return Ok(frame.fill(parts));
        }
        let local = self.read_disk(image.map.clone(), place, slices.clone()).await;
        if let Some(parts) = local.iter().cloned().collect() {
            metrics::read("disk");
            self.hint(&image, touched_first);
            return Ok(frame.fill(parts));
        }
        metrics::read("network");
        let waiting = self.await_network(&image, &object, slices, local);
        let read = self.tell_when_stalled(waiting, &image, &object, (offset, len)).await;
        read.map(|parts| frame.fill(parts))
    }

    /// What `waiting` comes to; while it takes long, it is told, once.
    async fn tell_when_stalled<T>(
        &self,
        waiting: impl Future<Output = T>,
        image: &Image,
        object: &Digest,
        (offset, len): (u64, usize),
    ) -> T {
        let mut waiting = std::pin::pin!(waiting);
        if let Ok(done) = tokio::time::timeout(STALLED, &mut waiting).await {
            return done;
        }
        self.shared.events.read_stalls(&image.id.to_string(), object, offset, len, STALLED);
        waiting.await
    }

    /// Where in an object data, or a hole, begins at or after `offset`; its length when none does.
    pub async fn seek(&self, object: Digest, offset: u64, what: Seek) -> Result<u64, ReadError> {
        let Some((image, place)) = self.find(&object) else {
            let objects = self.objects().clone();
            let sought =
                tokio::task::spawn_blocking(move || objects.seek(&object, offset, what == Seek::Hole));
            let sought = sought.await.map_err(|_| ReadError::Stopped(object))?;
            return sought.map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => ReadError::Unknown(object),
                _ => ReadError::Disk { object, reason: error.to_string() },
            });
        };
        let Some(sparse) = image.map.sparse(&object) else {
            return Ok(if what == Seek::Data { offset } else { place.len });
        };
        let next = sparse.extents.partition_point(|extent| extent.end() <= offset);
        Ok(match (sparse.extents.get(next), what) {
            (Some(extent), Seek::Data) => extent.offset.max(offset),
            (Some(extent), Seek::Hole) if extent.offset <= offset => extent.end(),
            (None, Seek::Data) => place.len,
            (_, Seek::Hole) => offset.min(place.len),
        })
    }

    /// Of an image that is complete, nothing is known here any more; its objects stand on the disk.
    async fn read_whole(&self, object: Digest, offset: u64, len: usize) -> Result<Bytes, ReadError> {
        let objects = self.objects().clone();
        let read = tokio::task::spawn_blocking(move || objects.read(&object, offset, len)).await;
        match read {
            Ok(Ok(Some(bytes))) => {
                metrics::read("disk");
                Ok(bytes.into())
            }
            Ok(Ok(None)) => Err(ReadError::Unknown(object)),
            Ok(Err(error)) => Err(ReadError::Disk { object, reason: error.to_string() }),
            Err(ended) if ended.is_panic() => {
                Err(ReadError::Disk { object, reason: "the read panicked".to_owned() })
            }
            Err(_) => Err(ReadError::Stopped(object)),
        }
    }

    /// Tells the scheduler of a first read that found its chunk here: what comes after it may not be.
    fn hint(&self, image: &Arc<Image>, touched_first: Option<&Slice>) {
        if let Some(slice) = touched_first {
            // Nothing is lost when the queue is full: the reader asks when it comes there.
            let _ =
                self.demands.try_send(Demand { image: image.clone(), position: slice.chunk, waiter: None });
        }
    }

    /// The newest image that names the object, and its place there.
    fn find(&self, object: &Digest) -> Option<(Arc<Image>, ObjectPlace)> {
        self.images().iter().rev().find_map(|image| {
            let place = image.map.place(object)?;
            Some((image.clone(), *place))
        })
    }

    fn read_memory(&self, image: &Image, slices: &[Slice]) -> Option<Vec<Bytes>> {
        let mut memory = self.memory();
        slices
            .iter()
            .map(|slice| {
                let chunk = image.map.chunks[slice.chunk as usize].digest;
                memory.get(&chunk).and_then(|bytes| part(&bytes, slice))
            })
            .collect()
    }

    /// What of the slices is on the disk. A disk that cannot be read is as good as an empty one.
    async fn read_disk(&self, map: Arc<Map>, place: ObjectPlace, slices: Vec<Slice>) -> Vec<Option<Bytes>> {
        let objects = self.objects().clone();
        let missing = vec![None; slices.len()];
        let read = tokio::task::spawn_blocking(move || read_local(&objects, &map, &place, &slices)).await;
        match read {
            Ok(Ok(parts)) => parts,
            Ok(Err(error)) => {
                tracing::warn!(object = %place.digest, %error, "failed to read a local object; fetching it");
                missing
            }
            Err(_) => missing,
        }
    }

    /// Waits for what is neither in memory nor on the disk.
    async fn await_network(
        &self,
        image: &Arc<Image>,
        object: &Digest,
        slices: Vec<Slice>,
        local: Vec<Option<Bytes>>,
    ) -> Result<Vec<Bytes>, ReadError> {
        let stopped = || ReadError::Stopped(*object);
        // All are asked before the first is waited for.
        let mut waiting = Vec::with_capacity(slices.len());
        for (slice, local) in slices.into_iter().zip(local) {
            let coming = match local {
                Some(bytes) => Coming::Here(bytes),
                None => {
                    let (waiter, arrival) = oneshot::channel();
                    let demand = Demand { image: image.clone(), position: slice.chunk, waiter: Some(waiter) };
                    self.demand(demand).await.map_err(|_| stopped())?;
                    Coming::Later(arrival)
                }
            };
            waiting.push((slice, coming));
        }
        let mut parts = Vec::with_capacity(waiting.len());
        for (slice, coming) in waiting {
            parts.push(match coming {
                Coming::Here(bytes) => bytes,
                Coming::Later(arrival) => {
                    let waiting = Waits { image, object, offset: slice.object_offset, size: slice.len };
                    let chunk = self.arrived(arrival, &waiting).await.map_err(|_| stopped())?;
                    let chunk = chunk.map_err(|source| ReadError::Fetch { object: *object, source })?;
                    // A verified chunk of the length that the map says holds every slice of the map.
                    part(&chunk, &slice).ok_or_else(|| ReadError::Fetch {
                        object: *object,
                        source: FetchError::Corrupt(image.map.chunks[slice.chunk as usize].digest),
                    })?
                }
            });
        }
        Ok(parts)
    }
}

/// What a read waits for.
struct Waits<'a> {
    image: &'a Arc<Image>,
    object: &'a Digest,
    offset: u64,
    size: u32,
}

impl Downloads {
    /// Waits for a chunk, and says so when it is a quota that is waited for.
    async fn arrived<T>(
        &self,
        mut arrival: oneshot::Receiver<T>,
        waiting: &Waits<'_>,
    ) -> Result<T, oneshot::error::RecvError> {
        let mut shortage = waiting.image.content.shortage();
        tokio::select! {
            biased;
            arrived = &mut arrival => return arrived,
            short = shortage.wait_for(Option::is_some) => if let Ok(short) = short {
                metrics::read_waits_for_quota();
                self.say_short(waiting, short.as_deref());
            },
        }
        arrival.await
    }

    fn say_short(&self, waiting: &Waits<'_>, short: Option<&Refused>) {
        let (Some(refused), Some(unsaid)) = (short, self.shared.short_said.due()) else { return };
        let Waits { image, object, offset, size } = waiting;
        // Of which layer an object is, and under which names, no map says: it is named as the node stores it.
        tracing::warn!(
            module = "frontend",
            image = %image.id,
            path = object.path(),
            offset,
            size,
            metric = refused.metric,
            limit = refused.limit,
            retry = ?refused.retry,
            unsaid,
            error = refused.message,
            "a read waits for a quota that is used up"
        );
    }
}

enum Coming {
    Here(Bytes),
    Later(oneshot::Receiver<Result<Bytes, FetchError>>),
}

/// Reads slices from the whole object, or else those pieces of the partial one that are there.
fn read_local(
    objects: &Objects,
    map: &Map,
    place: &ObjectPlace,
    slices: &[Slice],
) -> io::Result<Vec<Option<Bytes>>> {
    if let Some(parts) = read_whole(objects, place, slices)? {
        return Ok(parts);
    }
    let mut parts = Vec::with_capacity(slices.len());
    for slice in slices {
        let there = map.is_pieced(place)
            && objects.has_piece(&place.digest, (slice.chunk - place.first_chunk) as usize);
        let bytes = if there {
            objects.read_partial(&place.digest, slice.object_offset, slice.len as usize)?
        } else {
            None
        };
        parts.push(bytes.filter(|bytes| bytes.len() == slice.len as usize).map(Bytes::from));
    }
    if parts.iter().all(Option::is_some) {
        return Ok(parts);
    }
    // It may have become whole, and left `partial/`, since we looked.
    Ok(read_whole(objects, place, slices)?.unwrap_or(parts))
}

fn read_whole(
    objects: &Objects,
    place: &ObjectPlace,
    slices: &[Slice],
) -> io::Result<Option<Vec<Option<Bytes>>>> {
    let (Some(first), Some(last)) = (slices.first(), slices.last()) else { return Ok(Some(Vec::new())) };
    let start = first.object_offset;
    let len = (last.object_offset - start) as usize + last.len as usize;
    let Some(bytes) = objects.read(&place.digest, start, len)? else { return Ok(None) };
    if bytes.len() != len {
        return Ok(None);
    }
    let bytes = Bytes::from(bytes);
    let part = |slice: &Slice| {
        let from = (slice.object_offset - start) as usize;
        Some(bytes.slice(from..from + slice.len as usize))
    };
    Ok(Some(slices.iter().map(part).collect()))
}

fn part(chunk: &Bytes, slice: &Slice) -> Option<Bytes> {
    let start = slice.chunk_offset as usize;
    let end = start.checked_add(slice.len as usize)?;
    (end <= chunk.len()).then(|| chunk.slice(start..end))
}

impl Frame {
    fn new(place: &ObjectPlace, bytes: Range<u64>, slices: &[Slice]) -> Frame {
        let len = bytes.end.min(place.len).saturating_sub(bytes.start) as usize;
        let data: u64 = slices.iter().map(|slice| u64::from(slice.len)).sum();
        let offsets = slices.iter().map(|slice| slice.object_offset).collect();
        Frame { start: bytes.start, len, offsets, has_holes: data < len as u64 }
    }

    /// `parts` are as long as their slices.
    fn fill(&self, parts: Vec<Bytes>) -> Bytes {
        if !self.has_holes {
            return concatenated(parts);
        }
        let mut all = BytesMut::zeroed(self.len);
        for (part, offset) in parts.iter().zip(&self.offsets) {
            let from = (offset - self.start) as usize;
            all[from..from + part.len()].copy_from_slice(part);
        }
        all.freeze()
    }
}

/// One run of bytes; without a copy when there is one part.
fn concatenated(mut parts: Vec<Bytes>) -> Bytes {
    if parts.len() == 1 {
        return parts.swap_remove(0);
    }
    let mut all = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| all.extend_from_slice(part));
    all.freeze()
}
