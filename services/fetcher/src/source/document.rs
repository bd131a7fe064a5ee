//! Manifests, indexes and configs: what of them is read.
//!
//! Both families (OCI and Docker schema 2) have the same shape and differ in media types. What a
//! document is, its own `mediaType` decides: the digest covers it, the HTTP header is anyone's.

use std::collections::BTreeMap;

use registry::document::{OCI_CONFIG, OCI_MANIFEST, PlatformField, annotations};
use registry::{BlobDigest, Descriptor, brief};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Compression;

/// What is asked for: everything that [`Document::read`] can make sense of or refuse by name.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+";

#[derive(Debug)]
pub(super) enum Document {
    Index(Index),
    Manifest(Box<Manifest>),
    Old(OldManifest),
}

#[derive(Debug, Deserialize)]
pub(super) struct Index {
    pub(super) manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct ManifestConfig {
    config: Descriptor,
}

#[derive(Deserialize)]
struct ManifestLayers {
    layers: Vec<Descriptor>,
}

#[derive(Default, Deserialize)]
struct ManifestAnnotations {
    #[serde(default, deserialize_with = "annotations")]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OldLayers {
    fs_layers: Vec<OldLayer>,
}

#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) media_type: String,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
    pub(super) annotations: BTreeMap<String, String>,
}

/// Docker's first format. Read so far that it can be told from a broken document and judged, never to be imported: it
/// names no contents that can be verified.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OldManifest {
    /// From the lowest up.
    pub(super) layers: Vec<BlobDigest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OldLayer {
    blob_sum: BlobDigest,
}

/// What of an image's config matters for its import.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) platform: PlatformField,
    pub(super) rootfs: RootFs,
}

#[derive(Deserialize)]
struct ConfigRootFs {
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
pub(super) struct RootFs {
    #[serde(default)]
    pub(super) diff_ids: Vec<BlobDigest>,
}

/// Why a document is not one we can use.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// It is well formed, and of a kind that we do not take.
    #[error("{0}")]
    Unsupported(String),
    #[error("{0}")]
    Malformed(String),
}

/// Everything that tells the kinds of documents apart. What may be long is only looked for: anyone may name a document of
/// 4 MiB, which would be many times that as a tree, and many may do so at once.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default)]
    schema_version: u64,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    manifests: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
    annotations: Option<IgnoredAny>,
}

impl Document {
    /// Reads a manifest or an index; `header` is the media type that came beside it, if any.
    pub(super) fn read(bytes: &[u8], header: Option<&str>) -> Result<Document, Unreadable> {
        let shape: Shape = serde_json::from_slice(bytes)
            .map_err(|error| Unreadable::Malformed(format!("not a JSON object: {error}")))?;
        let media_type = shape.media_type.clone().or_else(|| {
            let header = header?.split(';').next()?.trim();
            header.contains("vnd.").then(|| header.to_owned())
        });
        if shape.schema_version == 1 || media_type.as_deref().is_some_and(|t| t.starts_with(SCHEMA_1)) {
            return Ok(Document::Old(shape.old(bytes)?));
        }
        // One document that is both would be read differently by different tools.
        if shape.manifests.is_some() && (shape.layers.is_some() || shape.config.is_some()) {
            return Err(Unreadable::Malformed("it is an index and a manifest at once".into()));
        }
        match media_type.as_deref() {
            Some(OCI_INDEX | DOCKER_INDEX) => Ok(Document::Index(shape.index(bytes)?)),
            Some(kind @ (OCI_MANIFEST | DOCKER_MANIFEST)) => {
                Ok(Document::Manifest(Box::new(shape.manifest(bytes, kind)?)))
            }
            Some(other) => {
                Err(Unreadable::Unsupported(format!("its media type {} is not an image's", brief(other))))
            }
            None if shape.manifests.is_some() => Ok(Document::Index(shape.index(bytes)?)),
            None => Ok(Document::Manifest(Box::new(shape.manifest(bytes, OCI_MANIFEST)?))),
        }
    }
}

impl Shape {
    fn index(self, bytes: &[u8]) -> Result<Index, Unreadable> {
        self.manifests.ok_or_else(|| missing("manifests"))?;
        parse(bytes, "manifests")
    }

    fn manifest(self, bytes: &[u8], media_type: &str) -> Result<Manifest, Unreadable> {
        self.config.ok_or_else(|| missing("config"))?;
        let ManifestConfig { config } = parse(bytes, "config")?;
        if !matches!(config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
            let kind = self.artifact_type.unwrap_or(config.media_type);
            return Err(Unreadable::Unsupported(format!(
                "an artifact of type {}, not an image",
                brief(&kind)
            )));
        }
        self.layers.ok_or_else(|| missing("layers"))?;
        let ManifestLayers { layers } = parse(bytes, "layers")?;
        let annotations = match self.annotations {
            Some(_) => parse::<ManifestAnnotations>(bytes, "annotations")?.annotations,
            None => BTreeMap::new(),
        };
        Ok(Manifest { media_type: media_type.to_owned(), config, layers, annotations })
    }

    fn old(self, bytes: &[u8]) -> Result<OldManifest, Unreadable> {
        self.fs_layers.ok_or_else(|| missing("fsLayers"))?;
        let OldLayers { fs_layers } = parse(bytes, "fsLayers")?;
        // The format has the uppermost first.
        Ok(OldManifest { layers: fs_layers.into_iter().rev().map(|layer| layer.blob_sum).collect() })
    }
}

impl Config {
    pub(super) fn read(bytes: &[u8]) -> Result<Config, Unreadable> {
        let malformed = |error| Unreadable::Malformed(format!("not an image config: {error}"));
        let ConfigRootFs { rootfs } = serde_json::from_slice(bytes).map_err(malformed)?;
        Ok(Config { platform: serde_json::from_slice(bytes).map_err(malformed)?, rootfs })
    }
}

/// How a layer is compressed, or why a layer of this media type cannot be streamed.
pub(super) fn compression(media_type: &str) -> Result<Compression, String> {
    if media_type.ends_with("+encrypted") {
        return Err(format!("it is encrypted ({})", brief(media_type)));
    }
    if media_type.contains("nondistributable") || media_type.contains(".foreign.") {
        return Err(format!("it may not be distributed ({})", brief(media_type)));
    }
    match media_type {
        OCI_LAYER
        | "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.diff" => Ok(Compression::None),
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(Compression::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Compression::Zstd),
        other => Err(format!("its media type {} is not known", brief(other))),
    }
}

/// The part of a document that `T` names.
fn parse<T: for<'de> Deserialize<'de>>(bytes: &[u8], what: &str) -> Result<T, Unreadable> {
    serde_json::from_slice(bytes).map_err(|error| Unreadable::Malformed(format!("its {what}: {error}")))
}

fn missing(what: &str) -> Unreadable {
    Unreadable::Malformed(format!("it has no {what}"))
}

#[cfg(test)]
mod tests;
