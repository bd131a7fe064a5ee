//! What the fuzz targets share: encodings with their compression taken off.
//!
//! A fuzzer that changes bits of a zstd frame tries little but zstd. So corpora hold the plain
//! inside of an encoded value, and the targets wrap it up again before they decode it.

use image::encoding::Format;

/// Where the compressed part of an encoded value begins.
const HEADER_LEN: usize = 6;

/// `plain` as an encoded value of `format`.
pub fn wrap(format: Format, plain: &[u8]) -> Vec<u8> {
    let packed = zstd::bulk::compress(plain, 1).expect("compression into memory");
    [&format.magic[..], &format.version.to_le_bytes(), &packed].concat()
}

/// The plain inside of an encoded value.
pub fn unwrap(encoded: &[u8]) -> Vec<u8> {
    zstd::decode_all(&encoded[HEADER_LEN..]).expect("a value that was just encoded")
}
