//! Where the bytes of an object stand.

use std::iter::Copied;
use std::ops::Range;
use std::slice::Iter;

use super::{Map, Slice};
use crate::record::{ChunkRef, ObjectPlace};
use crate::sparse::{Extent, Sparse};

/// Walks the chunks of an object and its extents side by side.
#[derive(Debug)]
struct Slices<'a> {
    bytes: Range<u64>,
    /// The chunk at hand: its position, and where in the object's data it begins.
    position: u32,
    chunk_start: u64,
    chunks: Iter<'a, ChunkRef>,
    chunk: Option<&'a ChunkRef>,
    /// The extent at hand, and where in the object's data it begins.
    extent: Option<Extent>,
    extent_start: u64,
    extents: Copied<Iter<'a, Extent>>,
}

impl Map {
    /// The chunks that hold these bytes of an object, in order. What lies beyond its end is left out, and so are its holes:
    /// what is between two slices is zeros.
    pub fn slices(&self, place: &ObjectPlace, bytes: Range<u64>) -> impl Iterator<Item = Slice> {
        let first = place.first_chunk as usize;
        let run = first..first.saturating_add(place.chunk_count as usize);
        let mut chunks = self.chunks.get(run).unwrap_or_default().iter();
        let sparse = self.sparse(&place.digest);
        let mut extents = sparse.map_or(&[][..], |sparse| &sparse.extents).iter().copied();
        let extent = match sparse {
            Some(_) => extents.next(),
            None => Some(Extent { offset: 0, len: place.len }),
        };
        Slices {
            bytes: bytes.start..bytes.end.min(place.len),
            position: place.first_chunk,
            chunk_start: 0,
            chunk: chunks.next(),
            chunks,
            extent,
            // Of one chunk, where the object begins in it; of several, always 0.
            extent_start: u64::from(place.offset),
            extents,
        }
    }

    /// Where the data of an object with holes stands; none for one without.
    pub fn sparse(&self, object: &crate::Digest) -> Option<&Sparse> {
        Sparse::find(&self.sparse, object)
    }

    /// Bytes of an object that are no hole.
    pub fn data_len(&self, place: &ObjectPlace) -> u64 {
        self.sparse(&place.digest).map_or(place.len, Sparse::data_len)
    }

    /// Whether an object arrives piece by piece, each a whole chunk of its own. Others are a part of one chunk.
    pub fn is_pieced(&self, place: &ObjectPlace) -> bool {
        place.chunk_count != 1 || self.sparse(&place.digest).is_some()
    }

    /// Where in an object the bytes `data` of its data stand: those of a chunk that begins there.
    pub fn runs(&self, place: &ObjectPlace, data: Range<u64>) -> Vec<Extent> {
        let Some(sparse) = self.sparse(&place.digest) else {
            return vec![Extent { offset: data.start, len: data.end.saturating_sub(data.start) }];
        };
        let mut runs = Vec::new();
        let mut start = 0;
        for extent in &sparse.extents {
            let (from, to) = (data.start.max(start), data.end.min(start + extent.len));
            if from < to {
                runs.push(Extent { offset: extent.offset + (from - start), len: to - from });
            }
            start += extent.len;
            if start >= data.end {
                break;
            }
        }
        runs
    }
}

impl Iterator for Slices<'_> {
    type Item = Slice;

    fn next(&mut self) -> Option<Slice> {
        while let (Some(chunk), Some(extent)) = (self.chunk, self.extent) {
            if extent.offset >= self.bytes.end {
                break;
            }
            let chunk_end = self.chunk_start + u64::from(chunk.plain_len);
            let extent_end = self.extent_start + extent.len;
            // All in the object's data: where the extent's wanted bytes are, and what of them the chunk holds.
            let wanted = self.bytes.start.clamp(extent.offset, extent.end());
            let from = (self.extent_start + (wanted - extent.offset)).max(self.chunk_start);
            let wanted = self.bytes.end.clamp(extent.offset, extent.end());
            let to = (self.extent_start + (wanted - extent.offset)).min(chunk_end);
            let slice = (from < to).then(|| Slice {
                chunk: self.position,
                // Both fit: they lie inside the chunk.
                chunk_offset: (from - self.chunk_start) as u32,
                object_offset: extent.offset + (from - self.extent_start),
                len: (to - from) as u32,
            });
            if extent_end <= chunk_end {
                self.extent_start = extent_end;
                self.extent = self.extents.next();
            }
            if chunk_end <= extent_end {
                self.chunk_start = chunk_end;
                self.chunk = self.chunks.next();
                self.position += 1;
            }
            if slice.is_some() {
                return slice;
            }
        }
        None
    }
}
