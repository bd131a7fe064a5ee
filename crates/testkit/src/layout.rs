//! Writes OCI layouts from plain tar layers, right ones and wrong ones.
//!
//! Format: the OCI image-spec's image-layout.md, v1.1.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// How a layer's tar is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    fn media_type(self) -> &'static str {
        match self {
            Compression::None => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    fn apply(self, tar: &[u8]) -> anyhow::Result<Vec<u8>> {
        Ok(match self {
            Compression::None => tar.to_vec(),
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(tar)?;
                encoder.finish()?
            }
            Compression::Zstd => zstd::encode_all(tar, 3)?,
        })
    }
}

/// An image to write: layers bottom first, and what of the config matters.
#[derive(Clone, Debug, Default)]
pub struct ImageSpec {
    pub layers: Vec<(Vec<u8>, Option<Compression>)>,
    /// The `config` object of the image config.
    pub config: Option<Value>,
}

impl ImageSpec {
    pub fn new(layers: impl IntoIterator<Item = Vec<u8>>) -> ImageSpec {
        let layers = layers.into_iter().map(|tar| (tar, Some(Compression::Gzip))).collect();
        ImageSpec { layers, config: None }
    }
}

/// An OCI layout folder under construction.
#[derive(Debug)]
pub struct LayoutWriter {
    folder: PathBuf,
    manifests: Vec<Value>,
}

impl LayoutWriter {
    pub fn create(folder: &Path) -> anyhow::Result<LayoutWriter> {
        fs::create_dir_all(folder.join("blobs/sha256"))?;
        fs::write(folder.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(LayoutWriter { folder: folder.to_owned(), manifests: Vec::new() })
    }

    /// Writes an image under `tag`; returns its manifest digest.
    pub fn image(&mut self, tag: &str, spec: &ImageSpec) -> anyhow::Result<String> {
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for (tar, compression) in &spec.layers {
            let compression = compression.unwrap_or(Compression::None);
            diff_ids.push(sha256(tar));
            layers.push(self.blob(&compression.apply(tar)?, compression.media_type())?);
        }
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": spec.config.clone().unwrap_or_else(|| json!({})),
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        self.manifest(tag, config, layers)
    }

    /// Writes a manifest of exactly these parts: for images that are wrong on purpose.
    pub fn manifest(&mut self, tag: &str, config: Value, layers: Vec<Value>) -> anyhow::Result<String> {
        let config = self.blob(&serde_json::to_vec(&config)?, "application/vnd.oci.image.config.v1+json")?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": layers,
        });
        self.document(tag, &manifest, "application/vnd.oci.image.manifest.v1+json")
    }

    /// Writes any document in a manifest's place; returns its digest.
    pub fn document(&mut self, tag: &str, document: &Value, media_type: &str) -> anyhow::Result<String> {
        let bytes = serde_json::to_vec(document)?;
        let mut descriptor = self.blob(&bytes, media_type)?;
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        self.manifests.push(descriptor);
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        fs::write(self.folder.join("index.json"), serde_json::to_vec_pretty(&index)?)?;
        Ok(sha256(&bytes))
    }

    /// Writes a blob; returns its descriptor.
    pub fn blob(&self, bytes: &[u8], media_type: &str) -> anyhow::Result<Value> {
        let digest = sha256(bytes);
        fs::write(self.blob_path(&digest), bytes)?;
        Ok(json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() }))
    }

    /// Where the blob `sha256:<hex>` stands.
    pub fn blob_path(&self, digest: &str) -> PathBuf {
        self.folder.join("blobs").join(digest.replace(':', "/"))
    }

    /// In sluice's and skopeo's words.
    pub fn reference(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.folder.display())
    }
}

/// `sha256:<hex>` of `bytes`.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
