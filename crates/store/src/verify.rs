//! From stored bytes to plain bytes that are what their name says, and back.
//!
//! Pure functions, shared by everyone who reads the store: nothing is shown to a process, mounted or
//! decoded before it went through here. Inflation is bounded, so a forged frame costs bounded memory.

use std::io::{self, Write};

use image::Digest;
use image::limits::{CHUNK_PLAIN_MAX, CHUNK_STORED_MAX, ENCODED_PLAIN_MAX};

/// The compression of indexes: they are written once and read by every node.
const INDEX_LEVEL: i32 = 9;
/// Beyond this an index is compressed fast: level 9 would make the first mount of a huge image wait.
const INDEX_LEVEL_MAX_BYTES: usize = 4 * 1024 * 1024;
/// The largest window that the frame of an index may ask its reader for: 8 MiB, what every reader of the format must
/// be able to hold. Ours ask for half of that: see [`INDEX_LEVEL_MAX_BYTES`].
const WINDOW_LOG_MAX: u32 = 23;

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
    let opened = Opening::new(*digest, Vec::new()).and_then(|opening| opening.push(stored)?.finish());
    opened.map_err(|error| match error {
        OpenError::Corrupt(corrupt) => corrupt,
        OpenError::Keep(error) => Corrupt::NotInflatable { digest: *digest, reason: error.to_string() },
    })
}

/// A tree or map that is opened as its stored bytes come: they go in, plain bytes come out into `W`. What came out is
/// what the name says only once [`Opening::finish`] gives it back.
pub struct Opening<W: Write> {
    digest: Digest,
    decoder: zstd::stream::write::Decoder<'static, Plain<W>>,
}

/// Why an index could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// The bytes may be good; it is we who cannot write them.
    #[error("the plain bytes cannot be kept")]
    Keep(#[source] io::Error),
}

/// Plain bytes on their way: counted, hashed, handed on.
struct Plain<W> {
    into: W,
    hasher: blake3::Hasher,
    bytes: usize,
    /// Why no more is taken: the decoder hands errors on, but not whose they are.
    refused: Option<Refused>,
}

enum Refused {
    TooLarge,
    Keep(io::Error),
}

impl<W: Write> Opening<W> {
    pub fn new(digest: Digest, into: W) -> Result<Opening<W>, OpenError> {
        let plain = Plain { into, hasher: blake3::Hasher::new(), bytes: 0, refused: None };
        let decoder = zstd::stream::write::Decoder::new(plain).and_then(|mut decoder| {
            decoder.window_log_max(WINDOW_LOG_MAX)?;
            Ok(decoder)
        });
        Ok(Opening { digest, decoder: decoder.map_err(OpenError::Keep)? })
    }

    /// Takes the next stored bytes.
    pub fn push(mut self, stored: &[u8]) -> Result<Opening<W>, OpenError> {
        match self.decoder.write_all(stored) {
            Ok(()) => Ok(self),
            Err(error) => Err(self.why(&error)),
        }
    }

    /// All stored bytes were there.
    pub fn finish(mut self) -> Result<W, OpenError> {
        if let Err(error) = self.decoder.flush() {
            return Err(self.why(&error));
        }
        let plain = self.decoder.into_inner();
        match Digest::from(plain.hasher.finalize()) == self.digest {
            true => Ok(plain.into),
            false => Err(Corrupt::OtherContent(self.digest).into()),
        }
    }

    fn why(mut self, error: &io::Error) -> OpenError {
        let digest = self.digest;
        match self.decoder.get_mut().refused.take() {
            Some(Refused::Keep(error)) => OpenError::Keep(error),
            Some(Refused::TooLarge) => Corrupt::TooLarge(digest).into(),
            None => Corrupt::NotInflatable { digest, reason: error.to_string() }.into(),
        }
    }
}

impl<W: Write> Write for Plain<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > ENCODED_PLAIN_MAX - self.bytes {
            self.refused = Some(Refused::TooLarge);
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if let Err(error) = self.into.write_all(bytes) {
            let kind = error.kind();
            self.refused = Some(Refused::Keep(error));
            return Err(kind.into());
        }
        self.hasher.update(bytes);
        self.bytes += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.into.flush()
    }
}

impl<W: Write> std::fmt::Debug for Opening<W> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Opening").field("digest", &self.digest).finish_non_exhaustive()
    }
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
    fn an_index_may_come_in_pieces_and_says_whose_fault_it_is() {
        let plain = b"entry ".repeat(100_000);
        let digest = Digest::of(&plain);
        let stored = seal_index(&plain).unwrap();
        let pieces = |stored: &[u8]| {
            let opening = Opening::new(digest, Vec::new()).unwrap();
            stored.chunks(7).try_fold(opening, Opening::push).and_then(Opening::finish)
        };
        assert_eq!(pieces(&stored).unwrap(), plain);
        for cut in [0, 1, stored.len() / 2, stored.len() - 1] {
            assert!(matches!(pieces(&stored[..cut]), Err(OpenError::Corrupt(_))), "cut at {cut}");
        }
        let mut short = [0; 100];
        let full = Opening::new(digest, &mut short[..]).unwrap().push(&stored);
        assert!(matches!(full, Err(OpenError::Keep(_))));
        // A window that only few readers can hold.
        let mut wide = zstd::Encoder::new(Vec::new(), 1).unwrap();
        wide.window_log(WINDOW_LOG_MAX + 1).unwrap();
        wide.write_all(&plain).unwrap();
        let wide = wide.finish().unwrap();
        assert!(matches!(open_index(&digest, &wide), Err(Corrupt::NotInflatable { .. })));
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
