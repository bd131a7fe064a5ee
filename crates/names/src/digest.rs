//! The digest that names an image: of its manifest, or, for the lowest layers of another image, their chain id.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const PREFIX: &str = "sha256:";
const DIGITS: usize = 64;
/// Of hostile text so much is quoted, in characters.
const QUOTED_MAX: usize = 100;

/// `sha256:<64 lower-case hexadecimal digits>`, as the OCI specifications write it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ManifestDigest(Box<str>);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a manifest digest: sha256: and 64 lower-case hexadecimal digits")]
pub struct NotAManifestDigest(String);

impl ManifestDigest {
    /// From the digits alone, as file names have them.
    pub fn from_hex(hex: &str) -> Result<ManifestDigest, NotAManifestDigest> {
        format!("{PREFIX}{hex}").parse()
    }

    pub fn from_bytes(bytes: [u8; 32]) -> ManifestDigest {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        ManifestDigest(format!("{PREFIX}{digits}").into())
    }

    /// The digits alone: safe as a file's name and in a subject.
    pub fn hex(&self) -> &str {
        &self.0[PREFIX.len()..]
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `text` is one, for who only asks.
    pub fn is(text: &str) -> bool {
        text.strip_prefix(PREFIX).is_some_and(|hex| {
            hex.len() == DIGITS && hex.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
        })
    }
}

impl FromStr for ManifestDigest {
    type Err = NotAManifestDigest;

    fn from_str(text: &str) -> Result<ManifestDigest, NotAManifestDigest> {
        match ManifestDigest::is(text) {
            true => Ok(ManifestDigest(text.into())),
            false => Err(NotAManifestDigest(text.chars().take(QUOTED_MAX).collect())),
        }
    }
}

impl fmt::Display for ManifestDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for ManifestDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Serialize for ManifestDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ManifestDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ManifestDigest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_one_spelling() {
        let hex = "0a".repeat(32);
        let digest: ManifestDigest = format!("sha256:{hex}").parse().unwrap();
        assert_eq!((digest.hex(), digest.as_str()), (&*hex, &*format!("sha256:{hex}")));
        assert_eq!(ManifestDigest::from_hex(&hex), Ok(digest.clone()));
        assert_eq!(digest.to_string(), format!("sha256:{hex}"));
        assert_eq!(ManifestDigest::from_bytes([10; 32]), digest);
        let upper = format!("sha256:{}", "0A".repeat(32));
        let longer = format!("sha256:{hex}0");
        for wrong in ["", "sha256:", &hex, &upper, &longer, "sha512:00", "sha256:../../etc/passwd"] {
            assert!(wrong.parse::<ManifestDigest>().is_err(), "{wrong}");
        }
        assert!("x".repeat(9_000).parse::<ManifestDigest>().unwrap_err().to_string().len() < 300);
    }
}
