//! What earlier starts of an image read, in the order it was first needed.

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::encoding::{self, EncodingError, PROFILE};
use crate::limits::PROFILE_CHUNKS_MAX;

/// The profile of an image: chunks in the order in which starts first asked for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// How many starts it was learned from.
    pub starts: u32,
    #[serde(deserialize_with = "encoding::at_most::<_, _, PROFILE_CHUNKS_MAX>")]
    pub chunks: Vec<Digest>,
}

impl Profile {
    pub fn encode(&self) -> Result<Vec<u8>, EncodingError> {
        encoding::encode(PROFILE, self)
    }

    pub fn decode(encoded: &[u8]) -> Result<Profile, EncodingError> {
        encoding::decode(PROFILE, encoded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_it_took() -> anyhow::Result<()> {
        let profile = Profile { starts: 3, chunks: vec![Digest::of(b"b"), Digest::of(b"a")] };
        assert_eq!(Profile::decode(&profile.encode()?)?, profile);
        assert!(Profile::decode(b"slLR\x01\0").is_err());
        Ok(())
    }
}
