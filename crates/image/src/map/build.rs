//! A map of the objects that a tree names, out of the records of its layers.

use std::collections::HashMap;

use crate::Digest;
use crate::map::Map;
use crate::merge::{FileTree, Node};
use crate::record::{Content, LayerRecord, ObjectPlace};
use crate::sparse::Sparse;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MapError {
    #[error("build map: object {0} stands in no layer")]
    NoSuchObject(Digest),
    #[error("build map: object {digest} has {found} bytes where the tree says {expected}")]
    WrongLength { digest: Digest, expected: u64, found: u64 },
    #[error("build map: {0}")]
    Invalid(String),
}

/// A map on its way: takes the records of the tree's layers, one at a time, bottom first.
#[derive(Debug)]
pub struct MapBuilder {
    /// Objects that no layer had so far, and their lengths.
    wanted: HashMap<Digest, u64>,
    map: Map,
}

impl MapBuilder {
    /// Only the objects that the tree names will be mapped, and only the chunks that those need.
    pub fn new(tree: &FileTree) -> MapBuilder {
        MapBuilder { wanted: wanted(tree), map: Map::default() }
    }

    /// Takes what is wanted of the next layer: an object that several layers hold is the lowest one's.
    pub fn add(&mut self, layer: &LayerRecord) -> Result<(), MapError> {
        let taken: Vec<&ObjectPlace> = layer
            .objects
            .iter()
            .filter_map(|place| Some((place, self.wanted.remove(&place.digest)?)))
            .map(|(place, expected)| check_len(place, expected))
            .collect::<Result<_, _>>()?;
        self.map.take(layer, &taken)
    }

    pub fn finish(self) -> Result<Map, MapError> {
        let MapBuilder { wanted, mut map } = self;
        if let Some(digest) = wanted.into_keys().min() {
            return Err(MapError::NoSuchObject(digest));
        }
        map.objects.sort_unstable_by_key(|place| place.digest);
        map.sparse.sort_unstable_by_key(|sparse| sparse.object);
        map.check().map_err(MapError::Invalid)?;
        Ok(map)
    }
}

impl Map {
    /// The map of a tree, for who holds the records of all its layers anyway.
    pub fn build(tree: &FileTree, layers: &[&LayerRecord]) -> Result<Map, MapError> {
        let mut builder = MapBuilder::new(tree);
        for layer in layers {
            builder.add(layer)?;
        }
        builder.finish()
    }

    /// Appends the chunks of these places of a layer, and the places as they stand in this map.
    fn take(&mut self, layer: &LayerRecord, places: &[&ObjectPlace]) -> Result<(), MapError> {
        let positions = self.take_chunks(layer, places)?;
        for place in places {
            // One that is all hole stands in no chunk.
            let first_chunk = positions.get(place.first_chunk as usize).copied().unwrap_or_default();
            self.objects.push(ObjectPlace { first_chunk, ..**place });
            self.sparse.extend(Sparse::find(&layer.sparse, &place.digest).cloned());
        }
        Ok(())
    }

    /// Appends the chunks that the places stand in; says for each chunk of the layer where it is now.
    fn take_chunks(&mut self, layer: &LayerRecord, places: &[&ObjectPlace]) -> Result<Vec<u32>, MapError> {
        let chunks = &layer.chunks;
        let mut needed = vec![false; chunks.len()];
        for place in places {
            let first = place.first_chunk as usize;
            let run = needed.get_mut(first..first.saturating_add(place.chunk_count as usize));
            let hollow = Sparse::find(&layer.sparse, &place.digest).is_some();
            let run = run.filter(|run| hollow || !run.is_empty()).ok_or_else(|| {
                MapError::Invalid(format!("object {}: stands in chunks that are not there", place.digest))
            })?;
            run.fill(true);
        }
        let mut positions = vec![0; chunks.len()];
        for ((chunk, needed), position) in chunks.iter().zip(needed).zip(&mut positions) {
            *position =
                u32::try_from(self.chunks.len()).map_err(|_| MapError::Invalid("too many chunks".into()))?;
            if needed {
                self.chunks.push(*chunk);
            }
        }
        Ok(positions)
    }
}

/// The objects that the tree names, and their lengths.
fn wanted(tree: &FileTree) -> HashMap<Digest, u64> {
    let object = |node: &Node| match node {
        Node::File(Content::Object { digest, len }) => Some((*digest, *len)),
        _ => None,
    };
    tree.inodes().iter().filter_map(|inode| object(&inode.node)).collect()
}

fn check_len(place: &ObjectPlace, expected: u64) -> Result<&ObjectPlace, MapError> {
    match place.len == expected {
        true => Ok(place),
        false => Err(MapError::WrongLength { digest: place.digest, expected, found: place.len }),
    }
}
