//! The digest of a blob, as manifests write it.

use std::fmt;
use std::str::FromStr;

use names::ManifestDigest;
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};

/// `sha256:<64 lower-case hexadecimal digits>`: one that exists is safe in a path and in a URL.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlobDigest([u8; 32]);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a digest that can be verified: {0:?} (sha256:<64 lower-case hexadecimal digits> expected)")]
pub struct NotABlobDigest(pub String);

impl BlobDigest {
    pub fn of(bytes: &[u8]) -> BlobDigest {
        BlobDigest(Sha256::digest(bytes).into())
    }

    pub const fn from_bytes(bytes: [u8; 32]) -> BlobDigest {
        BlobDigest(bytes)
    }

    /// Without the algorithm.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl From<BlobDigest> for ManifestDigest {
    fn from(digest: BlobDigest) -> ManifestDigest {
        ManifestDigest::from_bytes(digest.0)
    }
}

impl FromStr for BlobDigest {
    type Err = NotABlobDigest;

    fn from_str(text: &str) -> Result<BlobDigest, NotABlobDigest> {
        // Quotes of hostile text stay short.
        let refuse = || NotABlobDigest(text.chars().take(100).collect());
        let hex = text.strip_prefix("sha256:").ok_or_else(refuse)?;
        if hex.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(refuse());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(hex, &mut bytes).map_err(|_| refuse())?;
        Ok(BlobDigest(bytes))
    }
}

impl fmt::Display for BlobDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for BlobDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl<'de> Deserialize<'de> for BlobDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BlobDigest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_only_what_it_writes() {
        let digest = BlobDigest::of(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse(), Ok(digest));
        for wrong in
            ["", "sha256:", "sha512:00", "sha256:../../etc/passwd", &text.to_uppercase(), &text[..70]]
        {
            assert!(wrong.parse::<BlobDigest>().is_err(), "{wrong}");
        }
    }
}
