//! From a blob's bytes to a tar's bytes, on a thread of its own.
//!
//! The compression is what the first bytes say, not what the media type says. Everything that runs
//! through is hashed on both sides. A layer that inflates to more than its limit ends the read; the
//! memory held is a few buffers either way.

use std::io::{self, BufRead, Read};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::error::LayerFault;
use super::gunzip::Gunzip;
use crate::source::SourceError;

/// Plain bytes handed on at once: large enough that the channel's cost vanishes.
pub(super) const BUFFER_BYTES: usize = 1024 * 1024;
/// Enough to tell every compression apart.
const MAGIC_BYTES: usize = 10;
/// zstd's own default: a frame may ask its reader to remember 2^27 bytes.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// What came in, hashed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Inflated {
    pub(super) blob: Hashed,
    pub(super) tar: Hashed,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hashed {
    pub(super) sha256: [u8; 32],
    pub(super) len: u64,
}

/// How a read of a blob ended before the end of its tar.
#[derive(Debug)]
pub(super) enum Stop {
    /// The source failed, or a limit was hit: no more was read.
    Fault(LayerFault),
    /// The bytes make no sense; the rest was read to learn whether they are the promised ones.
    Malformed { fault: LayerFault, blob: Hashed },
    /// The reader of the plain bytes had enough; the rest of the blob was read and hashed.
    Unwanted { blob: Hashed },
}

/// Inflates `blob` into buffers of [`BUFFER_BYTES`], at most `plain_max` bytes in all.
pub(super) fn inflate(
    blob: mpsc::Receiver<Result<Bytes, SourceError>>,
    plain: mpsc::Sender<Vec<u8>>,
    plain_max: u64,
) -> Result<Inflated, Stop> {
    let mut blob = BlobReader { blob, current: Bytes::new(), hash: Sha256::new(), len: 0, failure: None };
    let mut hash = Sha256::new();
    let mut len = 0;
    let sent = match decoder(&mut blob) {
        Ok(mut decoder) => send_all(&mut *decoder, plain, plain_max, &mut hash, &mut len),
        Err(fault) => Err(Some(fault)),
    };
    // A read error is the source's, if the source had one.
    if let Some(error) = blob.failure.take() {
        return Err(Stop::Fault(error.into()));
    }
    if let Err(Some(fault @ LayerFault::TooLarge(_))) = sent {
        return Err(Stop::Fault(fault));
    }
    let hashed = blob.finish().map_err(|error| Stop::Fault(error.into()))?;
    match sent {
        Ok(()) => Ok(Inflated { blob: hashed, tar: Hashed { sha256: hash.finalize().into(), len } }),
        Err(Some(fault)) => Err(Stop::Malformed { fault, blob: hashed }),
        Err(None) => Err(Stop::Unwanted { blob: hashed }),
    }
}

/// `Err(None)`: nobody wants more.
fn send_all(
    decoder: &mut dyn Read,
    plain: mpsc::Sender<Vec<u8>>,
    plain_max: u64,
    hash: &mut Sha256,
    len: &mut u64,
) -> Result<(), Option<LayerFault>> {
    loop {
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        let read = (&mut *decoder).take(BUFFER_BYTES as u64).read_to_end(&mut buffer);
        let read = read.map_err(|error| Some(LayerFault::Inflate(error)))?;
        if read == 0 {
            return Ok(());
        }
        *len += read as u64;
        if *len > plain_max {
            return Err(Some(LayerFault::TooLarge(plain_max)));
        }
        hash.update(&buffer);
        plain.blocking_send(buffer).map_err(|_| None)?;
    }
}

fn decoder<'a>(blob: &'a mut BlobReader) -> Result<Box<dyn Read + 'a>, LayerFault> {
    let mut magic = [0; MAGIC_BYTES];
    let known = fill(blob, &mut magic).map_err(LayerFault::Inflate)?;
    let head = io::Cursor::new(magic).take(known as u64);
    let whole = head.chain(blob);
    Ok(match &magic[..known] {
        [0x1f, 0x8b, ..] => Box::new(Gunzip::new(whole)),
        // A frame, or a skippable frame.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut decoder = zstd::Decoder::with_buffer(whole).map_err(LayerFault::Inflate)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(LayerFault::Inflate)?;
            Box::new(decoder)
        }
        [b'B', b'Z', b'h', b'1'..=b'9', b'1', b'A', b'Y', ..] => {
            return Err(LayerFault::Compression("bzip2"));
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => return Err(LayerFault::Compression("xz")),
        [0x04, 0x22, 0x4d, 0x18, ..] => return Err(LayerFault::Compression("lz4")),
        _ => Box::new(whole),
    })
}

fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

/// The blob as it arrives, hashed as it is taken.
struct BlobReader {
    blob: mpsc::Receiver<Result<Bytes, SourceError>>,
    current: Bytes,
    hash: Sha256,
    len: u64,
    failure: Option<SourceError>,
}

impl BlobReader {
    /// Takes what nobody asked for; the hash of everything.
    fn finish(mut self) -> Result<Hashed, SourceError> {
        while let Some(arrived) = self.blob.blocking_recv() {
            self.arrived(&arrived?);
        }
        Ok(Hashed { sha256: self.hash.finalize().into(), len: self.len })
    }

    fn arrived(&mut self, arrived: &Bytes) {
        self.hash.update(arrived);
        self.len += arrived.len() as u64;
    }
}

impl BufRead for BlobReader {
    /// The piece as it arrived: no copy.
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            match self.blob.blocking_recv() {
                None => break,
                Some(Ok(arrived)) => {
                    self.arrived(&arrived);
                    self.current = arrived;
                }
                Some(Err(error)) => {
                    let text = error.to_string();
                    self.failure = Some(error);
                    return Err(io::Error::other(text));
                }
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, len: usize) {
        drop(self.current.split_to(len));
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}
