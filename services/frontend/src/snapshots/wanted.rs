//! What a Prepare is for: the labels that containerd puts on the layers of an image it pulls.
//!
//! ```text
//! containerd.io/snapshot.ref                    the layer's chain id: the name it will be known by
//! containerd.io/snapshot/cri.image-ref          the image as it was asked for
//! containerd.io/snapshot/cri.manifest-digest    the manifest of the node's platform
//! containerd.io/snapshot/cri.layer-digest       the layer's own digest
//! ```
//!
//! The first is always there when a layer is unpacked; the others only where annotations are switched on. Clients of containerd
//! that pull for stargz' snapshotter (`ctr-remote images rpull`) name the image in a label of their own, without its manifest:
//!
//! ```text
//! containerd.io/snapshot/remote/stargz.reference
//! ```

use std::collections::BTreeMap;

use image::ImageRecord;
use names::Reference;

use super::ledger::Streamed;

pub(super) const TARGET: &str = "containerd.io/snapshot.ref";
const IMAGE: &str = "containerd.io/snapshot/cri.image-ref";
const IMAGE_OF_STARGZ: &str = "containerd.io/snapshot/remote/stargz.reference";
const MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";
pub(super) const LAYER: &str = "containerd.io/snapshot/cri.layer-digest";

/// A layer that containerd is about to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    /// Its chain id.
    pub(super) target: String,
    /// Absent: annotations do not reach us.
    pub(super) image: Option<Image>,
}

/// One layer of an image that streams: the name that it is known by, and what it stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) name: String,
    /// Of its blob.
    pub(super) digest: String,
    pub(super) parent: Option<String>,
    pub(super) streamed: Streamed,
}

/// The image that it is a layer of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// As it was asked for.
    pub(super) reference: String,
    /// Digest of its manifest, where it is said.
    pub(super) manifest: Option<String>,
}

impl Layer {
    /// None when this is no layer of an image: a container's own snapshot.
    pub(super) fn of(labels: &BTreeMap<String, String>) -> Option<Layer> {
        let target = labels.get(TARGET)?.clone();
        let of_cri = labels.get(IMAGE).zip(labels.get(MANIFEST).map(Some));
        let of_stargz = labels.get(IMAGE_OF_STARGZ).map(|reference| (reference, None));
        let image = of_cri
            .or(of_stargz)
            .map(|(reference, manifest)| Image { reference: reference.clone(), manifest: manifest.cloned() });
        Some(Layer { target, image })
    }

    /// This layer and those above it, as the image stacks them; none when the image does not have it over that parent.
    pub(super) fn places_in(&self, record: &ImageRecord, parent: Option<&str>) -> Option<Vec<Place>> {
        let diff_ids = record.layers.iter().map(|layer| layer.diff_id.as_str());
        let chains: Vec<String> = image::chain_ids(diff_ids).collect();
        let lowest = chains.iter().position(|chain| *chain == self.target)?;
        let below = |layer: usize| layer.checked_sub(1).map(|below| chains[below].clone());
        let place = |layer: usize| Place {
            name: chains[layer].clone(),
            digest: record.layers[layer].digest.clone(),
            parent: below(layer),
            streamed: Streamed {
                manifest: record.manifest_digest.clone(),
                layer: layer as u32,
                layers: chains.len() as u32,
            },
        };
        (below(lowest).as_deref() == parent).then(|| (lowest..chains.len()).map(place).collect())
    }
}

impl Image {
    pub(super) fn with_manifest(self, manifest: &str) -> Image {
        Image { manifest: Some(manifest.to_owned()), ..self }
    }

    /// The same image by its digest: what a tag means may have changed since containerd looked. The tag stays, for policies.
    /// Where no digest is said, layers tell: those of another image are not found in this one.
    pub(super) fn pinned(&self) -> String {
        let manifest = self.manifest.as_ref().and_then(|manifest| manifest.parse().ok());
        match (Reference::parse(&self.reference), manifest) {
            (Some(reference), Some(manifest)) => reference.pinned(&manifest).to_string(),
            _ => self.reference.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use image::Digest;
    use image::record::{IndexRef, LayerRef};

    use super::*;

    fn diff_id(digit: &str) -> String {
        format!("sha256:{}", digit.repeat(64))
    }

    fn record(diff_ids: &[&str]) -> ImageRecord {
        let index = IndexRef { digest: Digest::of(b""), plain_len: 0, stored_len: 0 };
        let layer = |digit: &&str| LayerRef {
            digest: String::new(),
            diff_id: diff_id(digit),
            media_type: String::new(),
            size: 0,
            entries: 0,
        };
        ImageRecord {
            project: "default".to_owned(),
            manifest_digest: diff_id("f"),
            references: Vec::new(),
            config: Vec::new(),
            tree: index,
            map: index,
            layers: diff_ids.iter().map(layer).collect(),
            files: 0,
            plain_bytes: 0,
            stored_bytes: 0,
            imported_unix: 0,
            imported_by: String::new(),
        }
    }

    fn wanted(target: &str) -> Layer {
        Layer { target: target.to_owned(), image: None }
    }

    #[test]
    fn reads_the_labels_and_says_when_they_are_missing() {
        let mut labels = BTreeMap::new();
        assert_eq!(Layer::of(&labels), None);
        labels.insert(TARGET.to_owned(), "sha256:t".to_owned());
        assert_eq!(Layer::of(&labels), Some(wanted("sha256:t")));
        labels.insert(IMAGE.to_owned(), "docker.io/library/a:1".to_owned());
        assert_eq!(Layer::of(&labels).unwrap().image, None);
        labels.insert(MANIFEST.to_owned(), diff_id("a"));
        let pinned = format!("docker.io/library/a:1@{}", diff_id("a"));
        assert_eq!(Layer::of(&labels).unwrap().image.unwrap().pinned(), pinned);
        // What is no digest pins nothing: the layers tell whether it is this image.
        labels.insert(MANIFEST.to_owned(), "sha256:m".to_owned());
        assert_eq!(Layer::of(&labels).unwrap().image.unwrap().pinned(), "docker.io/library/a:1");
        let labels = [(TARGET, "sha256:t"), (IMAGE_OF_STARGZ, "docker.io/library/a:1")];
        let labels = labels.map(|(label, value)| (label.to_owned(), value.to_owned())).into();
        assert_eq!(Layer::of(&labels).unwrap().image.unwrap().pinned(), "docker.io/library/a:1");
    }

    #[test]
    fn finds_each_layer_over_its_own_parent_only() {
        let record = record(&["a", "b", "b"]);
        let ids = ["a", "b", "b"].map(diff_id);
        let chains: Vec<String> = image::chain_ids(ids.iter().map(String::as_str)).collect();
        let places = wanted(&diff_id("a")).places_in(&record, None).unwrap();
        let names: Vec<&String> = places.iter().map(|place| &place.name).collect();
        assert_eq!(names, chains.iter().collect::<Vec<_>>());
        assert_eq!((places[0].parent.as_ref(), places[2].parent.as_ref()), (None, Some(&chains[1])));
        let streamed = &places[0].streamed;
        assert_eq!((streamed.layer, streamed.layers, streamed.is_top()), (0, 3, false));
        let places = wanted(&chains[2]).places_in(&record, Some(&chains[1])).unwrap();
        assert_eq!((places.len(), places[0].streamed.layer, places[0].streamed.is_top()), (1, 2, true));
        assert_eq!(wanted(&chains[2]).places_in(&record, None), None);
        assert_eq!(wanted(&diff_id("b")).places_in(&record, None), None);
    }
}
