//! Versioned encodings of records and maps.
//!
//! `magic (4 bytes) | version (u16, little endian) | zstd(postcard(value))`, one zstd frame and
//! nothing after it. The version says how the postcard bytes are laid out; a reader refuses one it
//! does not know. Equal values give equal bytes.

use std::io::{self, BufRead, BufReader, Read};

use serde::de::{DeserializeOwned, Error as _, SeqAccess};
use serde::{Deserialize, Deserializer, Serialize};

use crate::limits::ENCODED_PLAIN_MAX;

/// zstd level: records are written once and read often, and are small beside their content.
const LEVEL: i32 = 3;
const HEADER_LEN: usize = 6;
/// The largest window that a reader holds: 8 MiB, as every reader of zstd does. Ours ask for 2 MiB.
const WINDOW_LOG_MAX: u32 = 23;

/// One kind of encoded value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// As errors call it.
    pub name: &'static str,
    pub magic: [u8; 4],
    pub version: u16,
}

pub const LAYER_RECORD: Format = Format { name: "layer record", magic: *b"slLR", version: 2 };
pub const IMAGE_RECORD: Format = Format { name: "image record", magic: *b"slIR", version: 1 };
pub const PROFILE: Format = Format { name: "profile", magic: *b"slPR", version: 1 };
pub const MAP: Format = Format { name: "map", magic: *b"slMP", version: 2 };

#[derive(Debug, thiserror::Error)]
pub enum EncodingError {
    #[error("encode {what}: {reason}")]
    Encode { what: &'static str, reason: String },
    #[error("decode {what}: not a {what}")]
    Magic { what: &'static str },
    #[error("decode {what}: version {found} is not known, only {known}")]
    Version { what: &'static str, found: u16, known: u16 },
    #[error("decode {what}: inflate")]
    Inflate { what: &'static str, source: io::Error },
    #[error("decode {what}: more than {ENCODED_PLAIN_MAX} bytes inflated")]
    TooLarge { what: &'static str },
    #[error("decode {what}: malformed")]
    Malformed { what: &'static str, source: postcard::Error },
    #[error("decode {what}: bytes after its end")]
    Trailing { what: &'static str },
    #[error("decode {what}: {reason}")]
    Invalid { what: &'static str, reason: String },
}

impl Format {
    /// The refusal of a value that was read whole but breaks a rule of its kind.
    pub fn invalid(&self, reason: impl Into<String>) -> EncodingError {
        EncodingError::Invalid { what: self.name, reason: reason.into() }
    }
}

/// `value` as bytes of `format`.
pub fn encode<T: Serialize>(format: Format, value: &T) -> Result<Vec<u8>, EncodingError> {
    let refuse = |reason: String| EncodingError::Encode { what: format.name, reason };
    let plain = postcard::to_stdvec(value).map_err(|error| refuse(error.to_string()))?;
    if plain.len() > ENCODED_PLAIN_MAX {
        return Err(refuse(format!("{} bytes are more than {ENCODED_PLAIN_MAX}", plain.len())));
    }
    let packed = zstd::bulk::compress(&plain, LEVEL).map_err(|error| refuse(error.to_string()))?;
    Ok([&format.magic[..], &format.version.to_le_bytes(), &packed].concat())
}

/// The value that `encoded` holds. Its shape is checked here; its rules by the caller.
pub fn decode<T: DeserializeOwned>(format: Format, encoded: &[u8]) -> Result<T, EncodingError> {
    let what = format.name;
    let Some((header, packed)) = encoded.split_first_chunk() else {
        return Err(EncodingError::Magic { what });
    };
    check_header(format, header)?;
    let plain = inflate(what, packed)?;
    match postcard::take_from_bytes(&plain) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(EncodingError::Trailing { what }),
        Err(source) => Err(EncodingError::Malformed { what, source }),
    }
}

/// The same from a stream, of which no more is in memory at a time than inflating takes. For values without byte strings:
/// those would need to stand somewhere while they are read.
pub fn read<T: DeserializeOwned>(format: Format, mut encoded: impl Read) -> Result<T, EncodingError> {
    read_header(format, &mut encoded)?;
    read_body(format, encoded)
}

/// The same, or the value as the version before laid it out.
pub fn read_or<T, Before>(format: Format, mut encoded: impl Read) -> Result<T, EncodingError>
where
    T: DeserializeOwned,
    Before: DeserializeOwned + Into<T>,
{
    match read_header(format, &mut encoded) {
        Err(EncodingError::Version { found, known, .. }) if found.checked_add(1) == Some(known) => {
            read_body::<Before>(format, encoded).map(Into::into)
        }
        read => read.and_then(|()| read_body(format, encoded)),
    }
}

fn read_header(format: Format, encoded: &mut impl Read) -> Result<(), EncodingError> {
    let what = format.name;
    let failed = |source| EncodingError::Inflate { what, source };
    let mut header = [0; HEADER_LEN];
    encoded.read_exact(&mut header).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => EncodingError::Magic { what },
        _ => failed(error),
    })?;
    check_header(format, &header)
}

fn read_body<T: DeserializeOwned>(format: Format, encoded: impl Read) -> Result<T, EncodingError> {
    let what = format.name;
    let failed = |source| EncodingError::Inflate { what, source };
    let mut decoder = zstd::Decoder::new(encoded).map_err(failed)?.single_frame();
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(failed)?;
    let mut plain = BufReader::new(Bounded { plain: decoder, left: ENCODED_PLAIN_MAX, failed: None });
    let value = postcard::from_io((&mut plain, &mut [])).map(|(value, _)| value);
    if let Some(source) = plain.get_mut().failed.take() {
        return Err(failed(source));
    }
    let value = value.map_err(|source| EncodingError::Malformed { what, source })?;
    let at_its_end = plain.fill_buf().map_err(failed)?.is_empty();
    let mut encoded = plain.into_inner().plain.finish();
    match at_its_end && encoded.fill_buf().map_err(failed)?.is_empty() {
        true => Ok(value),
        false => Err(EncodingError::Trailing { what }),
    }
}

/// Plain bytes up to a bound. Keeps why they ended: whoever reads them only learns that they did.
struct Bounded<R> {
    plain: R,
    left: usize,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.plain.read(into).and_then(|read| match self.left.checked_sub(read) {
            Some(left) => {
                self.left = left;
                Ok(read)
            }
            None => Err(io::ErrorKind::FileTooLarge.into()),
        });
        read.map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                self.failed = Some(error);
            }
            kind.into()
        })
    }
}

fn check_header(format: Format, header: &[u8; HEADER_LEN]) -> Result<(), EncodingError> {
    let (what, known) = (format.name, format.version);
    let [magic @ .., low, high] = header;
    let found = u16::from_le_bytes([*low, *high]);
    match *magic == format.magic {
        false => Err(EncodingError::Magic { what }),
        true if found != known => Err(EncodingError::Version { what, found, known }),
        true => Ok(()),
    }
}

fn inflate(what: &'static str, packed: &[u8]) -> Result<Vec<u8>, EncodingError> {
    let failed = |source| EncodingError::Inflate { what, source };
    let mut plain = Vec::new();
    let mut decoder = zstd::Decoder::with_buffer(packed).map_err(failed)?.single_frame();
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(failed)?;
    decoder.by_ref().take(ENCODED_PLAIN_MAX as u64 + 1).read_to_end(&mut plain).map_err(failed)?;
    if plain.len() > ENCODED_PLAIN_MAX {
        return Err(EncodingError::TooLarge { what });
    }
    match decoder.finish() {
        [] => Ok(plain),
        _ => Err(EncodingError::Trailing { what }),
    }
}

/// A list of at most `MAX` elements: a few hostile bytes could otherwise become a lot of memory.
/// For `#[serde(deserialize_with)]`.
pub fn at_most<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Visitor<T, const MAX: usize>(std::marker::PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const MAX: usize> serde::de::Visitor<'de> for Visitor<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(formatter, "a list of at most {MAX} elements")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(element) = elements.next_element()? {
                if list.len() == MAX {
                    return Err(A::Error::invalid_length(MAX + 1, &self));
                }
                list.push(element);
            }
            Ok(list)
        }
    }
    deserializer.deserialize_seq(Visitor::<T, MAX>(std::marker::PhantomData))
}

/// Byte strings as postcard byte arrays (serde's default would write a sequence of integers).
pub mod bytes {
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Vec<u8>;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a byte string")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }

            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: Format = Format { name: "list", magic: *b"test", version: 7 };

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct List(#[serde(deserialize_with = "at_most::<_, _, 4>")] Vec<u32>);

    #[test]
    fn gives_back_what_it_took() -> anyhow::Result<()> {
        let list = List(vec![1, 2, 3, 4]);
        let encoded = encode(FORMAT, &list)?;
        assert_eq!(decode::<List>(FORMAT, &encoded)?, list);
        assert_eq!(read::<List>(FORMAT, &encoded[..])?, list);
        assert_eq!(encode(FORMAT, &list)?, encoded);
        Ok(())
    }

    #[test]
    fn refuses_what_it_did_not_write() -> anyhow::Result<()> {
        let encoded = encode(FORMAT, &List(vec![1, 2]))?;
        let refusal = |bytes: &[u8]| {
            let (whole, streamed) =
                (decode::<List>(FORMAT, bytes).unwrap_err(), read::<List>(FORMAT, bytes).unwrap_err());
            assert_eq!(
                std::mem::discriminant(&whole),
                std::mem::discriminant(&streamed),
                "{whole}, {streamed}"
            );
            whole
        };
        assert!(matches!(refusal(&[]), EncodingError::Magic { .. }));
        assert!(matches!(
            refusal(&[b"best".as_slice(), &encoded[4..]].concat()),
            EncodingError::Magic { .. }
        ));
        let newer = encode(Format { version: 8, ..FORMAT }, &List(vec![]))?;
        assert!(matches!(refusal(&newer), EncodingError::Version { found: 8, known: 7, .. }));
        assert!(matches!(refusal(&encoded[..encoded.len() - 1]), EncodingError::Inflate { .. }));
        assert!(matches!(refusal(&[&encoded[..], b"x"].concat()), EncodingError::Trailing { .. }));
        let longer = encode(FORMAT, &(List(vec![1]), 1u32))?;
        assert!(matches!(refusal(&longer), EncodingError::Trailing { .. }));
        let too_many = encode(FORMAT, &List(vec![0; 5]))?;
        assert!(matches!(refusal(&too_many), EncodingError::Malformed { .. }));
        Ok(())
    }
}
