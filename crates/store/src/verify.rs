//! From stored bytes to plain bytes that are what their name says, and back.
//!
//! Pure functions, shared by everyone who reads the store: nothing is shown to a process, mounted or
//! decoded before it went through here. Inflation is bounded, so a forged frame costs bounded memory.

use std::io::Read;

use image::Digest;
use image::limits::{CHUNK_PLAIN_MAX, CHUNK_STORED_MAX, ENCODED_PLAIN_MAX};

/// The compression of indexes: they are written once and read by every node.
const INDEX_LEVEL: i32 = 9;
/// Beyond this an index is compressed fast: level 9 would make the first mount of a huge image wait.
const INDEX_LEVEL_MAX_BYTES: usize = 4 * 1024 * 1024;
/// The largest window a frame may ask its reader for (2^27 = 128 MiB, zstd's own default limit).
const WINDOW_LOG_MAX: u32 = 27;

/// The stored bytes are not the content that their name promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    #[error("{0}: larger than it may be")]
    TooLarge(Digest),
    #[error("{digest}: cannot be inflated: {reason}")]
    NotInflatable { digest: Digest, reason: String },
    #[error("{0}: the plain bytes have another digest")]
    OtherContent(Digest),
}

impl From<Corrupt> for tonic::Status {
    fn from(corrupt: Corrupt) -> tonic::Status {
        tonic::Status::data_loss(corrupt.to_string())
    }
}

/// The plain bytes of the chunk `digest`.
pub fn open_chunk(digest: &Digest, stored: &[u8]) -> Result<Vec<u8>, Corrupt> {
    if stored.len() > CHUNK_STORED_MAX {
        return Err(Corrupt::TooLarge(*digest));
    }
    // A frame says how long it is: believed only up to the bound.
    let capacity = match zstd::zstd_safe::get_frame_content_size(stored) {
        Ok(Some(len)) if len > CHUNK_PLAIN_MAX as u64 => return Err(Corrupt::TooLarge(*digest)),
        Ok(Some(len)) => len as usize,
        _ => CHUNK_PLAIN_MAX,
    };
    let plain = zstd::bulk::decompress(stored, capacity)
        .map_err(|error| Corrupt::NotInflatable { digest: *digest, reason: error.to_string() })?;
    named(digest, plain)
}

/// The plain bytes of the tree or map `digest`.
pub fn open_index(digest: &Digest, stored: &[u8]) -> Result<Vec<u8>, Corrupt> {
    let refuse =
        |error: std::io::Error| Corrupt::NotInflatable { digest: *digest, reason: error.to_string() };
    let mut decoder = zstd::stream::read::Decoder::with_buffer(stored).map_err(refuse)?;
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(refuse)?;
    let mut plain = Vec::new();
    decoder.take(ENCODED_PLAIN_MAX as u64 + 1).read_to_end(&mut plain).map_err(refuse)?;
    if plain.len() > ENCODED_PLAIN_MAX {
        return Err(Corrupt::TooLarge(*digest));
    }
    named(digest, plain)
}

/// The stored form of a tree or a map. The same bytes for the same plain bytes.
pub fn seal_index(plain: &[u8]) -> std::io::Result<Vec<u8>> {
    let level =
        if plain.len() <= INDEX_LEVEL_MAX_BYTES { INDEX_LEVEL } else { zstd::DEFAULT_COMPRESSION_LEVEL };
    zstd::bulk::compress(plain, level)
}

fn named(digest: &Digest, plain: Vec<u8>) -> Result<Vec<u8>, Corrupt> {
    match Digest::of(&plain) == *digest {
        true => Ok(plain),
        false => Err(Corrupt::OtherContent(*digest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_what_was_sealed() {
        let plain = b"chunk ".repeat(1000);
        let digest = Digest::of(&plain);
        let frame = zstd::bulk::compress(&plain, 1).unwrap();
        assert_eq!(open_chunk(&digest, &frame), Ok(plain.clone()));
        assert_eq!(open_index(&digest, &seal_index(&plain).unwrap()), Ok(plain));
        let nothing = Digest::of(b"");
        assert_eq!(open_chunk(&nothing, &zstd::bulk::compress(b"", 1).unwrap()), Ok(Vec::new()));
    }

    #[test]
    fn refuses_every_changed_byte() {
        let plain = b"0123456789abcdef".repeat(20);
        let digest = Digest::of(&plain);
        let frame = zstd::bulk::compress(&plain, 1).unwrap();
        for at in 0..frame.len() {
            let mut changed = frame.clone();
            changed[at] ^= 0x10;
            // A bit of the frame's header may be without meaning; content never is.
            if let Ok(opened) = open_chunk(&digest, &changed) {
                assert_eq!(opened, plain, "byte {at}");
            }
            assert!(open_chunk(&digest, &frame[..at]).is_err(), "cut at {at}");
        }
        let other = zstd::bulk::compress(b"other", 1).unwrap();
        assert_eq!(open_chunk(&digest, &other), Err(Corrupt::OtherContent(digest)));
        assert_eq!(open_index(&digest, &other), Err(Corrupt::OtherContent(digest)));
    }

    #[test]
    fn a_bomb_costs_bounded_memory() {
        let plain = vec![0; CHUNK_PLAIN_MAX + 1];
        let digest = Digest::of(&plain);
        let sized = zstd::bulk::compress(&plain, 1).unwrap();
        assert_eq!(open_chunk(&digest, &sized), Err(Corrupt::TooLarge(digest)));
        // The same without a length in the header.
        let streamed = zstd::stream::encode_all(&plain[..], 1).unwrap();
        assert!(matches!(open_chunk(&digest, &streamed), Err(Corrupt::NotInflatable { .. })));
        assert_eq!(open_chunk(&digest, &vec![0; CHUNK_STORED_MAX + 1]), Err(Corrupt::TooLarge(digest)));
    }
}
