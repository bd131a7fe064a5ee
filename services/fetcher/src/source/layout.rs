//! Images in an OCI layout folder.
//!
//! ```text
//! DIR/oci-layout              {"imageLayoutVersion": "1.0.0"}
//! DIR/index.json              names the images; tags stand in annotations
//! DIR/blobs/sha256/<hex>      manifests, configs, layers
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use registry::document::{CONFIG_MAX, MANIFEST_MAX};
use registry::{Descriptor, brief};

use super::document::{Document, Index, OCI_INDEX};
use super::file::LocalFile;
use super::{BlobDigest, ByteStream, SourceError};

/// Where tools write an image's tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Tags shown when the one asked for is not there.
const TAGS_SHOWN: usize = 20;

/// One image of a layout.
#[derive(Debug)]
pub(super) struct Layout {
    image: Arc<str>,
    dir: PathBuf,
    root: Root,
}

#[derive(Debug)]
enum Root {
    /// The entry of `index.json` that the name means.
    Entry(Descriptor),
    /// `index.json` itself: it lists the platforms of one untagged image.
    Index(Bytes),
}

impl Layout {
    pub(super) async fn open(image: Arc<str>, dir: &Path, tag: Option<&str>) -> Result<Layout, SourceError> {
        let marker = dir.join("oci-layout");
        read_whole(&image, marker.clone(), MANIFEST_MAX).await.map_err(|error| match error {
            SourceError::NotFound { .. } => {
                let detail = format!("{} is not an OCI layout: it has no file oci-layout", dir.display());
                SourceError::not_found(&image, "the image", detail)
            }
            other => other,
        })?;
        let bytes = read_whole(&image, dir.join("index.json"), MANIFEST_MAX).await?;
        let index = match Document::read(&bytes, Some(OCI_INDEX)) {
            Ok(Document::Index(index)) => index,
            Ok(Document::Manifest(_) | Document::Old(_)) => {
                return Err(SourceError::corrupt(&image, "index.json", "it is a manifest"));
            }
            Err(error) => return Err(SourceError::corrupt(&image, "index.json", error.to_string())),
        };
        let root = choose(&image, index, tag, bytes)?;
        Ok(Layout { image, dir: dir.to_owned(), root })
    }

    pub(super) async fn root(&self) -> Result<(Descriptor, Bytes), SourceError> {
        match &self.root {
            Root::Entry(descriptor) => Ok((descriptor.clone(), self.document(descriptor).await?)),
            Root::Index(bytes) => Ok((Descriptor::of(OCI_INDEX, bytes), bytes.clone())),
        }
    }

    /// A manifest, index or config, verified.
    pub(super) async fn document(&self, descriptor: &Descriptor) -> Result<Bytes, SourceError> {
        descriptor.within(&self.image, CONFIG_MAX)?;
        let bytes = read_whole(&self.image, self.path(&descriptor.digest), descriptor.size).await?;
        match descriptor.check(&bytes) {
            Ok(()) => Ok(bytes),
            Err(reason) => Err(SourceError::corrupt(&self.image, descriptor.digest.to_string(), reason)),
        }
    }

    pub(super) async fn blob(
        &self,
        digest: &BlobDigest,
        size: u64,
        from: u64,
    ) -> Result<ByteStream, SourceError> {
        let file = open(&self.image, self.path(digest)).await?;
        if file.len != size {
            let reason = format!("its file has {} bytes, the manifest says {size}", file.len);
            return Err(SourceError::corrupt(&self.image, format!("layer {digest}"), reason));
        }
        Ok(file.stream(self.image.clone(), from..size))
    }

    fn path(&self, digest: &BlobDigest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }
}

/// What of `index.json` the name means.
fn choose(image: &Arc<str>, index: Index, tag: Option<&str>, bytes: Bytes) -> Result<Root, SourceError> {
    let mut entries = index.manifests;
    let Some(tag) = tag else {
        let tagged = entries.iter().any(|entry| entry.annotations.contains_key(REF_NAME));
        return match (entries.len(), tagged) {
            (0, _) => Err(SourceError::not_found(image, "the image", "the layout is empty")),
            (1, _) => Ok(Root::Entry(entries.remove(0))),
            (_, false) => Ok(Root::Index(bytes)),
            (count, true) => {
                let detail =
                    format!("the layout holds {count}; name one with oci:DIR:TAG: {}", tags(&entries));
                Err(SourceError::not_found(image, "a single image", detail))
            }
        };
    };
    let tags = tags(&entries);
    let mut named =
        entries.into_iter().filter(|entry| entry.annotations.get(REF_NAME).is_some_and(|t| t == tag));
    match (named.next(), named.next()) {
        (Some(entry), None) => Ok(Root::Entry(entry)),
        (Some(_), Some(_)) => Err(SourceError::corrupt(
            image,
            "index.json",
            format!("it has the tag {} more than once", brief(tag)),
        )),
        (None, _) => {
            let detail =
                if tags.is_empty() { "the layout has no tags".into() } else { format!("it has {tags}") };
            Err(SourceError::not_found(image, format!("the tag {}", brief(tag)), detail))
        }
    }
}

fn tags(entries: &[Descriptor]) -> String {
    let tags = entries.iter().filter_map(|entry| entry.annotations.get(REF_NAME));
    tags.take(TAGS_SHOWN).map(|tag| brief(tag)).collect::<Vec<_>>().join(", ")
}

async fn open(image: &str, path: PathBuf) -> Result<LocalFile, SourceError> {
    let opened = tokio::task::spawn_blocking({
        let path = path.clone();
        move || LocalFile::open(path)
    });
    let result = opened.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    result.map_err(|error| SourceError::local(image, path, error))
}

/// A small file; more than `max` bytes are refused before they are read.
async fn read_whole(image: &str, path: PathBuf, max: u64) -> Result<Bytes, SourceError> {
    let file = open(image, path).await?;
    if file.len > max {
        let reason = format!("it has {} bytes, {max} are expected at most", file.len);
        return Err(SourceError::corrupt(image, file.path.display().to_string(), reason));
    }
    file.read(image, 0, file.len).await
}
