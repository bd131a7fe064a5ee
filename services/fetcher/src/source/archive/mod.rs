//! Images in `docker save` archives.
//!
//! ```text
//! manifest.json                [{"Config": NAME, "RepoTags": […], "Layers": [NAME, …]}]
//! <id>/layer.tar               older tools: plain tars, or links to the same layer elsewhere
//! blobs/sha256/<hex>           newer ones: an OCI layout beside manifest.json
//! ```
//!
//! The archive is walked once, headers only; layers are then read where they stand. It holds no
//! manifest, so one is made up, from the config and the layers' digests: the same archive always
//! gives the same one.

mod walk;

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use registry::document::{CONFIG_MAX, MANIFEST_MAX, OCI_CONFIG, OCI_MANIFEST};
use registry::{Descriptor, brief};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::document::{Config, OCI_LAYER};
use super::file::{LocalFile, read_exact_at};
use super::{BlobDigest, ByteStream, SourceError};
use walk::Members;

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// One read while a compressed layer is hashed, in bytes.
const HASH_READ: u64 = 1024 * 1024;

/// Where the layers' bytes stand in the archive.
type LayerRanges = HashMap<BlobDigest, Range<u64>>;

/// The one image of an archive.
#[derive(Debug)]
pub(super) struct Archive {
    image: Arc<str>,
    file: LocalFile,
    manifest: (Descriptor, Bytes),
    config: (Descriptor, Bytes),
    layers: LayerRanges,
}

/// An entry of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// The manifest that the archive lacks; fields in the order in which they are written.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MadeManifest {
    schema_version: u32,
    media_type: &'static str,
    config: MadeDescriptor,
    layers: Vec<MadeDescriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MadeDescriptor {
    media_type: String,
    digest: String,
    size: u64,
}

impl Archive {
    pub(super) async fn open(image: Arc<str>, path: &Path) -> Result<Archive, SourceError> {
        let path = path.to_owned();
        let opened = tokio::task::spawn_blocking({
            let (image, path) = (image.clone(), path.clone());
            move || Archive::read(image, path)
        });
        match opened.await {
            Ok(archive) => archive,
            Err(error) => Err(SourceError::local(&image, path, io::Error::other(error))),
        }
    }

    pub(super) fn root(&self) -> (Descriptor, Bytes) {
        self.manifest.clone()
    }

    pub(super) fn document(&self, descriptor: &Descriptor) -> Result<Bytes, SourceError> {
        let known =
            [&self.manifest, &self.config].into_iter().find(|(known, _)| known.digest == descriptor.digest);
        known.map(|(_, bytes)| bytes.clone()).ok_or_else(|| {
            SourceError::not_found(&self.image, descriptor.digest.to_string(), "it is not in the archive")
        })
    }

    pub(super) fn blob(&self, digest: &BlobDigest, size: u64, from: u64) -> Result<ByteStream, SourceError> {
        let what = || format!("layer {digest}");
        let range = self.layers.get(digest);
        let range =
            range.ok_or_else(|| SourceError::not_found(&self.image, what(), "it is not in the archive"))?;
        let len = range.end - range.start;
        if len != size || from > len {
            return Err(SourceError::corrupt(&self.image, what(), format!("it has {len} bytes, not {size}")));
        }
        Ok(self.file.stream(self.image.clone(), range.start + from..range.end))
    }

    /// Blocks.
    fn read(image: Arc<str>, path: PathBuf) -> Result<Archive, SourceError> {
        let local = |error| SourceError::local(&image, &path, error);
        let file = LocalFile::open(path.clone()).map_err(local)?;
        if magic(&file, 0..file.len).map_err(local)?.starts_with(GZIP_MAGIC) {
            let reason = format!("the archive is compressed; unpack it first: gunzip {}", path.display());
            return Err(SourceError::unsupported(&image, reason));
        }
        let members = Members::find(&file.file, file.len)
            .map_err(|error| SourceError::corrupt(&image, path.display().to_string(), error.to_string()))?;
        let reader = Reader { image: &image, file: &file, members: &members };
        let saved = reader.saved()?;
        let config = reader.config(&saved)?;
        let (layers, descriptors) = reader.layers(&saved, &config.1)?;
        let manifest = MadeManifest {
            schema_version: 2,
            media_type: OCI_MANIFEST,
            config: MadeDescriptor::of(OCI_CONFIG, &config.0.digest, config.0.size),
            layers: descriptors,
        };
        let manifest = serde_json::to_vec(&manifest)
            .map_err(|error| SourceError::corrupt(&image, "the archive", error.to_string()))?;
        let manifest = (Descriptor::of(OCI_MANIFEST, &manifest), Bytes::from(manifest));
        Ok(Archive { image: image.clone(), file, manifest, config, layers })
    }
}

impl MadeDescriptor {
    fn of(media_type: &str, digest: &BlobDigest, size: u64) -> MadeDescriptor {
        MadeDescriptor { media_type: media_type.to_owned(), digest: digest.to_string(), size }
    }
}

/// An archive while its parts are put together.
struct Reader<'a> {
    image: &'a str,
    file: &'a LocalFile,
    members: &'a Members,
}

impl Reader<'_> {
    /// The only image of the archive.
    fn saved(&self) -> Result<Saved, SourceError> {
        let json = self.member("manifest.json", MANIFEST_MAX)?;
        let mut images: Vec<Saved> = serde_json::from_slice(&json)
            .map_err(|error| self.corrupt("manifest.json", error.to_string()))?;
        match (images.pop(), images.len()) {
            (Some(saved), 0) => Ok(saved),
            (None, _) => Err(SourceError::not_found(self.image, "the image", "the archive is empty")),
            (Some(last), others) => {
                let tags = images.iter().chain([&last]).flat_map(|saved| saved.repo_tags.iter().flatten());
                let tags = tags.map(|tag| brief(tag)).collect::<Vec<_>>().join(", ");
                let reason =
                    format!("the archive holds {} images ({tags}); save one of them alone", others + 1);
                Err(SourceError::unsupported(self.image, reason))
            }
        }
    }

    fn config(&self, saved: &Saved) -> Result<(Descriptor, Bytes), SourceError> {
        let bytes = self.member(&saved.config, CONFIG_MAX)?;
        Ok((Descriptor::of(OCI_CONFIG, &bytes), bytes))
    }

    fn layers(
        &self,
        saved: &Saved,
        config: &[u8],
    ) -> Result<(LayerRanges, Vec<MadeDescriptor>), SourceError> {
        let diff_ids = Config::read(config)
            .map_err(|error| self.corrupt("the config", error.to_string()))?
            .rootfs
            .diff_ids;
        if diff_ids.len() != saved.layers.len() {
            let reason = format!("it names {} layers, the config {}", saved.layers.len(), diff_ids.len());
            return Err(self.corrupt("manifest.json", reason));
        }
        let mut layers = LayerRanges::new();
        let mut descriptors = Vec::new();
        for (name, diff_id) in saved.layers.iter().zip(&diff_ids) {
            let range = self.range(name)?;
            let (digest, media_type) = self
                .layer(name, &range, diff_id)
                .map_err(|error| SourceError::local(self.image, &self.file.path, error))?;
            descriptors.push(MadeDescriptor::of(&media_type, &digest, range.end - range.start));
            layers.insert(digest, range);
        }
        Ok((layers, descriptors))
    }

    /// A layer's digest: its file may be named by it, a plain tar's is the diff id, and what is
    /// left is hashed. None of it is taken on trust: the import hashes all.
    fn layer(
        &self,
        name: &str,
        range: &Range<u64>,
        diff_id: &BlobDigest,
    ) -> io::Result<(BlobDigest, String)> {
        let magic = magic(self.file, range.clone())?;
        let suffix = match () {
            () if magic.starts_with(GZIP_MAGIC) => "+gzip",
            () if magic.starts_with(ZSTD_MAGIC) => "+zstd",
            () => "",
        };
        let named = name.strip_prefix("blobs/sha256/").and_then(|hex| format!("sha256:{hex}").parse().ok());
        let digest = match named {
            Some(digest) => digest,
            None if suffix.is_empty() => *diff_id,
            None => hash(self.file, range.clone())?,
        };
        Ok((digest, format!("{OCI_LAYER}{suffix}")))
    }

    fn member(&self, name: &str, max: u64) -> Result<Bytes, SourceError> {
        let range = self.range(name)?;
        let len = range.end - range.start;
        if len > max {
            return Err(self.corrupt(name, format!("it has {len} bytes, {max} are expected at most")));
        }
        read_exact_at(&self.file.file, range.start, len)
            .map_err(|error| SourceError::local(self.image, &self.file.path, error))
    }

    fn range(&self, name: &str) -> Result<Range<u64>, SourceError> {
        self.members.file(name).ok_or_else(|| {
            let detail = format!("{} is not an archive of docker save", self.file.path.display());
            SourceError::not_found(self.image, format!("the member {}", brief(name)), detail)
        })
    }

    fn corrupt(&self, what: &str, reason: String) -> SourceError {
        SourceError::corrupt(self.image, what, reason)
    }
}

/// The first bytes of a range: enough to tell how it is compressed.
fn magic(file: &LocalFile, range: Range<u64>) -> io::Result<Bytes> {
    read_exact_at(&file.file, range.start, (range.end - range.start).min(ZSTD_MAGIC.len() as u64))
}

fn hash(file: &LocalFile, range: Range<u64>) -> io::Result<BlobDigest> {
    let mut hasher = Sha256::new();
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(HASH_READ);
        hasher.update(read_exact_at(&file.file, at, len)?);
        at += len;
    }
    Ok(BlobDigest::from_bytes(hasher.finalize().into()))
}
