//! What of one image is local, and what to fetch next. Pure.
//!
//! A chunk stands at one or more positions of the map's table. A position is done when every
//! object that stands there is local, or, inside a large object, when that piece of it is. What is done is
//! never fetched in the background.

use std::collections::VecDeque;
use std::sync::Arc;

use image::record::{ChunkRef, ObjectPlace};
use image::{Digest, Map};

use crate::objects::{Bits, Piece};

/// One image's state.
#[derive(Debug)]
pub(super) struct Plan {
    map: Arc<Map>,
    /// Positions, sorted by their chunk's digest.
    by_digest: Vec<u32>,
    /// Objects of one chunk, by index into `map.objects`, sorted by position.
    small: Vec<u32>,
    /// Objects of several chunks, likewise. They do not overlap.
    large: Vec<u32>,
    /// By index into `map.objects`.
    local: Bits,
    local_bytes: u64,
    /// By position: pieces of large objects that are here while their object is not whole.
    pieces: Bits,
    /// By position: how many objects there are not local yet.
    missing: Vec<u32>,
    /// Positions to prefetch, in order.
    prefetch: VecDeque<u32>,
    /// Where the background looks next.
    cursor: usize,
}

/// One thing to write when a chunk is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A whole object: these bytes of the chunk.
    Whole { object: Digest, offset: u32, len: u32 },
    /// The whole chunk, as a piece of a large object.
    Part { place: ObjectPlace, piece: Piece },
}

/// Which bytes of which chunk a read needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) position: u32,
    /// Within the object: the chunk's number, and where it begins.
    pub(super) piece: Piece,
    /// Within the chunk.
    pub(super) offset: usize,
    pub(super) len: usize,
}

impl Plan {
    /// A plan that knows of nothing local yet.
    pub(super) fn new(map: Arc<Map>, prefetch: &[Digest]) -> Plan {
        let mut by_digest: Vec<u32> = (0..map.chunks.len() as u32).collect();
        by_digest.sort_unstable_by_key(|position| map.chunks[*position as usize].digest);
        let (mut small, mut large): (Vec<u32>, Vec<u32>) =
            (0..map.objects.len() as u32).partition(|index| map.objects[*index as usize].chunk_count <= 1);
        for objects in [&mut small, &mut large] {
            objects.sort_unstable_by_key(|index| map.objects[*index as usize].first_chunk);
        }
        let mut missing = vec![0; map.chunks.len()];
        for place in map.objects.iter().filter(|place| place.len > 0) {
            positions(place).for_each(|position| missing[position] += 1);
        }
        let mut plan = Plan {
            by_digest,
            small,
            large,
            local: Bits::new(map.objects.len()),
            local_bytes: 0,
            pieces: Bits::new(map.chunks.len()),
            missing,
            prefetch: VecDeque::new(),
            cursor: 0,
            map,
        };
        let first = |chunk: &Digest| plan.positions_of(chunk).first().copied();
        plan.prefetch = prefetch.iter().filter_map(first).collect();
        // Objects without bytes need no chunk; they are local when somebody made them so.
        for index in 0..plan.map.objects.len() {
            if plan.map.objects[index].len == 0 {
                plan.local.set(index);
            }
        }
        plan
    }

    pub(super) fn map(&self) -> &Arc<Map> {
        &self.map
    }

    pub(super) fn chunk(&self, position: u32) -> ChunkRef {
        self.map.chunks[position as usize]
    }

    /// Every position at which the chunk stands.
    pub(super) fn positions_of(&self, chunk: &Digest) -> &[u32] {
        let digest = |position: &u32| self.map.chunks[*position as usize].digest;
        let start = self.by_digest.partition_point(|position| digest(position) < *chunk);
        let end = self.by_digest.partition_point(|position| digest(position) <= *chunk);
        &self.by_digest[start..end]
    }

    /// What to write of the chunk at `position`: objects that are not local yet.
    pub(super) fn targets(&self, position: u32) -> Vec<Target> {
        let place = |index: &u32| &self.map.objects[*index as usize];
        let start = self.small.partition_point(|index| place(index).first_chunk < position);
        let mut targets: Vec<Target> = self.small[start..]
            .iter()
            .take_while(|index| place(index).first_chunk == position)
            .filter(|index| !self.local.get(**index as usize))
            .map(|index| {
                let place = place(index);
                Target::Whole { object: place.digest, offset: place.offset, len: place.len as u32 }
            })
            .collect();
        let after = self.large.partition_point(|index| place(index).first_chunk <= position);
        if let Some(index) = after.checked_sub(1).map(|before| self.large[before]) {
            let place = *place(&index);
            let inside = position - place.first_chunk < place.chunk_count;
            if inside && !self.local.get(index as usize) && !self.pieces.get(position as usize) {
                targets.push(Target::Part { place, piece: piece(&self.map, &place, position) });
            }
        }
        targets
    }

    /// An object is whole and local now; nothing happens when the image has no such object.
    pub(super) fn mark_local(&mut self, object: &Digest) {
        let Some(index) = index_of(&self.map, object) else { return };
        if !self.local.set(index) {
            return;
        }
        let place = self.map.objects[index];
        self.local_bytes += place.len;
        for position in positions(&place) {
            if !(place.chunk_count > 1 && self.pieces.get(position)) {
                self.missing[position] = self.missing[position].saturating_sub(1);
            }
        }
    }

    /// One chunk of a large object is here.
    pub(super) fn mark_piece(&mut self, object: &Digest, index: u32) {
        let Some(found) = index_of(&self.map, object) else { return };
        let place = self.map.objects[found];
        let position = (place.first_chunk + index.min(place.chunk_count.saturating_sub(1))) as usize;
        if !self.local.get(found) && self.pieces.set(position) {
            self.missing[position] = self.missing[position].saturating_sub(1);
        }
    }

    /// A large object turned out wrong when it was whole: all of it is to be fetched again.
    pub(super) fn forget_pieces(&mut self, object: &Digest) {
        let Some(index) = index_of(&self.map, object) else { return };
        for position in positions(&self.map.objects[index]) {
            if self.pieces.clear(position) {
                self.missing[position] += 1;
            }
        }
    }

    pub(super) fn needs(&self, position: u32) -> bool {
        self.missing.get(position as usize).is_some_and(|missing| *missing > 0)
    }

    /// Takes the next position to prefetch.
    pub(super) fn next_prefetch(&mut self) -> Option<u32> {
        while let Some(position) = self.prefetch.pop_front() {
            if self.needs(position) {
                return Some(position);
            }
        }
        None
    }

    pub(super) fn has_prefetch(&self) -> bool {
        !self.prefetch.is_empty()
    }

    /// The next position in map order that is not done and not `busy`; starts over at the end, once.
    pub(super) fn next_background(&mut self, busy: impl Fn(&Digest) -> bool) -> Option<u32> {
        let count = self.map.chunks.len();
        for step in 0..count {
            let position = (self.cursor + step) % count;
            if self.missing[position] > 0 && !busy(&self.map.chunks[position].digest) {
                self.cursor = (position + 1) % count;
                return Some(position as u32);
            }
        }
        None
    }

    pub(super) fn is_complete(&self) -> bool {
        self.local.all()
    }

    pub(super) fn objects_local(&self) -> u64 {
        self.local.ones() as u64
    }

    /// Plain bytes of whole local objects.
    pub(super) fn bytes_local(&self) -> u64 {
        self.local_bytes
    }
}

/// The index of an object in `map.objects`.
pub(super) fn index_of(map: &Map, object: &Digest) -> Option<usize> {
    map.objects.binary_search_by_key(object, |place| place.digest).ok()
}

/// The chunks of a large object.
pub(super) fn chunks_of<'a>(map: &'a Map, place: &ObjectPlace) -> &'a [ChunkRef] {
    map.chunks.get(positions(place)).unwrap_or_default()
}

/// Which parts of which chunks hold `len` bytes of an object at `offset`. Clipped to the object.
pub(super) fn extents(map: &Map, place: &ObjectPlace, offset: u64, len: usize) -> Vec<Extent> {
    let end = place.len.min(offset.saturating_add(len as u64));
    let mut extents = Vec::new();
    let mut begins = 0u64;
    for (index, chunk) in chunks_of(map, place).iter().enumerate() {
        // An object alone in its chunks fills them; one that shares its chunk ends where its length says.
        let holds = if place.chunk_count == 1 { place.len } else { u64::from(chunk.plain_len) };
        let (from, to) = (offset.max(begins), end.min(begins + holds));
        if from < to {
            extents.push(Extent {
                position: place.first_chunk + index as u32,
                piece: Piece { index: index as u32, offset: begins },
                offset: place.offset as usize + (from - begins) as usize,
                len: (to - from) as usize,
            });
        }
        begins += holds;
        if begins >= end {
            break;
        }
    }
    extents
}

fn piece(map: &Map, place: &ObjectPlace, position: u32) -> Piece {
    let index = position - place.first_chunk;
    let before = &chunks_of(map, place)[..index as usize];
    Piece { index, offset: before.iter().map(|chunk| u64::from(chunk.plain_len)).sum() }
}

fn positions(place: &ObjectPlace) -> std::ops::Range<usize> {
    let first = place.first_chunk as usize;
    first..first.saturating_add(place.chunk_count as usize)
}
