//! Compresses a stored chunk again, as small as it gets.
//!
//! A frame made here carries zstd's checksum of its content, which no import writes: whoever finds it knows that there is
//! nothing left to gain, whichever image he came from. Format: RFC 8878, section 3.1.1.1.1.

use image::Digest;
use store::verify::{self, Corrupt};
use zstd::bulk::Compressor;

/// Where in a frame its descriptor stands, and the bit in it that says that a checksum follows the content.
const DESCRIPTOR: usize = 4;
const HAS_CHECKSUM: u8 = 0b100;

/// What became of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Recompressed {
    Smaller(Vec<u8>),
    /// It was as small as it gets.
    Unchanged,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RecompressError {
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    #[error("zstd: {0}")]
    Zstd(#[from] std::io::Error),
}

/// Whether the frame was made by [`recompress`].
pub(crate) fn is_recompressed(stored: &[u8]) -> bool {
    stored.get(DESCRIPTOR).is_some_and(|descriptor| descriptor & HAS_CHECKSUM != 0)
}

/// The chunk as a frame of its own with all that `level` of zstd can do.
pub(crate) fn recompress(
    digest: &Digest,
    stored: &[u8],
    level: i32,
) -> Result<Recompressed, RecompressError> {
    if is_recompressed(stored) {
        return Ok(Recompressed::Unchanged);
    }
    let plain = verify::open_chunk(digest, stored)?;
    let mut compressor = Compressor::new(level)?;
    compressor.include_checksum(true)?;
    let again = compressor.compress(&plain)?;
    Ok(if again.len() < stored.len() { Recompressed::Smaller(again) } else { Recompressed::Unchanged })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_becomes_smaller_once_and_stays_itself() {
        let plain: Vec<u8> = (0..60_000u32).flat_map(|number| (number * number / 7).to_le_bytes()).collect();
        let digest = Digest::of(&plain);
        let stored = zstd::bulk::compress(&plain, 1).unwrap();
        assert!(!is_recompressed(&stored));
        let Recompressed::Smaller(again) = recompress(&digest, &stored, 18).unwrap() else {
            panic!("not smaller than {}", stored.len());
        };
        assert_eq!(verify::open_chunk(&digest, &again).unwrap(), plain);
        assert!(again.len() < stored.len() && is_recompressed(&again));
        assert_eq!(recompress(&digest, &again, 18).unwrap(), Recompressed::Unchanged);
    }

    #[test]
    fn what_cannot_shrink_stays_and_what_is_spoilt_is_refused() {
        let mut plain = vec![0; 10_000];
        rand::fill(&mut plain[..]);
        let (digest, stored) = (Digest::of(&plain), zstd::bulk::compress(&plain, 1).unwrap());
        assert_eq!(recompress(&digest, &stored, 18).unwrap(), Recompressed::Unchanged);
        for spoilt in [&b""[..], b"1234", b"no frame at all"] {
            assert!(matches!(recompress(&digest, spoilt, 18), Err(RecompressError::Corrupt(_))));
        }
        let other = recompress(&Digest::of(b"other"), &stored, 18);
        assert!(matches!(other, Err(RecompressError::Corrupt(_))));
    }
}
