//! Which images containerd's snapshots name. What is claimed stays, whatever the disk's budget says: containerd
//! decides when it goes; and what is claimed no longer goes at once, its downloads first. What could not go is tried
//! again until it is gone or claimed again.

use std::collections::{BTreeMap, BTreeSet};

use super::{Images, Node};

/// Manifest digest, and whether a container's snapshot stands on the image.
pub(crate) type Claims = BTreeMap<String, bool>;

impl Images {
    /// Replaces all claims. Images that were claimed before and are no longer leave the node.
    pub(crate) fn claim(&self, claims: Claims) {
        let before = {
            let mut now = self.node.claims();
            std::mem::replace(&mut *now, claims.clone())
        };
        for manifest in before.into_keys().filter(|manifest| !claims.contains_key(manifest)) {
            let images = self.clone();
            self.node.tasks.spawn(async move { images.give_up(&manifest).await });
        }
    }

    /// Tries again with images that nobody claims, but that could not be evicted when their last snapshot was removed.
    pub(super) async fn give_up_rest(&self) {
        let rest = self.node.unclaimed().clone();
        for manifest in rest {
            self.give_up(&manifest).await;
        }
    }

    /// Stops the image's downloads, then takes it off the disk; both only while nobody wants it again.
    async fn give_up(&self, manifest: &str) {
        {
            let _turn = self.node.turns.take(manifest).await;
            let idle = |image: &super::Present| image.targets.is_empty();
            let image = self.get(manifest);
            if self.node.is_claimed(manifest) || image.is_err() {
                self.node.unclaimed().remove(manifest);
                return;
            }
            // Until it goes, or is claimed again.
            self.node.unclaimed().insert(manifest.to_owned());
            if !image.as_ref().is_ok_and(idle) {
                return;
            }
            self.unload(manifest);
            if let Some(image) = self.present().get_mut(manifest) {
                image.content = None;
            }
        }
        match self.evict(manifest).await {
            Ok(freed) => {
                self.node.unclaimed().remove(manifest);
                tracing::info!(image = manifest, freed, "its last snapshot was removed");
            }
            Err(error) => tracing::info!(image = manifest, %error, "not evicted with its last snapshot yet"),
        }
    }
}

impl Node {
    pub(super) fn is_claimed(&self, manifest: &str) -> bool {
        self.claims().contains_key(manifest)
    }

    /// Whether a container's snapshot stands on it.
    pub(super) fn is_in_use(&self, manifest: &str) -> bool {
        self.claims().get(manifest).copied().unwrap_or(false)
    }

    fn unclaimed(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        // Each change is one insertion or removal.
        self.unclaimed.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn claims(&self) -> std::sync::MutexGuard<'_, Claims> {
        // Replaced as a whole: a panic cannot leave half of it.
        self.claims.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
