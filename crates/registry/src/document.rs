//! What documents say of blobs, and how large they may be.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::{BlobDigest, Error};

/// One manifest or index, in bytes: what registries accept at most.
pub const MANIFEST_MAX: u64 = 4 * 1024 * 1024;
/// One image config, in bytes. Large ones are some 100 KiB (long histories).
pub const CONFIG_MAX: u64 = 8 * 1024 * 1024;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Annotations of one thing; those in use have a few dozen. Each costs many times what it has in a document.
const ANNOTATIONS_MAX: usize = 256;

/// A bounded number of annotations. For `#[serde(deserialize_with)]`.
pub fn annotations<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Annotations;
    impl<'de> Visitor<'de> for Annotations {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(formatter, "at most {ANNOTATIONS_MAX} annotations")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut annotations = BTreeMap::new();
            while let Some((name, value)) = entries.next_entry()? {
                if annotations.len() == ANNOTATIONS_MAX {
                    return Err(A::Error::invalid_length(ANNOTATIONS_MAX + 1, &self));
                }
                annotations.insert(name, value);
            }
            Ok(annotations)
        }
    }
    deserializer.deserialize_any(Annotations)
}

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
    #[serde(default, deserialize_with = "annotations")]
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
