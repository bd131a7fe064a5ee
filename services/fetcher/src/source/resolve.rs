//! From the document that a name leads to, down to one platform's image.
//!
//! An index is walked depth first, best platform first; entries that state no platform are tried
//! last, by what their config says. What is walked is bounded: an index may name indexes.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use proto::Platform;

use super::document::{Config, Document, Index, Manifest, OldManifest, Unreadable, compression};
use super::{BlobDigest, Compression, Descriptor, Found, LayerDescriptor, Source, SourceError, platform};

/// Indexes inside indexes; real ones have one level, tools that nest have two.
const DEPTH_MAX: usize = 4;
/// Documents read for one image.
const DOCUMENTS_MAX: usize = 32;
/// Layers of one image; the kernel's overlayfs, for comparison, takes 500.
const LAYERS_MAX: usize = 1024;

const OLD_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v1+json";
const OLD_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const OLD_REASON: &str = "a schema 1 manifest, which names no layer contents that can be verified; push the image again \
                          with a current tool";

pub(super) async fn resolve(source: &Source, asked: &Platform) -> Result<Found, SourceError> {
    let wanted = platform::wanted(asked);
    let mut walk = Walk { source, wanted, documents: 0, offered: Vec::new() };
    let (descriptor, bytes) = source.root().await?;
    match walk.document(descriptor, bytes, 0).await? {
        Some(found) => Ok(found),
        None => Err(walk.no_such_platform()),
    }
}

struct Walk<'a> {
    source: &'a Source,
    wanted: Platform,
    documents: usize,
    /// The platforms that did not fit, for the message.
    offered: Vec<String>,
}

impl Walk<'_> {
    /// The image inside this document, if it has one for the platform. Boxed: indexes nest.
    fn document(
        &mut self,
        descriptor: Descriptor,
        bytes: Bytes,
        depth: usize,
    ) -> BoxFuture<'_, Result<Option<Found>, SourceError>> {
        async move {
            self.documents += 1;
            let header = (!descriptor.media_type.is_empty()).then_some(descriptor.media_type.as_str());
            let document =
                Document::read(&bytes, header).map_err(|error| self.unreadable(&descriptor, error))?;
            match document {
                Document::Index(index) => self.index(index, depth).await,
                Document::Manifest(manifest) => self.manifest(&descriptor, *manifest).await,
                Document::Old(manifest) => self.old_manifest(&descriptor, manifest).map(Some),
            }
        }
        .boxed()
    }

    async fn index(&mut self, index: Index, depth: usize) -> Result<Option<Found>, SourceError> {
        if depth >= DEPTH_MAX {
            let reason = format!("indexes are nested more than {DEPTH_MAX} deep");
            return Err(SourceError::unsupported(&self.source.image, reason));
        }
        for descriptor in self.candidates(index) {
            if self.documents >= DOCUMENTS_MAX {
                let reason =
                    format!("its index names more than {DOCUMENTS_MAX} images that state no platform");
                return Err(SourceError::unsupported(&self.source.image, reason));
            }
            let bytes = self.source.manifest_document(&descriptor).await?;
            if let Some(found) = self.document(descriptor, bytes, depth + 1).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// What may hold the image, best first.
    fn candidates(&mut self, index: Index) -> Vec<Descriptor> {
        let mut stated = Vec::new();
        let mut silent = Vec::new();
        for descriptor in index.manifests {
            if is_attachment(&descriptor) {
                continue;
            }
            match descriptor.platform.as_ref().and_then(platform::stated) {
                Some(offered) => match platform::rank(&self.wanted, &offered) {
                    Some(rank) => stated.push((rank, descriptor)),
                    None => self.offered.push(platform::text(&offered)),
                },
                None => silent.push(descriptor),
            }
        }
        // Stable: of equals, the first one in the index, as other tools do.
        stated.sort_by_key(|(rank, _)| *rank);
        stated.into_iter().map(|(_, descriptor)| descriptor).chain(silent).collect()
    }

    async fn manifest(
        &mut self,
        descriptor: &Descriptor,
        manifest: Manifest,
    ) -> Result<Option<Found>, SourceError> {
        let bytes = self.source.config_document(&manifest.config).await?;
        let config = Config::read(&bytes).map_err(|error| self.unreadable(&manifest.config, error))?;
        let platform = match platform::stated(&config.platform) {
            Some(stated) if platform::rank(&self.wanted, &stated).is_none() => {
                self.offered.push(platform::text(&stated));
                return Ok(None);
            }
            Some(stated) => stated,
            // Configs written by hand may say nothing: then the image is for whom asked.
            None => self.wanted.clone(),
        };
        let (layers, ineligible) = self.layers(&manifest, &config.rootfs.diff_ids)?;
        Ok(Some(Found {
            manifest_digest: descriptor.digest.to_string(),
            media_type: manifest.media_type,
            schema_version: 2,
            annotations: manifest.annotations,
            config_digest: manifest.config.digest.to_string(),
            config: bytes,
            platform,
            layers,
            ineligible,
        }))
    }

    /// What can be said of an image in the old format: enough to judge it, and that it cannot be streamed.
    fn old_manifest(&self, descriptor: &Descriptor, manifest: OldManifest) -> Result<Found, SourceError> {
        self.check_count(manifest.layers.len())?;
        let layer = |digest: BlobDigest| LayerDescriptor {
            digest: digest.to_string(),
            size: 0,
            media_type: OLD_LAYER.to_owned(),
            diff_id: String::new(),
            compression: Compression::Unknown,
        };
        Ok(Found {
            manifest_digest: descriptor.digest.to_string(),
            media_type: OLD_MANIFEST.to_owned(),
            schema_version: 1,
            annotations: BTreeMap::new(),
            config_digest: String::new(),
            config: Bytes::new(),
            platform: self.wanted.clone(),
            layers: manifest.layers.into_iter().map(layer).collect(),
            ineligible: vec![OLD_REASON.to_owned()],
        })
    }

    fn check_count(&self, layers: usize) -> Result<(), SourceError> {
        if layers > LAYERS_MAX {
            let reason = format!("it has {layers} layers, more than {LAYERS_MAX}");
            return Err(SourceError::unsupported(&self.source.image, reason));
        }
        Ok(())
    }

    fn layers(
        &self,
        manifest: &Manifest,
        diff_ids: &[BlobDigest],
    ) -> Result<(Vec<LayerDescriptor>, Vec<String>), SourceError> {
        let image = &self.source.image;
        self.check_count(manifest.layers.len())?;
        if diff_ids.len() != manifest.layers.len() {
            let reason = format!("it names {} layers, its config {}", manifest.layers.len(), diff_ids.len());
            return Err(SourceError::corrupt(image, "the manifest", reason));
        }
        let mut ineligible = Vec::new();
        let layers = manifest.layers.iter().zip(diff_ids).map(|(layer, diff_id)| {
            let compression = compression(&layer.media_type).unwrap_or_else(|reason| {
                ineligible.push(format!("layer {}: {reason}", layer.digest));
                Compression::Unknown
            });
            LayerDescriptor {
                digest: layer.digest.to_string(),
                size: layer.size,
                media_type: layer.media_type.clone(),
                diff_id: diff_id.to_string(),
                compression,
            }
        });
        Ok((layers.collect(), ineligible))
    }

    fn unreadable(&self, descriptor: &Descriptor, error: Unreadable) -> SourceError {
        let image = &self.source.image;
        match error {
            Unreadable::Unsupported(reason) => SourceError::unsupported(image, reason),
            Unreadable::Malformed(reason) => {
                SourceError::corrupt(image, descriptor.digest.to_string(), reason)
            }
        }
    }

    fn no_such_platform(mut self) -> SourceError {
        self.offered.sort();
        self.offered.dedup();
        let offered = if self.offered.is_empty() { "no image".to_owned() } else { self.offered.join(", ") };
        let reason = format!("there is no image for {}: it offers {offered}", platform::text(&self.wanted));
        SourceError::unsupported(&self.source.image, reason)
    }
}

/// Signatures, attestations and the like, which stand in an index beside the images they speak of.
fn is_attachment(descriptor: &Descriptor) -> bool {
    descriptor.artifact_type.is_some() || descriptor.annotations.contains_key("vnd.docker.reference.type")
}
