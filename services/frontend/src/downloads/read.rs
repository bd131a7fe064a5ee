//! Answers a read: from memory, from the disk, or by waiting for chunks.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use image::Digest;
use image::record::ObjectPlace;
use tokio::sync::oneshot;

use super::Downloads;
use super::image::Image;
use super::plan::{Extent, extents, index_of};
use super::scheduler::Demand;
use crate::content::FetchError;
use crate::metrics;
use crate::objects::Objects;

/// Why a read failed, after everything within the bounds was tried. Never zeros instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("no image of this node names object {0}")]
    Unknown(Digest),
    #[error("object {object} cannot be read")]
    Fetch { object: Digest, source: FetchError },
    #[error("the downloads stopped while object {0} was waited for")]
    Stopped(Digest),
}

impl Downloads {
    /// Up to `len` bytes of an object at `offset`: fewer only at its end. Waits until they are here.
    pub async fn read(&self, object: Digest, offset: u64, len: usize) -> Result<Bytes, ReadError> {
        let read = self.try_read(object, offset, len).await;
        if read.is_err() {
            metrics::read_failed();
        }
        read
    }

    async fn try_read(&self, object: Digest, offset: u64, len: usize) -> Result<Bytes, ReadError> {
        let (image, place) = self.find(&object).ok_or(ReadError::Unknown(object))?;
        let extents = extents(&image.map, &place, offset, len);
        extents.iter().for_each(|extent| image.touch(extent.position));
        if let Some(bytes) = self.read_memory(&image, &extents) {
            metrics::read("memory");
            return Ok(bytes);
        }
        let local = self.read_disk(place, extents.clone()).await;
        if let Some(bytes) = joined(&local) {
            metrics::read("disk");
            return Ok(bytes);
        }
        metrics::read("network");
        self.await_network(&image, &object, extents, local).await
    }

    /// The newest image that names the object, and its place there.
    fn find(&self, object: &Digest) -> Option<(Arc<Image>, ObjectPlace)> {
        self.images().iter().rev().find_map(|image| {
            let index = index_of(&image.map, object)?;
            Some((image.clone(), image.map.objects[index]))
        })
    }

    fn read_memory(&self, image: &Image, extents: &[Extent]) -> Option<Bytes> {
        let mut memory = self.memory();
        let parts: Option<Vec<Bytes>> = extents
            .iter()
            .map(|extent| {
                let chunk = image.map.chunks[extent.position as usize].digest;
                memory.get(&chunk).and_then(|bytes| part(&bytes, extent))
            })
            .collect();
        Some(concatenated(parts?))
    }

    /// What of the extents is on the disk. A disk that cannot be read is as good as an empty one.
    async fn read_disk(&self, place: ObjectPlace, extents: Vec<Extent>) -> Vec<Option<Bytes>> {
        let objects = self.objects().clone();
        let missing = vec![None; extents.len()];
        let read = tokio::task::spawn_blocking(move || read_local(&objects, &place, &extents)).await;
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
        extents: Vec<Extent>,
        local: Vec<Option<Bytes>>,
    ) -> Result<Bytes, ReadError> {
        let stopped = || ReadError::Stopped(*object);
        // All are asked before the first is waited for.
        let mut waiting = Vec::with_capacity(extents.len());
        for (extent, local) in extents.into_iter().zip(local) {
            let coming = match local {
                Some(bytes) => Coming::Here(bytes),
                None => {
                    let (waiter, arrival) = oneshot::channel();
                    let demand = Demand { image: image.clone(), position: extent.position, waiter };
                    self.demand(demand).await.map_err(|_| stopped())?;
                    Coming::Later(arrival)
                }
            };
            waiting.push((extent, coming));
        }
        let mut parts = Vec::with_capacity(waiting.len());
        for (extent, coming) in waiting {
            parts.push(match coming {
                Coming::Here(bytes) => bytes,
                Coming::Later(arrival) => {
                    let chunk = arrival.await.map_err(|_| stopped())?;
                    let chunk = chunk.map_err(|source| ReadError::Fetch { object: *object, source })?;
                    // A verified chunk of the length that the map says holds every extent of the map.
                    part(&chunk, &extent).ok_or_else(|| ReadError::Fetch {
                        object: *object,
                        source: FetchError::Corrupt(image.map.chunks[extent.position as usize].digest),
                    })?
                }
            });
        }
        Ok(concatenated(parts))
    }
}

enum Coming {
    Here(Bytes),
    Later(oneshot::Receiver<Result<Bytes, FetchError>>),
}

/// Reads extents from the whole object, or else those pieces of the partial one that are there.
fn read_local(objects: &Objects, place: &ObjectPlace, extents: &[Extent]) -> io::Result<Vec<Option<Bytes>>> {
    if let Some(parts) = read_whole(objects, place, extents)? {
        return Ok(parts);
    }
    let mut parts = Vec::with_capacity(extents.len());
    for extent in extents {
        let there = place.chunk_count > 1 && objects.has_piece(&place.digest, extent.piece.index as usize);
        let offset = extent.piece.offset + extent.offset as u64;
        let bytes = if there { objects.read_partial(&place.digest, offset, extent.len)? } else { None };
        parts.push(bytes.filter(|bytes| bytes.len() == extent.len).map(Bytes::from));
    }
    if parts.iter().all(Option::is_some) {
        return Ok(parts);
    }
    // It may have become whole, and left `partial/`, since we looked.
    Ok(read_whole(objects, place, extents)?.unwrap_or(parts))
}

fn read_whole(objects: &Objects, place: &ObjectPlace, extents: &[Extent]) -> io::Result<Option<Vec<Option<Bytes>>>> {
    let (Some(first), Some(last)) = (extents.first(), extents.last()) else { return Ok(Some(Vec::new())) };
    // In an object of one chunk an extent counts from the chunk's begin, not from the object's.
    let begin = |extent: &Extent| extent.piece.offset + (extent.offset as u64).saturating_sub(place.offset.into());
    let start = begin(first);
    let len = (begin(last) - start) as usize + last.len;
    let Some(bytes) = objects.read(&place.digest, start, len)? else { return Ok(None) };
    if bytes.len() != len {
        return Ok(None);
    }
    let bytes = Bytes::from(bytes);
    let slice = |extent: &Extent| {
        let from = (begin(extent) - start) as usize;
        Some(bytes.slice(from..from + extent.len))
    };
    Ok(Some(extents.iter().map(slice).collect()))
}

fn part(chunk: &Bytes, extent: &Extent) -> Option<Bytes> {
    let end = extent.offset.checked_add(extent.len)?;
    (end <= chunk.len()).then(|| chunk.slice(extent.offset..end))
}

fn joined(parts: &[Option<Bytes>]) -> Option<Bytes> {
    parts.iter().cloned().collect::<Option<Vec<Bytes>>>().map(concatenated)
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
