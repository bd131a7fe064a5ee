//! What of one image is local, and what to fetch next. Pure.
//!
//! A chunk stands at one or more positions of the map's table. A position is done when every
//! object that stands there is local, or, inside a large object, when that piece of it is. What is done is
//! never fetched in the background.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use image::map::Arrivals;
use image::record::{ChunkRef, ObjectPlace};
use image::{Digest, Map};

use crate::objects::{Bits, Form, Piece};

/// For every so many positions it is noted where they begin: a large object has many, and each piece is asked for.
const NOTED_EVERY: usize = 64;

/// One image's state.
#[derive(Debug)]
pub(super) struct Plan {
    map: Arc<Map>,
    arrivals: Arrivals,
    /// Positions, sorted by their chunk's digest, and then by themselves.
    by_digest: Vec<u32>,
    /// Of every [`NOTED_EVERY`]th position, the plain bytes of all before it.
    begins: Vec<u64>,
    /// Of chunks that stand at many positions, up to which of these they were given out to be written.
    spread: HashMap<Digest, usize>,
    /// By index into `map.objects`.
    local: Bits,
    local_bytes: u64,
    /// By index into `map.objects`: which chunks are here of large objects that are not whole.
    pieces: HashMap<u32, Bits>,
    /// By position: how many objects still need its chunk.
    missing: Vec<u32>,
    /// Positions to prefetch, in order.
    prefetch: VecDeque<u32>,
    /// How many of the first of them were given out before, in vain.
    again: usize,
    /// By position: earlier starts read it, and the prefetch brings it.
    expected: Bits,
    /// Where the background looks next.
    cursor: usize,
}

/// One thing to write when a chunk is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A whole object: these bytes of the chunk.
    Whole { object: Digest, offset: u32, len: u32 },
    /// The whole chunk, as a piece of a large object.
    Part { place: ObjectPlace, form: Form, piece: Piece },
}

impl Plan {
    /// A plan that knows of nothing local yet. `prefetch` is what to fetch, in order, whoever decided that; `profile` what earlier
    /// starts read.
    pub(super) fn new(map: Arc<Map>, prefetch: &[Digest], profile: &[Digest]) -> Plan {
        let mut by_digest: Vec<u32> = (0..map.chunks.len() as u32).collect();
        by_digest.sort_unstable_by_key(|position| (map.chunks[*position as usize].digest, *position));
        let arrivals = Arrivals::of(&map);
        let missing = (0..map.chunks.len() as u32).map(|position| arrivals.objects_in(position).len() as u32);
        let mut plan = Plan {
            missing: missing.collect(),
            arrivals,
            by_digest,
            begins: begins(&map),
            spread: HashMap::new(),
            local: Bits::new(map.objects.len()),
            local_bytes: 0,
            pieces: HashMap::new(),
            prefetch: VecDeque::new(),
            again: 0,
            expected: Bits::new(map.chunks.len()),
            cursor: 0,
            map,
        };
        let profile: HashSet<&Digest> = profile.iter().collect();
        for chunk in prefetch.iter().filter(|chunk| profile.contains(chunk)) {
            for position in plan.positions_of(chunk).to_vec() {
                plan.expected.set(position as usize);
            }
        }
        let first = |chunk: &Digest| plan.positions_of(chunk).first().copied();
        plan.prefetch = prefetch.iter().filter_map(first).collect();
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

    /// The next positions of a chunk that need it, at most `max`, from where the last call stopped; once all were
    /// given out it begins anew.
    pub(super) fn next_of(&mut self, chunk: &Digest, max: usize) -> Vec<u32> {
        let from = self.spread.get(chunk).copied().unwrap_or_default();
        let positions = self.positions_of(chunk);
        let mut next = Vec::new();
        let mut seen = from.min(positions.len());
        for position in &positions[seen..] {
            if next.len() == max {
                break;
            }
            seen += 1;
            next.extend(Some(*position).filter(|position| self.needs(*position)));
        }
        match seen < self.positions_of(chunk).len() {
            true => self.spread.insert(*chunk, seen),
            false => self.spread.remove(chunk),
        };
        next
    }

    /// The next call of [`Plan::next_of`] begins anew.
    pub(super) fn stop_spreading(&mut self, chunk: &Digest) {
        self.spread.remove(chunk);
    }

    /// What to write of the chunk at `position`: what is not local yet.
    pub(super) fn targets(&self, position: u32) -> Vec<Target> {
        let needing = self.arrivals.objects_in(position).iter().filter(|index| self.lacks(**index, position));
        needing.map(|index| self.target(&self.map.objects[*index as usize], position)).collect()
    }

    /// An object is whole and local now; nothing happens when the image has no such object.
    pub(super) fn mark_local(&mut self, object: &Digest) {
        let Some(index) = index_of(&self.map, object) else { return };
        if !self.local.set(index) {
            return;
        }
        let place = self.map.objects[index];
        let pieces = self.pieces.remove(&(index as u32));
        let here = |piece: usize| pieces.as_ref().is_some_and(|pieces| pieces.get(piece));
        for (piece, chunk) in chunks_of(&self.map, &place).iter().enumerate() {
            if here(piece) {
                self.local_bytes = self.local_bytes.saturating_sub(chunk.plain_len.into());
            } else {
                decrement(&mut self.missing, place.first_chunk as usize + piece);
            }
        }
        self.local_bytes += self.map.data_len(&place);
    }

    /// One chunk of a large object is here.
    pub(super) fn mark_piece(&mut self, object: &Digest, piece: u32) {
        let Some(index) = index_of(&self.map, object).filter(|index| !self.local.get(*index)) else { return };
        let place = self.map.objects[index];
        let pieces = self.pieces.entry(index as u32).or_insert_with(|| Bits::new(place.chunk_count as usize));
        if pieces.set(piece as usize) {
            let position = place.first_chunk as usize + piece as usize;
            self.local_bytes += u64::from(self.map.chunks[position].plain_len);
            decrement(&mut self.missing, position);
        }
    }

    /// A large object turned out wrong when it was whole: all of it is to be fetched again.
    pub(super) fn forget_pieces(&mut self, object: &Digest) {
        let Some(index) = index_of(&self.map, object) else { return };
        let Some(pieces) = self.pieces.remove(&(index as u32)) else { return };
        let place = self.map.objects[index];
        for (piece, chunk) in chunks_of(&self.map, &place).iter().enumerate() {
            if pieces.get(piece) {
                self.local_bytes = self.local_bytes.saturating_sub(chunk.plain_len.into());
                self.missing[place.first_chunk as usize + piece] += 1;
            }
        }
    }

    /// The large object that the chunk at `position` is a piece of; none for a chunk of small objects.
    pub(super) fn large_object_at(&self, position: u32) -> Option<ObjectPlace> {
        let index = *self.arrivals.objects_in(position).first()?;
        Some(self.map.objects[index as usize]).filter(|place| self.map.is_pieced(place))
    }

    pub(super) fn needs(&self, position: u32) -> bool {
        self.missing.get(position as usize).is_some_and(|missing| *missing > 0)
    }

    /// Takes the next position to prefetch.
    pub(super) fn next_prefetch(&mut self) -> Option<u32> {
        while let Some(position) = self.prefetch.pop_front() {
            self.again = self.again.saturating_sub(1);
            if self.needs(position) {
                return Some(position);
            }
        }
        None
    }

    /// A chunk of the prefetch did not come, and is to be asked for again, behind those of which the same was said before.
    pub(super) fn prefetch_again(&mut self, chunk: &Digest) {
        let position = self.positions_of(chunk).first().copied();
        if let Some(position) = position.filter(|position| self.needs(*position)) {
            self.prefetch.insert(self.again.min(self.prefetch.len()), position);
            self.again += 1;
        }
    }

    /// Whether earlier starts read the chunk at `position`, and the prefetch brings it.
    pub(super) fn expects(&self, position: u32) -> bool {
        self.expected.get(position as usize)
    }

    pub(super) fn has_prefetch(&self) -> bool {
        !self.prefetch.is_empty()
    }

    /// The next position in map order that is not done and not `busy`; starts over at the end, once.
    pub(super) fn next_background(&mut self, busy: impl Fn(&Digest) -> bool) -> Option<u32> {
        let count = self.map.chunks.len();
        // One that stands at many positions is looked up once.
        let mut last_busy = None;
        for step in 0..count {
            let position = (self.cursor + step) % count;
            let chunk = self.map.chunks[position].digest;
            if self.missing[position] == 0 || last_busy == Some(chunk) {
                continue;
            }
            if !busy(&chunk) {
                self.cursor = (position + 1) % count;
                return Some(position as u32);
            }
            last_busy = Some(chunk);
        }
        None
    }

    pub(super) fn is_complete(&self) -> bool {
        self.local.all()
    }

    pub(super) fn objects_local(&self) -> u64 {
        self.local.ones() as u64
    }

    /// Plain bytes that are local, of whole objects and of pieces.
    pub(super) fn bytes_local(&self) -> u64 {
        self.local_bytes
    }

    /// Whether the object at `index` still needs the chunk at `position`.
    fn lacks(&self, index: u32, position: u32) -> bool {
        let piece = (position - self.map.objects[index as usize].first_chunk) as usize;
        !self.local.get(index as usize) && !self.pieces.get(&index).is_some_and(|pieces| pieces.get(piece))
    }

    fn target(&self, place: &ObjectPlace, position: u32) -> Target {
        if !self.map.is_pieced(place) {
            // An object of one chunk is no longer than a chunk.
            return Target::Whole { object: place.digest, offset: place.offset, len: place.len as u32 };
        }
        let begin = self.begin(position) - self.begin(place.first_chunk);
        let runs = self.map.runs(place, begin..begin + u64::from(self.chunk(position).plain_len));
        let piece = Piece { index: position - place.first_chunk, runs };
        Target::Part { place: *place, form: Form::of(&self.map, &place.digest), piece }
    }

    /// The plain bytes of all chunks before `position`.
    fn begin(&self, position: u32) -> u64 {
        let position = position as usize;
        let noted = position / NOTED_EVERY;
        let rest = self.map.chunks.get(noted * NOTED_EVERY..position).unwrap_or_default();
        self.begins.get(noted).copied().unwrap_or_default() + plain_len(rest)
    }
}

/// The index of an object in `map.objects`.
pub(super) fn index_of(map: &Map, object: &Digest) -> Option<usize> {
    map.objects.binary_search_by_key(object, |place| place.digest).ok()
}

/// The chunks that an object stands in.
pub(super) fn chunks_of<'a>(map: &'a Map, place: &ObjectPlace) -> &'a [ChunkRef] {
    let first = place.first_chunk as usize;
    map.chunks.get(first..first.saturating_add(place.chunk_count as usize)).unwrap_or_default()
}

fn begins(map: &Map) -> Vec<u64> {
    let mut begin = 0;
    let noted = map.chunks.chunks(NOTED_EVERY).map(|chunks| {
        let noted = begin;
        begin += plain_len(chunks);
        noted
    });
    noted.collect()
}

fn plain_len(chunks: &[ChunkRef]) -> u64 {
    chunks.iter().map(|chunk| u64::from(chunk.plain_len)).sum()
}

fn decrement(missing: &mut [u32], position: usize) {
    if let Some(missing) = missing.get_mut(position) {
        *missing = missing.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A map of shared chunks with so many objects each, then of large objects with so many chunks each.
    fn map(shared: &[u8], large: &[u8]) -> Map {
        let mut map = Map::default();
        let mut name = 0u32;
        let mut next = || {
            name += 1;
            Digest::of(&name.to_le_bytes())
        };
        for objects in shared {
            let first_chunk = map.chunks.len() as u32;
            map.chunks.push(ChunkRef { digest: next(), plain_len: u32::from(*objects) * 10, stored_len: 5 });
            for index in 0..*objects {
                let offset = u32::from(index) * 10;
                map.objects.push(ObjectPlace {
                    digest: next(),
                    len: 10,
                    first_chunk,
                    chunk_count: 1,
                    offset,
                });
            }
        }
        for chunks in large {
            let first_chunk = map.chunks.len() as u32;
            let chunk_count = u32::from(*chunks);
            (0..chunk_count).for_each(|_| {
                map.chunks.push(ChunkRef { digest: next(), plain_len: 100, stored_len: 50 });
            });
            let len = u64::from(chunk_count) * 100;
            map.objects.push(ObjectPlace { digest: next(), len, first_chunk, chunk_count, offset: 0 });
        }
        map.objects.sort_by_key(|place| place.digest);
        map
    }

    /// Does what the writer would do with everything that a chunk brings.
    fn write(plan: &mut Plan, position: u32) {
        for target in plan.targets(position) {
            match target {
                Target::Whole { object, .. } => plan.mark_local(&object),
                Target::Part { place, piece, .. } => {
                    plan.mark_piece(&place.digest, piece.index);
                    let pieces = place.first_chunk..place.first_chunk + place.chunk_count;
                    if pieces.into_iter().all(|position| !plan.needs(position)) {
                        plan.mark_local(&place.digest);
                    }
                }
            }
        }
    }

    proptest! {
        /// Whatever is local already, the background asks for every other chunk once and is then complete.
        #[test]
        fn the_background_brings_what_is_missing_and_nothing_else(
            shared in prop::collection::vec(1u8..6, 0..8),
            large in prop::collection::vec(2u8..6, 0..4),
            local in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
            forgotten in any::<bool>(),
        ) {
            let map = Arc::new(map(&shared, &large));
            let mut plan = Plan::new(map.clone(), &[], &[]);
            for index in local.iter().filter(|_| !map.objects.is_empty()) {
                let place = map.objects[index.index(map.objects.len())];
                if place.chunk_count > 1 {
                    plan.mark_piece(&place.digest, place.chunk_count - 1);
                }
                if forgotten {
                    plan.forget_pieces(&place.digest);
                }
                if !forgotten || place.chunk_count == 1 {
                    plan.mark_local(&place.digest);
                }
            }
            let needed = (0..map.chunks.len() as u32).filter(|position| !plan.targets(*position).is_empty()).count();
            let mut asked = Vec::new();
            while let Some(position) = plan.next_background(|_| false) {
                prop_assert!(!asked.contains(&position));
                asked.push(position);
                write(&mut plan, position);
                prop_assert!(!plan.needs(position));
            }
            prop_assert_eq!(asked.len(), needed);
            prop_assert!(plan.is_complete());
            prop_assert_eq!(plan.bytes_local(), map.plain_bytes());
        }
    }

    #[test]
    fn a_prefetch_skips_what_is_local_and_what_the_map_does_not_know() {
        let map = Arc::new(map(&[2, 2, 2], &[]));
        let chunk = |at: usize| map.chunks[at].digest;
        let mut plan = Plan::new(map.clone(), &[chunk(2), Digest::of(b"other"), chunk(0), chunk(1)], &[]);
        write(&mut plan, 0);
        assert_eq!(
            [plan.next_prefetch(), plan.next_prefetch(), plan.next_prefetch()],
            [Some(2), Some(1), None]
        );
    }

    #[test]
    fn a_chunk_that_stands_twice_serves_both_places() {
        let mut twice = map(&[], &[2, 2]);
        twice.chunks[2] = twice.chunks[0];
        let plan = Plan::new(Arc::new(twice.clone()), &[], &[]);
        let mut positions = plan.positions_of(&twice.chunks[0].digest).to_vec();
        positions.sort_unstable();
        assert_eq!(positions, [0, 2]);
        assert_eq!(plan.targets(2).len(), 1);
    }

    #[test]
    fn a_chunk_that_stands_at_many_places_is_given_out_in_parts() {
        let mut repeated = map(&[], &[200]);
        let first = repeated.chunks[0];
        repeated.chunks.fill(first);
        let map = Arc::new(repeated);
        let (chunk, object) = (first.digest, map.objects[0].digest);
        let mut plan = Plan::new(map, &[], &[]);
        plan.mark_piece(&object, 1);
        assert_eq!(plan.next_of(&chunk, 3), [0, 2, 3]);
        assert_eq!(plan.next_of(&chunk, 2), [4, 5]);
        assert_eq!(plan.next_of(&chunk, 500).len(), 194);
        assert_eq!(plan.next_of(&chunk, 1), [0]);
        plan.stop_spreading(&chunk);
        assert_eq!(plan.next_of(&chunk, 1), [0]);
        for position in [0, 63, 64, 65, 199] {
            let [Target::Part { piece, .. }] = &plan.targets(position)[..] else { panic!("{position}") };
            let extent = image::Extent { offset: u64::from(position) * 100, len: 100 };
            assert_eq!((piece.index, &piece.runs), (position, &vec![extent]));
        }
    }
}
