//! What is remembered of a layer and of an image.
//!
//! A [`LayerRecord`] is all that the scan of one layer found: with it an image of known layers is
//! imported without a download. An [`ImageRecord`] names an image's tree and map; the fetcher
//! signs its encoding. Both are stored as [`crate::encoding`] writes them.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::encoding::{self, EncodingError, IMAGE_RECORD, LAYER_RECORD};
use crate::limits::{LAYERS_MAX, REFERENCES_MAX};
use crate::sparse::Sparse;

pub(crate) mod check;
#[cfg(test)]
mod tests;
pub(crate) mod xattrs;

pub use check::places as check_places;
pub use xattrs::Xattrs;

/// The scan of one layer. Entries stand in tar order; a later one of the same path wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerRecord {
    /// sha256 of the uncompressed tar, raw.
    pub diff_id: [u8; 32],
    /// Length of the uncompressed tar in bytes.
    pub tar_len: u64,
    pub entries: Vec<Entry>,
    /// The chunks that this layer's objects stand in, in the order they were cut.
    pub chunks: Vec<ChunkRef>,
    /// Where each distinct object of the layer stands; in order of first appearance.
    pub objects: Vec<ObjectPlace>,
    /// Of the objects with holes, where their data stands; sorted by object.
    pub sparse: Vec<Sparse>,
}

/// One member of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative, normalised, without leading, trailing or doubled slash, without `.` or `..`;
    /// empty for the root. Not necessarily UTF-8.
    pub path: Vec<u8>,
    pub kind: EntryKind,
    pub meta: Meta,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    Directory,
    File(Content),
    Symlink(#[serde(with = "crate::encoding::bytes")] Vec<u8>),
    /// Another name of an earlier entry, of this layer or of a lower one; a normalised path.
    Hardlink(#[serde(with = "crate::encoding::bytes")] Vec<u8>),
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
    /// `.wh.NAME`: what lower layers have at `path` is gone (`path` is the target's).
    Whiteout,
    /// `.wh..wh..opq`: what lower layers have inside the directory `path` is gone.
    Opaque,
}

/// The bytes of a regular file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// At most [`crate::limits::INLINE_MAX`] bytes: kept in the tree itself.
    Inline(#[serde(with = "crate::encoding::bytes")] Vec<u8>),
    Object {
        digest: Digest,
        len: u64,
    },
}

impl Content {
    pub fn len(&self) -> u64 {
        match self {
            Content::Inline(bytes) => bytes.len() as u64,
            Content::Object { len, .. } => *len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub major: u32,
    pub minor: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permission, set-id and sticky bits: `0o7777` at most.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Mtime,
    /// Sorted by name, each name once.
    pub xattrs: Xattrs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mtime {
    pub secs: i64,
    pub nanos: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Xattr {
    /// With its namespace: `security.capability`.
    #[serde(with = "crate::encoding::bytes")]
    pub name: Vec<u8>,
    #[serde(with = "crate::encoding::bytes")]
    pub value: Vec<u8>,
}

/// A chunk as it is stored: zstd over `plain_len` bytes whose BLAKE3 digest is its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkRef {
    pub digest: Digest,
    pub plain_len: u32,
    /// When the image was imported. Another frame may have taken its place since, so this is an estimate.
    pub stored_len: u32,
}

/// A chunk of the record that was never stored.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the stored length of chunk {0} is not known")]
pub struct UnknownChunk(pub Digest);

/// Where an object stands: in consecutive chunks `first_chunk ..= first_chunk + chunk_count - 1`
/// of the table beside it. An object of one chunk begins at `offset` in it, and may share the chunk
/// with others; an object of several fills all of them exactly (`offset` is 0). The data of an object with holes
/// ([`Sparse`]) fills its chunks exactly, one or several, or none when it has no data; `len` counts the holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectPlace {
    pub digest: Digest,
    pub len: u64,
    pub first_chunk: u32,
    pub chunk_count: u32,
    pub offset: u32,
}

/// All that is needed to stream an image. The fetcher signs its encoding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    pub project: String,
    /// `sha256:<hex>` of the platform's manifest.
    pub manifest_digest: String,
    /// How the image was named by those who imported it; sorted, each once.
    #[serde(deserialize_with = "encoding::at_most::<_, _, REFERENCES_MAX>")]
    pub references: Vec<String>,
    /// The image's config, verbatim JSON: its digest stands in the manifest.
    #[serde(with = "crate::encoding::bytes")]
    pub config: Vec<u8>,
    pub tree: IndexRef,
    pub map: IndexRef,
    #[serde(deserialize_with = "encoding::at_most::<_, _, LAYERS_MAX>")]
    pub layers: Vec<LayerRef>,
    /// Regular files in the tree, hard links counted once.
    pub files: u64,
    /// Plain bytes of all distinct objects.
    pub plain_bytes: u64,
    /// Stored bytes of all distinct chunks.
    pub stored_bytes: u64,
    pub imported_unix: u64,
    /// Who imported it: the fetcher's instance name.
    pub imported_by: String,
}

/// A tree or a map in the store: BLAKE3 of its plain bytes, and its lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexRef {
    pub digest: Digest,
    pub plain_len: u64,
    pub stored_len: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRef {
    /// `sha256:<hex>` of the blob, as in the manifest.
    pub digest: String,
    /// `sha256:<hex>` of the uncompressed tar, as in the config.
    pub diff_id: String,
    pub media_type: String,
    /// Of the blob, in bytes.
    pub size: u64,
    pub entries: u64,
}

impl LayerRecord {
    pub fn encode(&self) -> Result<Vec<u8>, EncodingError> {
        encoding::encode(LAYER_RECORD, self)
    }

    /// A record that keeps every rule of its types, whoever wrote the bytes.
    pub fn decode(encoded: &[u8]) -> Result<LayerRecord, EncodingError> {
        let record: LayerRecord = encoding::decode(LAYER_RECORD, encoded)?;
        check::layer(&record).map_err(|reason| LAYER_RECORD.invalid(reason))?;
        Ok(record)
    }

    /// Fills in what the scan cannot know: how long each chunk became when it was stored.
    pub fn set_stored_lens(&mut self, stored_lens: &HashMap<Digest, u32>) -> Result<(), UnknownChunk> {
        for chunk in &mut self.chunks {
            chunk.stored_len = *stored_lens.get(&chunk.digest).ok_or(UnknownChunk(chunk.digest))?;
        }
        Ok(())
    }
}

impl ImageRecord {
    pub fn encode(&self) -> Result<Vec<u8>, EncodingError> {
        encoding::encode(IMAGE_RECORD, self)
    }

    pub fn decode(encoded: &[u8]) -> Result<ImageRecord, EncodingError> {
        let record: ImageRecord = encoding::decode(IMAGE_RECORD, encoded)?;
        check::image(&record).map_err(|reason| IMAGE_RECORD.invalid(reason))?;
        Ok(record)
    }
}
