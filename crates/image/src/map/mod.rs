//! For every object of a tree, the chunks that hold it and where.
//!
//! `chunks` stands in the order of the layers and of their cutting, so that neighbours travel together;
//! `objects` is sorted by digest and points into it. An object of one chunk shares it with others or
//! stands alone; an object of several fills them all. A chunk's digest may stand at more than one
//! position: two versions of a large file have most of their chunks in common, each its own run.
//!
//! Readers ask both ways: [`Map::place`] and [`Map::slices`] say where an object's bytes are, an
//! [`Arrivals`] says which objects a chunk brings.

mod arrivals;
mod build;
mod slices;

#[cfg(test)]
mod tests;

use std::io::Read;

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::encoding::{self, EncodingError};
use crate::limits::{CHUNKS_MAX, ENTRIES_MAX};
use crate::record::{ChunkRef, ObjectPlace, check_places};
use crate::sparse::Sparse;

pub use arrivals::Arrivals;
pub use build::{MapBuilder, MapError};

/// An image's map. Valid by construction: [`Map::decode`] refuses one that is not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Map {
    /// In the order of the layers and of their cutting: neighbours travel together.
    #[serde(deserialize_with = "encoding::at_most::<_, _, CHUNKS_MAX>")]
    pub chunks: Vec<ChunkRef>,
    /// Sorted by digest, each once.
    #[serde(deserialize_with = "encoding::at_most::<_, _, ENTRIES_MAX>")]
    pub objects: Vec<ObjectPlace>,
    /// Of the objects with holes, where their data stands; sorted by object.
    #[serde(deserialize_with = "encoding::at_most::<_, _, ENTRIES_MAX>")]
    pub sparse: Vec<Sparse>,
}

/// As it was before objects had holes: a node that stands on such an image goes on.
#[derive(Deserialize)]
struct WithoutHoles {
    #[serde(deserialize_with = "encoding::at_most::<_, _, CHUNKS_MAX>")]
    chunks: Vec<ChunkRef>,
    #[serde(deserialize_with = "encoding::at_most::<_, _, ENTRIES_MAX>")]
    objects: Vec<ObjectPlace>,
}

impl From<WithoutHoles> for Map {
    fn from(WithoutHoles { chunks, objects }: WithoutHoles) -> Map {
        Map { chunks, objects, sparse: Vec::new() }
    }
}

/// A part of an object, as one chunk holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Position in [`Map::chunks`].
    pub chunk: u32,
    /// Where it begins in the chunk's plain bytes.
    pub chunk_offset: u32,
    /// Where it begins in the object.
    pub object_offset: u64,
    /// Never 0.
    pub len: u32,
}

impl Map {
    pub fn encode(&self) -> Result<Vec<u8>, EncodingError> {
        encoding::encode(encoding::MAP, self)
    }

    pub fn decode(encoded: &[u8]) -> Result<Map, EncodingError> {
        Map::read(encoded)
    }

    /// Of an encoded map in a stream, which takes little more memory than the map itself.
    pub fn read(encoded: impl Read) -> Result<Map, EncodingError> {
        let mut map: Map = encoding::read_or::<_, WithoutHoles>(encoding::MAP, encoded)?;
        map.check().map_err(|reason| encoding::MAP.invalid(reason))?;
        map.chunks.shrink_to_fit();
        map.objects.shrink_to_fit();
        Ok(map)
    }

    pub fn place(&self, object: &Digest) -> Option<&ObjectPlace> {
        let at = self.objects.binary_search_by(|place| place.digest.cmp(object)).ok()?;
        self.objects.get(at)
    }

    /// Bytes of all objects, their holes left out.
    pub fn plain_bytes(&self) -> u64 {
        self.objects.iter().map(|place| self.data_len(place)).fold(0, u64::saturating_add)
    }

    /// Stored bytes of all chunks, each distinct one once.
    pub fn stored_bytes(&self) -> u64 {
        let mut distinct: Vec<(Digest, u32)> =
            self.chunks.iter().map(|chunk| (chunk.digest, chunk.stored_len)).collect();
        distinct.sort_unstable();
        distinct.dedup_by_key(|(digest, _)| *digest);
        distinct.iter().map(|(_, len)| u64::from(*len)).sum()
    }

    fn check(&self) -> Result<(), String> {
        check_places(&self.chunks, &self.objects, &self.sparse)?;
        if !self.objects.is_sorted_by(|one, other| one.digest < other.digest) {
            return Err("objects are not sorted".into());
        }
        let runs: usize = self.objects.iter().map(|place| place.chunk_count as usize).sum();
        match runs > Arrivals::MAX {
            true => Err(format!("objects stand in {runs} chunks, counted for each")),
            false => Ok(()),
        }
    }
}
