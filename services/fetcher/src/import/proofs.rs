//! Which known layers an image may use: knowing a layer's digest is not the right to have it.
//!
//! A manifest and a config are a few lines that anyone can write, with any digest in them. So a layer that is known here counts as
//! known for an image only when the image's own registry vouches for it:
//!
//! | the layer was read, whole, under the blob's digest that the image names | then it is |
//! |---|---|
//! | from the image's own repository | known: whom its registry let read the manifest may read its blobs |
//! | from another repository of the same registry | known, once the registry shows the blob in the image's repository to this caller |
//! | from other registries only | read again: who runs a registry can say that it has any blob, but not send its bytes |
//!
//! A blob under another digest is another blob, whatever diff id its config claims. What a registry showed is believed for
//! [`SHOWN_FOR`]; the layers of one image are asked for side by side, [`QUESTIONS_AT_ONCE`] at a time.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use proto::LayerSource;

use crate::source::{BlobPlace, LayerDescriptor, Source, SourceError};

/// Questions to one registry at the same time.
pub(crate) const QUESTIONS_AT_ONCE: usize = 8;
/// How long what a registry showed is believed.
const SHOWN_FOR: Duration = Duration::from_secs(600);
/// Blobs that registries showed; of more all are forgotten, and asked for anew.
const SHOWN_MAX: usize = 10_000;

/// What registries showed lately, by repository and blob.
#[derive(Debug, Default)]
pub(crate) struct Proofs {
    shown: Mutex<HashMap<(String, String), Instant>>,
}

/// What is known of a layer's sources, for one place that has it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    Unknown,
    /// Once the registry shows it.
    IfShown,
    Known,
}

impl Proofs {
    /// Whether `layer`, which was read from `sources`, is known for an image of `place`.
    pub(crate) async fn is_known(
        &self,
        source: &Source,
        place: &BlobPlace,
        layer: &LayerDescriptor,
        sources: &[LayerSource],
    ) -> Result<bool, SourceError> {
        match standing(place, &layer.digest, sources) {
            Standing::Known => Ok(true),
            Standing::Unknown => Ok(false),
            Standing::IfShown => self.is_shown(source, place, layer).await,
        }
    }

    /// Whether the registry shows all of an image's layers in `place`.
    pub(crate) async fn are_shown(
        &self,
        source: &Source,
        place: &BlobPlace,
        layers: &[LayerDescriptor],
    ) -> Result<bool, SourceError> {
        let mut seen = HashSet::new();
        let asked = layers.iter().filter(|layer| seen.insert(layer.digest.as_str()));
        let asked: Vec<_> = asked.map(|layer| self.is_shown(source, place, layer)).collect();
        stream::iter(asked).buffer_unordered(QUESTIONS_AT_ONCE).try_all(std::future::ready).await
    }

    async fn is_shown(
        &self,
        source: &Source,
        place: &BlobPlace,
        layer: &LayerDescriptor,
    ) -> Result<bool, SourceError> {
        let key = (place.repository.clone(), layer.digest.clone());
        if self.shown().get(&key).is_some_and(|at| at.elapsed() < SHOWN_FOR) {
            return Ok(true);
        }
        let shown = source.shows(layer).await?;
        let outcome = if shown { "shown" } else { "not-shown" };
        metrics::counter!("sluice_fetcher_blob_proofs_total", "outcome" => outcome).increment(1);
        if !shown {
            tracing::warn!(
                place = place.repository,
                layer = layer.digest,
                "the registry does not show a layer that it names"
            );
            return Ok(false);
        }
        let mut all = self.shown();
        if all.len() >= SHOWN_MAX {
            all.clear();
        }
        all.insert(key, Instant::now());
        Ok(true)
    }

    fn shown(&self) -> MutexGuard<'_, HashMap<(String, String), Instant>> {
        // Every change is one insertion.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a note of this place says about a blob.
pub(crate) fn source_of(place: &BlobPlace, layer: &LayerDescriptor) -> LayerSource {
    LayerSource {
        blob: layer.digest.clone(),
        registry: place.registry.clone(),
        repository: place.repository.clone(),
    }
}

pub(crate) fn standing(place: &BlobPlace, blob: &str, sources: &[LayerSource]) -> Standing {
    if place.is_on_disk() {
        // Whose disk it is may read the store as well.
        return Standing::Known;
    }
    let same = sources.iter().filter(|source| source.blob == blob && place.is_of_registry(&source.registry));
    let standing = |source: &LayerSource| match source.repository == place.repository {
        true => Standing::Known,
        false => Standing::IfShown,
    };
    same.map(standing).max().unwrap_or(Standing::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> BlobPlace {
        BlobPlace::of(&name.parse().unwrap())
    }

    #[test]
    fn a_layer_is_known_where_it_was_read_and_elsewhere_only_if_shown_or_read() {
        let source = |name: &str, blob: &str| {
            let BlobPlace { registry, repository, .. } = place(name);
            LayerSource { blob: blob.to_owned(), registry, repository }
        };
        let sources =
            [source("one.example/team/app:1", "b"), source("two.example/x", "c"), source("oci:/d", "e")];
        for (name, blob, expected) in [
            ("one.example/team/app:2", "b", Standing::Known),
            ("one.example/other", "b", Standing::IfShown),
            ("two.example/team/app", "b", Standing::Unknown),
            ("two.example/x", "c", Standing::Known),
            // The diff id is the same, the blob is not: nobody has seen that it is the same layer.
            ("one.example/team/app:1", "c", Standing::Unknown),
            ("one.example/team/app:1", "e", Standing::Unknown),
            ("oci:/other", "b", Standing::Known),
        ] {
            assert_eq!(standing(&place(name), blob, &sources), expected, "{name} {blob}");
        }
        assert_eq!(standing(&place("one.example/team/app"), "b", &[]), Standing::Unknown, "of an old record");
        let renamed = BlobPlace { also: vec!["one.example".to_owned()], ..place("one.test/team/app") };
        assert_eq!(standing(&renamed, "b", &sources), Standing::IfShown);
    }
}
