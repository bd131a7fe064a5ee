//! From layer records to tree and map, and those into the store.
//!
//! Records are read twice, bottom first and one at a time: once for the tree, and once for the map of
//! the objects that the tree names. Each form of an index is gone when the next is made of it:
//!
//! ```text
//! records --> tree --> its plain bytes --> sealed --> store
//!               '----> objects wanted
//! records -----------> map --> its plain bytes --> sealed --> store
//! ```

use bytes::Bytes;
use image::map::{MapBuilder, MapError};
use image::merge::Merger;
use image::record::IndexRef;
use image::{Digest, Map, erofs};
use store::{Index, ProjectStore, Put, StoreError, verify};

use super::error::ImportError;
use super::records::fold;
use super::{Order, internal, on_thread, store_error};
use crate::records::Records;
use crate::source::LayerDescriptor;

/// An image's indexes, which are in the store, and what they add up to.
#[derive(Debug)]
pub(super) struct Assembled {
    pub(super) tree: IndexRef,
    pub(super) map: IndexRef,
    pub(super) files: u64,
    pub(super) plain_bytes: u64,
    pub(super) stored_bytes: u64,
    /// How many of them stood there damaged.
    pub(super) replaced: u64,
}

/// An index in its stored form.
#[derive(Debug)]
struct Sealed {
    digest: Digest,
    plain_len: u64,
    stored: Bytes,
}

/// Merges the layers of an image, whose records are in the store; `distinct` has each of them once.
pub(super) async fn assemble(
    records: &Records,
    order: &Order,
    distinct: &[&LayerDescriptor],
    tree_max: u64,
) -> Result<Assembled, ImportError> {
    let image = &order.image;
    let stacked: Vec<&LayerDescriptor> = order.found.layers.iter().collect();
    let merger = fold(records, order, &stacked, Merger::new(), Merger::add).await?;
    let merger = merger.map_err(|cause| ImportError::Merge { image: image.clone(), cause })?;
    let (tree, files, builder) = on_thread(image, move |image| seal_tree(image, merger, tree_max)).await?;
    let (tree, tree_replaced) = tree.store(order, Index::Tree).await?;

    // A layer that stands twice has nothing new for the map.
    let builder = fold(records, order, distinct, builder, |builder, layer| builder.add(&layer)).await?;
    let (map, plain_bytes, stored_bytes) = on_thread(image, |image| seal_map(image, builder)).await?;
    let (map, map_replaced) = map.store(order, Index::Map).await?;
    let replaced = u64::from(tree_replaced) + u64::from(map_replaced);
    Ok(Assembled { tree, map, files, plain_bytes, stored_bytes, replaced })
}

/// The tree, how many files it has, and a builder of the map of what it names.
fn seal_tree(image: &str, merger: Merger, tree_max: u64) -> Result<(Sealed, u64, MapBuilder), ImportError> {
    let tree = merger.finish();
    let plain = erofs::write_within(&tree, usize::try_from(tree_max).unwrap_or(usize::MAX))
        .map_err(|cause| ImportError::Tree { image: image.to_owned(), cause })?;
    let (files, builder) = (tree.files(), MapBuilder::new(&tree));
    drop(tree);
    Ok((Sealed::new(image, plain)?, files, builder))
}

/// The map, and what all its objects and all its chunks add up to.
fn seal_map(image: &str, builder: Result<MapBuilder, MapError>) -> Result<(Sealed, u64, u64), ImportError> {
    let map: Map = builder.and_then(MapBuilder::finish).map_err(|error| internal(image, error))?;
    let (plain_bytes, stored_bytes) = (map.plain_bytes(), map.stored_bytes());
    let plain = map.encode().map_err(|cause| ImportError::Encoding { image: image.to_owned(), cause })?;
    drop(map);
    Ok((Sealed::new(image, plain)?, plain_bytes, stored_bytes))
}

impl Sealed {
    fn new(image: &str, plain: Vec<u8>) -> Result<Sealed, ImportError> {
        let stored = verify::seal_index(&plain).map_err(|error| internal(image, error))?.into();
        Ok(Sealed { digest: Digest::of(&plain), plain_len: plain.len() as u64, stored })
    }

    /// Stores the index; whether one stood there damaged.
    async fn store(self, order: &Order, index: Index) -> Result<(IndexRef, bool), ImportError> {
        let replaced = self.put(&order.project, index).await.map_err(store_error(order))?;
        let stored_len = self.stored.len() as u64;
        Ok((IndexRef { digest: self.digest, plain_len: self.plain_len, stored_len }, replaced))
    }

    /// An index that is there already is read back: a new image must not begin with an old damage.
    async fn put(&self, project: &ProjectStore, index: Index) -> Result<bool, StoreError> {
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
