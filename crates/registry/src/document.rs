//! What documents say of blobs, and how large they may be.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{BlobDigest, Error};

/// One manifest or index, in bytes: what registries accept at most.
pub const MANIFEST_MAX: u64 = 4 * 1024 * 1024;
/// One image config, in bytes. Large ones are some 100 KiB (long histories).
pub const CONFIG_MAX: u64 = 8 * 1024 * 1024;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Where a blob is said to be, and what it is said to be.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: BlobDigest,
    pub size: u64,
    #[serde(default)]
    pub platform: Option<PlatformField>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Set on things attached to an image (signatures, attestations), which are not images.
    #[serde(default)]
    pub artifact_type: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PlatformField {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: String,
}

impl Descriptor {
    /// The descriptor of a document that nobody else describes.
    pub fn of(media_type: &str, bytes: &[u8]) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: BlobDigest::of(bytes),
            size: bytes.len() as u64,
            platform: None,
            annotations: BTreeMap::new(),
            artifact_type: None,
        }
    }

    /// Refuses a document that is said to be larger than `max` bytes, before it is read.
    pub fn within(&self, image: &str, max: u64) -> Result<(), Error> {
        if self.size > max {
            let reason =
                format!("{} is said to have {} bytes; at most {max} are accepted", self.digest, self.size);
            return Err(Error::unsupported(image, reason));
        }
        Ok(())
    }

    /// Checks what was read against what was promised; the error says how it differs.
    pub fn check(&self, bytes: &[u8]) -> Result<(), String> {
        let (digest, size) = (BlobDigest::of(bytes), bytes.len() as u64);
        if size != self.size {
            return Err(format!("it has {size} bytes, {} were promised", self.size));
        }
        if digest != self.digest {
            return Err(format!("its content is {digest}"));
        }
        Ok(())
    }
}
