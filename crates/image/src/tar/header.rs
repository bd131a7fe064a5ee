//! One 512-byte header block: fixed fields, in the dialect that its magic names.
//!
//! ```text
//!   0 name 100 | 100 mode 8 | 108 uid 8 | 116 gid 8 | 124 size 12 | 136 mtime 12 | 148 checksum 8
//! 156 type   1 | 157 link 100 | 257 magic 8 | 265 names 64 | 329 major 8 | 337 minor 8
//! 345 ustar: prefix 155 | star: prefix 131 .. 508 "tar\0" | GNU: 386 sparse map, 483 real size
//! ```

use super::{Block, Fault};
use crate::record::{Device, Mtime};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// A header whose checksum matched.
#[derive(Debug)]
pub(super) struct Header<'a> {
    block: &'a Block,
    dialect: Dialect,
    /// `b'0'` and so on; zero in archives older than ustar.
    pub flag: u8,
    pub size: u64,
    pub mode: u32,
    pub mtime: Mtime,
}

impl<'a> Header<'a> {
    pub(super) fn parse(block: &'a Block) -> Result<Header<'a>, Fault> {
        if !checksum_matches(block) {
            return Err(Fault::Checksum);
        }
        let dialect = match &block[257..265] {
            b"ustar  \0" => Dialect::Gnu,
            magic if magic.starts_with(b"ustar\0") && &block[508..] == b"tar\0" => Dialect::Star,
            magic if magic.starts_with(b"ustar\0") => Dialect::Ustar,
            _ => Dialect::V7,
        };
        Ok(Header {
            block,
            dialect,
            flag: block[156],
            size: unsigned("size", &block[124..136])?,
            // The type stands in the flag: some writers repeat it in the mode's upper bits.
            mode: (number("mode", &block[100..108])? & 0o7777) as u32,
            mtime: Mtime { secs: number("mtime", &block[136..148])?, nanos: 0 },
        })
    }

    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.block[..100]);
        let prefix = match self.dialect {
            Dialect::Ustar => text(&self.block[345..500]),
            Dialect::Star => text(&self.block[345..476]),
            Dialect::V7 | Dialect::Gnu => b"",
        };
        match prefix {
            b"" => name.to_vec(),
            _ => [prefix, b"/", name].concat(),
        }
    }

    /// Whether the block goes on with an old GNU sparse map.
    pub(super) fn is_gnu_sparse(&self) -> bool {
        self.flag == b'S' && self.dialect == Dialect::Gnu
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.block[157..257]).to_vec()
    }

    pub(super) fn uid(&self) -> Result<u32, Fault> {
        id("uid", &self.block[108..116])
    }

    pub(super) fn gid(&self) -> Result<u32, Fault> {
        id("gid", &self.block[116..124])
    }

    pub(super) fn device(&self) -> Result<Device, Fault> {
        if self.dialect == Dialect::V7 {
            return Ok(Device { major: 0, minor: 0 });
        }
        Ok(Device {
            major: id("device", &self.block[329..337])?,
            minor: id("device", &self.block[337..345])?,
        })
    }
}

/// What separates a header from any other block.
pub(super) fn checksum_matches(block: &Block) -> bool {
    let Ok(declared) = number("checksum", &block[148..156]) else { return false };
    // The sum counts the checksum's own field as blanks. Old writers summed signed bytes.
    let outside = || block[..148].iter().chain(&block[156..]);
    let blanks = 8 * i64::from(b' ');
    let plain: i64 = outside().map(|&byte| i64::from(byte)).sum();
    let signed: i64 = outside().map(|&byte| i64::from(byte.cast_signed())).sum();
    declared == plain + blanks || declared == signed + blanks
}

/// The bytes before the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or(field)
}

pub(super) fn unsigned(name: &'static str, field: &[u8]) -> Result<u64, Fault> {
    number(name, field)?.try_into().map_err(|_| Fault::Number(name))
}

fn id(name: &'static str, field: &[u8]) -> Result<u32, Fault> {
    number(name, field)?.try_into().map_err(|_| Fault::Number(name))
}

/// Octal text between blanks or NULs (nothing is zero), or two's complement in base 256 after a
/// set highest bit.
pub(super) fn number(name: &'static str, field: &[u8]) -> Result<i64, Fault> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field),
        _ => octal(field),
    }
    .ok_or(Fault::Number(name))
}

fn octal(field: &[u8]) -> Option<i64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let digits = field[start..].split(blank).next().unwrap_or_default();
    digits.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

fn base256(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    // The marker bit is not part of the number; the one below it is its sign.
    let start = i64::from((first << 1).cast_signed() >> 1);
    rest.iter().try_fold(start, |value, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_numbers_of_both_kinds() {
        let mut large = [0; 12];
        large[0] = 0x80;
        large[4..].copy_from_slice(&(1_i64 << 40).to_be_bytes());
        let mut least = [0xff; 12];
        least[4..].copy_from_slice(&i64::MIN.to_be_bytes());
        let mut beyond = [0; 12];
        beyond[0] = 0x80;
        beyond[3] = 1;
        let mut below = least;
        below[3] = 0xfe;
        let cases: &[(&[u8], Option<i64>)] = &[
            (b"0000644\0", Some(0o644)),
            (b"  644 \0\0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"777777777777", Some(0o777_777_777_777)),
            (b"644 junk", Some(0o644)),
            (b"0000684\0", None),
            (b"-000001\0", None),
            (&large, Some(1 << 40)),
            (&[0xff; 12], Some(-1)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x9c], Some(-100)),
            (&least, Some(i64::MIN)),
            (&beyond, None),
            (&below, None),
        ];
        for (field, value) in cases {
            assert_eq!(number("field", field).ok(), *value, "{field:?}");
        }
    }
}
