//! Where images come from: registries, layout folders and archives.
//!
//! A [`Sources`] is made once and holds what is shared (the HTTP client); a [`Source`] is one image
//! as one caller may see it. Opening a source and asking for its manifest asks the registry with
//! that caller's own credential, so a [`Found`] is also the proof that the caller may read it.
//!
//! | file | what it knows |
//! |---|---|
//! | `layout`, `archive` | images in local folders and files |
//! | `document`, `platform`, `resolve` | manifests, indexes, the choice of a platform: the same for all of them |
//!
//! The protocol that registries speak is in `crates/registry`.
//!
//! A source is a handle: cheap to clone, used from many tasks at once. Manifests and configs are
//! verified here; a layer's bytes are not, because the import hashes them anyway.

mod archive;
mod document;
mod file;
mod layout;
pub mod place;
pub mod platform;
mod resolve;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use image::record::LayerRef;
use names::ImageName;
use proto::Platform;

use registry::{Client, Descriptor, Repository};

pub use place::BlobPlace;
pub use registry::{
    Access, BlobDigest, ByteStream, Config as SourceConfig, Credential, Error as SourceError,
};

/// Opens sources. One per process: connections are shared by all images.
#[derive(Clone, Debug)]
pub struct Sources {
    client: Client,
}

/// One image's source.
#[derive(Clone, Debug)]
pub struct Source {
    image: Arc<str>,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Registry(Arc<Repository>),
    Layout(Arc<layout::Layout>),
    Archive(Arc<archive::Archive>),
}

/// An image of one platform, as its source describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Of the platform's manifest, not of the index that named it: `sha256:<hex>`.
    pub manifest_digest: String,
    pub media_type: String,
    /// 1: Docker's first format, which is recognised and cannot be streamed.
    pub schema_version: u32,
    /// The manifest's.
    pub annotations: BTreeMap<String, String>,
    pub config_digest: String,
    /// Verbatim and verified.
    pub config: Bytes,
    /// As the config says.
    pub platform: Platform,
    /// From the lowest up.
    pub layers: Vec<LayerDescriptor>,
    /// Why this image cannot be streamed, each reason naming its layer; empty: it can.
    pub ineligible: Vec<String>,
}

/// A layer as manifest and config describe it. Nothing of it is verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerDescriptor {
    /// Of the blob: `sha256:<hex>`.
    pub digest: String,
    /// Of the blob, in bytes.
    pub size: u64,
    pub media_type: String,
    /// Of the uncompressed tar: `sha256:<hex>`; empty in the first format, which names none.
    pub diff_id: String,
    pub compression: Compression,
}

/// What the media type claims; the bytes themselves decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
    /// Not known, or not readable: then the image is ineligible.
    Unknown,
}

impl LayerDescriptor {
    /// A layer as an import of it described it.
    pub(crate) fn of(layer: &LayerRef) -> LayerDescriptor {
        LayerDescriptor {
            digest: layer.digest.clone(),
            size: layer.size,
            media_type: layer.media_type.clone(),
            diff_id: layer.diff_id.clone(),
            compression: document::compression(&layer.media_type).unwrap_or(Compression::Unknown),
        }
    }
}

impl Sources {
    pub fn new(config: SourceConfig) -> anyhow::Result<Sources> {
        Ok(Sources { client: Client::new(config)? })
    }

    /// The source of `name`. Reads what is local; asks no registry yet.
    pub async fn open(&self, name: &ImageName, access: Access) -> Result<Source, SourceError> {
        let image: Arc<str> = name.to_string().into();
        let place = match name {
            ImageName::Registry(reference) => {
                Place::Registry(Arc::new(self.client.repository(reference, access)?))
            }
            ImageName::Layout { dir, tag } => {
                let layout = layout::Layout::open(image.clone(), dir, tag.as_deref()).await?;
                Place::Layout(Arc::new(layout))
            }
            ImageName::Archive { file } => {
                Place::Archive(Arc::new(archive::Archive::open(image.clone(), file).await?))
            }
        };
        Ok(Source { image, place })
    }
}

impl Source {
    /// The image for `platform`; an empty platform means this machine's.
    pub async fn manifest(&self, platform: &Platform) -> Result<Found, SourceError> {
        resolve::resolve(self, platform).await
    }

    /// A layer's blob as the source holds it, from byte `from` on.
    ///
    /// Broken connections are resumed inside. Exactly the layer's declared size is delivered, or
    /// an error; whether the bytes are the right ones is for the reader to hash.
    pub async fn blob(&self, layer: &LayerDescriptor, from: u64) -> Result<ByteStream, SourceError> {
        let digest: BlobDigest = layer
            .digest
            .parse()
            .map_err(|error| SourceError::corrupt(&self.image, "layer", format!("{error}")))?;
        if from > layer.size {
            let reason = format!("byte {from} was asked for, it has {}", layer.size);
            return Err(SourceError::corrupt(&self.image, format!("layer {digest}"), reason));
        }
        match &self.place {
            Place::Registry(repository) => repository.blob(digest, layer.size, from).await,
            Place::Layout(layout) => layout.blob(&digest, layer.size, from).await,
            Place::Archive(archive) => archive.blob(&digest, layer.size, from),
        }
    }

    /// Whether the source shows a layer's blob to whom it was opened for, by its word alone. Of a local one that needs no asking.
    pub(crate) async fn shows(&self, layer: &LayerDescriptor) -> Result<bool, SourceError> {
        let Place::Registry(repository) = &self.place else { return Ok(true) };
        let digest = layer.digest.parse::<BlobDigest>();
        let digest = digest.map_err(|error| SourceError::corrupt(&self.image, "layer", error.to_string()))?;
        repository.shows(&digest).await
    }

    /// An error where the source does not show the document that the name leads to, to whom it was opened for.
    pub(crate) async fn show_root(&self) -> Result<(), SourceError> {
        self.root().await.map(drop)
    }

    /// The same of a layer's blob, by the source's word alone.
    pub(crate) async fn show(&self, layer: &LayerDescriptor) -> Result<(), SourceError> {
        let Place::Registry(repository) = &self.place else { return Ok(()) };
        let digest = layer.digest.parse::<BlobDigest>();
        let digest = digest.map_err(|error| SourceError::corrupt(&self.image, "layer", error.to_string()))?;
        repository.show(&digest).await
    }

    /// The document that the name leads to: an index or a manifest.
    async fn root(&self) -> Result<(Descriptor, Bytes), SourceError> {
        match &self.place {
            Place::Registry(repository) => repository.root("the image", document::ACCEPT).await,
            Place::Layout(layout) => layout.root().await,
            Place::Archive(archive) => Ok(archive.root()),
        }
    }

    /// A manifest or an index that another document names; verified.
    async fn manifest_document(&self, descriptor: &Descriptor) -> Result<Bytes, SourceError> {
        match &self.place {
            Place::Registry(repository) => repository.manifest(descriptor, document::ACCEPT).await,
            Place::Layout(layout) => layout.document(descriptor).await,
            Place::Archive(archive) => archive.document(descriptor),
        }
    }

    /// A config; verified.
    async fn config_document(&self, descriptor: &Descriptor) -> Result<Bytes, SourceError> {
        match &self.place {
            Place::Registry(repository) => repository.config(descriptor).await,
            Place::Layout(layout) => layout.document(descriptor).await,
            Place::Archive(archive) => archive.document(descriptor),
        }
    }
}

#[cfg(test)]
mod tests;
