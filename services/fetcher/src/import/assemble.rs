//! From layer records to tree and map, and those into the store.

use std::sync::Arc;

use bytes::Bytes;
use image::record::IndexRef;
use image::{Digest, LayerRecord, Map, erofs};
use store::{Index, ProjectStore, Put, StoreError, verify};

use super::error::ImportError;
use super::{Order, store_error};

/// An image's indexes and what they add up to.
#[derive(Debug)]
pub(super) struct Assembled {
    pub(super) tree: Sealed,
    pub(super) map: Sealed,
    pub(super) files: u64,
    pub(super) plain_bytes: u64,
    pub(super) stored_bytes: u64,
}

/// An index in its stored form.
#[derive(Debug)]
pub(super) struct Sealed {
    digest: Digest,
    plain_len: u64,
    stored: Bytes,
}

/// Merges the layers, bottom first; on a thread of its own.
pub(super) async fn assemble(
    image: &str,
    layers: Vec<Arc<LayerRecord>>,
    tree_max: u64,
) -> Result<Assembled, ImportError> {
    let name = image.to_owned();
    let assembled = tokio::task::spawn_blocking(move || assemble_blocking(&name, &layers, tree_max)).await;
    assembled.map_err(|error| internal(image, error))?
}

fn assemble_blocking(
    image: &str,
    layers: &[Arc<LayerRecord>],
    tree_max: u64,
) -> Result<Assembled, ImportError> {
    let layers: Vec<&LayerRecord> = layers.iter().map(Arc::as_ref).collect();
    let tree = image::merge::merge(&layers)
        .map_err(|cause| ImportError::Merge { image: image.to_owned(), cause })?;
    let map = Map::build(&tree, &layers).map_err(|error| internal(image, error))?;
    let tree_max = usize::try_from(tree_max).unwrap_or(usize::MAX);
    let plain_tree = erofs::write_within(&tree, tree_max)
        .map_err(|cause| ImportError::Tree { image: image.to_owned(), cause })?;
    let plain_map = map.encode().map_err(|cause| ImportError::Encoding { image: image.to_owned(), cause })?;
    Ok(Assembled {
        tree: Sealed::new(&plain_tree).map_err(|error| internal(image, error))?,
        map: Sealed::new(&plain_map).map_err(|error| internal(image, error))?,
        files: tree.files(),
        plain_bytes: map.plain_bytes(),
        stored_bytes: map.stored_bytes(),
    })
}

impl Assembled {
    /// Stores tree and map; how many of them stood there damaged.
    pub(super) async fn store(&self, order: &Order) -> Result<u64, ImportError> {
        let tree = self.tree.store(&order.project, Index::Tree).await.map_err(store_error(order))?;
        let map = self.map.store(&order.project, Index::Map).await.map_err(store_error(order))?;
        Ok(u64::from(tree) + u64::from(map))
    }
}

impl Sealed {
    fn new(plain: &[u8]) -> std::io::Result<Sealed> {
        let stored = verify::seal_index(plain)?.into();
        Ok(Sealed { digest: Digest::of(plain), plain_len: plain.len() as u64, stored })
    }

    pub(super) fn index_ref(&self) -> IndexRef {
        IndexRef { digest: self.digest, plain_len: self.plain_len, stored_len: self.stored.len() as u64 }
    }

    /// An index that is there already is read back: a new image must not begin with an old damage.
    async fn store(&self, project: &ProjectStore, index: Index) -> Result<bool, StoreError> {
        if project.put_index(index, self.digest, self.stored.clone()).await? == Put::Written {
            return Ok(false);
        }
        let damaged = match project.index(index, self.digest).await {
            Ok(stored) => stored != self.stored && verify::open_index(&self.digest, &stored).is_err(),
            Err(error) if error.is_not_found() => true,
            Err(error) => return Err(error),
        };
        if damaged {
            tracing::warn!(?index, digest = %self.digest, "a stored index was damaged; replacing it");
            project.replace_index(index, self.digest, self.stored.clone()).await?;
        }
        Ok(damaged)
    }
}

fn internal(image: &str, error: impl std::fmt::Display) -> ImportError {
    ImportError::Internal { image: image.to_owned(), reason: error.to_string() }
}
