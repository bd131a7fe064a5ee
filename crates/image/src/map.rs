//! For every object of a tree, the chunks that hold it and where.

use serde::{Deserialize, Serialize};

use crate::record::{ChunkRef, ObjectPlace};

/// An image's map. Valid by construction: [`Map::decode`] refuses one that is not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Map {
    /// In the order of the layers and of their cutting: neighbours travel together.
    pub chunks: Vec<ChunkRef>,
    /// Sorted by digest, each once.
    pub objects: Vec<ObjectPlace>,
}
