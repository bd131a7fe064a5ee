//! What images that are being opened put on the disk, and take off again when they cannot be.
//!
//! Trees and maps are named by their digests, so two images may share them, and one that cannot be opened must not
//! take them from another that is being opened beside it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use image::{Digest, ImageRecord};

use super::{Images, Node, disk_status};

/// How many openings need each index. An image's tree and map never have the same digest.
#[derive(Debug, Default)]
pub(super) struct Openings(Mutex<HashMap<Digest, usize>>);

/// One image that is being opened; until it is dropped nobody else takes its indexes away.
#[derive(Debug)]
pub(super) struct Opening {
    openings: Arc<Openings>,
    tree: Digest,
    map: Digest,
}

impl Openings {
    pub(super) fn begin(self: &Arc<Self>, tree: Digest, map: Digest) -> Opening {
        let mut needed = self.needed();
        for index in [tree, map] {
            *needed.entry(index).or_default() += 1;
        }
        Opening { openings: self.clone(), tree, map }
    }

    fn needed(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        // Every change is one number.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Opening {
    /// Runs `remove` for the tree and the map, each with whether it is the tree, unless another opening needs it. None begins
    /// meanwhile.
    fn only_ours(&self, mut remove: impl FnMut(&Digest, bool)) {
        let needed = self.openings.needed();
        for (index, is_tree) in [(&self.tree, true), (&self.map, false)] {
            if needed.get(index).is_some_and(|openings| *openings == 1) {
                remove(index, is_tree);
            }
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut needed = self.openings.needed();
        for index in [self.tree, self.map] {
            if let Some(openings) = needed.get_mut(&index) {
                *openings -= 1;
                if *openings == 0 {
                    needed.remove(&index);
                }
            }
        }
    }
}

impl Images {
    /// Takes an image that could not be opened out of memory, and off the disk what no image of this node needs.
    pub(super) async fn clear_failed(&self, manifest: &str, opening: Opening) {
        self.unload(manifest);
        let images = self.clone();
        let removed = self.blocking(move |node| {
            let roots = node.mounts.roots().map_err(|error| disk_status("read the mount table", &error))?;
            opening.only_ours(|index, is_tree| {
                let of = |record: &ImageRecord| if is_tree { record.tree.digest } else { record.map.digest };
                let named = images.present().values().any(|image| of(&image.record) == *index);
                if !named && !roots.iter().any(|root| root.tree == *index) {
                    node.remove_index(index, is_tree);
                }
            });
            Ok(())
        });
        if let Err(error) = removed.await {
            tracing::warn!(image = manifest, %error, "what it left on the disk stays until the next start");
        }
    }
}

impl Node {
    /// Takes off the disk what openings left that were cut short: indexes that no kept record names, and no standing root.
    pub(super) fn remove_unnamed_indexes(&self, kept: &[ImageRecord], roots: &[crate::mount::Root]) {
        let indexes = match self.objects.indexes() {
            Ok(indexes) => indexes,
            Err(error) => {
                tracing::warn!(%error, "what broken openings left on the disk is not known");
                return;
            }
        };
        for (index, is_tree) in indexes {
            let named = kept.iter().any(|record| match is_tree {
                true => record.tree.digest == index,
                false => record.map.digest == index,
            });
            if !named && !roots.iter().any(|root| root.tree == index) {
                tracing::info!(%index, is_tree, "removing what an opening left that was cut short");
                self.remove_index(&index, is_tree);
            }
        }
    }

    fn remove_index(&self, index: &Digest, is_tree: bool) {
        if is_tree {
            self.mounts.remove_tree(index);
        }
        let removed = match is_tree {
            true => self.objects.remove_tree(index),
            false => self.objects.remove_map(index),
        };
        if let Err(error) = removed {
            tracing::warn!(%index, is_tree, %error, "an index that no image needs stays on the disk");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_opening_needs_is_nobodys_to_remove() {
        let openings = Arc::new(Openings::default());
        let removed = |opening: &Opening| {
            let mut removed = Vec::new();
            opening.only_ours(|index, is_tree| removed.push((*index, is_tree)));
            removed
        };
        let one = openings.begin(Digest::of(b"tree"), Digest::of(b"map"));
        let other = openings.begin(Digest::of(b"tree"), Digest::of(b"other map"));
        assert_eq!(removed(&one), [(Digest::of(b"map"), false)]);
        drop(other);
        assert_eq!(removed(&one), [(Digest::of(b"tree"), true), (Digest::of(b"map"), false)]);
        drop(one);
        assert!(openings.needed().is_empty());
    }
}
