//! PAX extended records: `LENGTH KEY=VALUE\n`, from the content of `x` and `g` members.

use std::collections::BTreeMap;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::Fault;
use super::sparse::{self, Extent};
use crate::record::{Mtime, Xattr, Xattrs, check};

/// libarchive leaves the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What extended records say of a member; what they leave open its header says.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mtime: Option<Mtime>,
    pub sparse: Option<SparseRecords>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The `GNU.sparse.*` records of one file, whichever form they have.
#[derive(Clone, Debug, Default)]
pub(super) struct SparseRecords {
    pub name: Option<Vec<u8>>,
    pub real_size: Option<u64>,
    pub major: u64,
    pub minor: u64,
    /// Forms 0.0 and 0.1; form 1.0 keeps its map before the data.
    pub extents: Vec<Extent>,
    /// Form 0.0 writes an extent as two records: its offset waits here for its length.
    offset: Option<u64>,
}

impl Records {
    /// Adds the records of one extension; they win over earlier ones of the same key.
    pub(super) fn parse(&mut self, mut content: &[u8]) -> Result<(), Fault> {
        while !content.is_empty() {
            let (key, value) = take_record(&mut content)?;
            self.apply(key, value)?;
        }
        check::xattrs(&self.xattrs()).map_err(Fault::Xattrs)
    }

    /// These records where they speak, else those of `global`; of its attributes see [`Records::or_xattrs`].
    pub(super) fn or(self, global: &Records) -> Records {
        Records {
            path: self.path.or_else(|| global.path.clone()),
            link: self.link.or_else(|| global.link.clone()),
            size: self.size.or(global.size),
            uid: self.uid.or(global.uid),
            gid: self.gid.or(global.gid),
            mtime: self.mtime.or(global.mtime),
            sparse: self.sparse,
            xattrs: self.xattrs,
        }
    }

    pub(super) fn has_xattrs(&self) -> bool {
        !self.xattrs.is_empty()
    }

    /// These attributes and, of other names, those of `global`.
    pub(super) fn or_xattrs(&self, global: &Records) -> Xattrs {
        let others = global.xattrs.iter().filter(|(name, _)| !self.xattrs.contains_key(*name));
        let mut all: Vec<Xattr> = others.chain(&self.xattrs).map(xattr).collect();
        all.sort_unstable();
        all.into()
    }

    /// Sorted by name.
    pub(super) fn xattrs(&self) -> Vec<Xattr> {
        self.xattrs.iter().map(xattr).collect()
    }

    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.insert(name.to_vec(), value.to_vec());
            return Ok(());
        }
        if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let name = percent_decode(name).ok_or(Fault::Record("LIBARCHIVE.xattr name"))?;
            let value = BASE64.decode(value).map_err(|_| Fault::Record("LIBARCHIVE.xattr value"))?;
            // bsdtar writes both forms; the other is not encoded and so cannot be in error.
            self.xattrs.entry(name).or_insert(value);
            return Ok(());
        }
        if let Some(field) = key.strip_prefix(b"GNU.sparse.") {
            return self.sparse.get_or_insert_default().apply(field, value);
        }
        // An empty value takes an earlier record back.
        let given = (!value.is_empty()).then_some(value);
        match key {
            b"path" => self.path = given.map(|path| without_nul(path, "path")).transpose()?,
            b"linkpath" => self.link = given.map(|link| without_nul(link, "linkpath")).transpose()?,
            b"size" => self.size = given.map(|size| decimal("pax size", size)).transpose()?,
            b"uid" => self.uid = given.map(|uid| id("pax uid", uid)).transpose()?,
            b"gid" => self.gid = given.map(|gid| id("pax gid", gid)).transpose()?,
            b"mtime" => self.mtime = given.map(time).transpose()?,
            // Comments, access times, user names, character sets: nothing that a tree keeps.
            _ => {}
        }
        Ok(())
    }
}

fn xattr((name, value): (&Vec<u8>, &Vec<u8>)) -> Xattr {
    Xattr { name: name.clone(), value: value.clone() }
}

impl SparseRecords {
    fn apply(&mut self, field: &[u8], value: &[u8]) -> Result<(), Fault> {
        let value_of = |name| decimal(name, value);
        match field {
            b"name" => self.name = Some(without_nul(value, "GNU.sparse.name")?),
            b"major" => self.major = value_of("GNU.sparse.major")?,
            b"minor" => self.minor = value_of("GNU.sparse.minor")?,
            b"size" | b"realsize" => self.real_size = Some(value_of("GNU.sparse.size")?),
            b"offset" if self.offset.is_some() => return Err(Fault::Sparse("an extent without its length")),
            b"offset" => self.offset = Some(value_of("GNU.sparse.offset")?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or(Fault::Sparse("an extent without its offset"))?;
                sparse::push(&mut self.extents, Extent { offset, len: value_of("GNU.sparse.numbytes")? })?;
            }
            b"map" => self.extents = sparse::parse_list(value)?,
            _ => {}
        }
        Ok(())
    }

    /// Whether the map stands in the data (form 1.0); an error for a form that nobody defined.
    pub(super) fn map_in_data(&self) -> Result<bool, Fault> {
        match (self.major, self.minor) {
            (0, 0 | 1) if self.offset.is_some() => Err(Fault::Sparse("an extent without its length")),
            (0, 0 | 1) => Ok(false),
            (1, 0) => Ok(true),
            _ => Err(Fault::Sparse("a form that is not known")),
        }
    }
}

/// The first record's key and value; `content` goes on behind it.
fn take_record<'a>(content: &mut &'a [u8]) -> Result<(&'a [u8], &'a [u8]), Fault> {
    let blank = content.iter().position(|&byte| byte == b' ').ok_or(Fault::Record("no length"))?;
    let len = decimal("length of an extended record", &content[..blank])?;
    let len = usize::try_from(len).map_err(|_| Fault::Record("length"))?;
    if len <= blank + 1 || len > content.len() {
        return Err(Fault::Record("length"));
    }
    let (record, rest) = content.split_at(len);
    *content = rest;
    let record = record[blank + 1..].strip_suffix(b"\n").ok_or(Fault::Record("no line end"))?;
    let equals = record.iter().position(|&byte| byte == b'=').ok_or(Fault::Record("no value"))?;
    match &record[..equals] {
        key if key.is_empty() || key.contains(&0) => Err(Fault::Record("key")),
        key => Ok((key, &record[equals + 1..])),
    }
}

fn without_nul(value: &[u8], name: &'static str) -> Result<Vec<u8>, Fault> {
    match value.contains(&0) {
        true => Err(Fault::Record(name)),
        false => Ok(value.to_vec()),
    }
}

pub(super) fn decimal(name: &'static str, text: &[u8]) -> Result<u64, Fault> {
    let digits = text.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    });
    match digits {
        // The same range as in a header, so that no sum of two sizes overflows.
        Some(value) if !text.is_empty() && i64::try_from(value).is_ok() => Ok(value),
        _ => Err(Fault::Number(name)),
    }
}

fn id(name: &'static str, text: &[u8]) -> Result<u32, Fault> {
    decimal(name, text)?.try_into().map_err(|_| Fault::Number(name))
}

/// `[-]SECONDS[.FRACTION]`; digits below the nanosecond are cut off.
fn time(text: &[u8]) -> Result<Mtime, Fault> {
    const NAME: &str = "pax mtime";
    let (negative, magnitude) = match text.strip_prefix(b"-") {
        Some(magnitude) => (true, magnitude),
        None => (false, text),
    };
    let mut parts = magnitude.splitn(2, |&byte| byte == b'.');
    let whole = parts.next().unwrap_or_default();
    let fraction = parts.next().unwrap_or_default();
    let secs = decimal(NAME, whole)?.cast_signed();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(Fault::Number(NAME));
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanos = digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    Ok(match (negative, nanos) {
        (false, _) => Mtime { secs, nanos },
        (true, 0) => Mtime { secs: -secs, nanos: 0 },
        // Nanoseconds count forward from the second below.
        (true, _) => Mtime { secs: -secs - 1, nanos: 1_000_000_000 - nanos },
    })
}

fn percent_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            plain.push(byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        plain.push(hex::decode(digits).ok()?[0]);
        rest = after;
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times_of_every_shape() {
        let cases: &[(&str, Option<(i64, u32)>)] = &[
            ("1700000000", Some((1_700_000_000, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("1.", Some((1, 0))),
            ("1.0000000019", Some((1, 1))),
            ("-1", Some((-1, 0))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-0.000000001", Some((-1, 999_999_999))),
            ("9223372036854775807", Some((i64::MAX, 0))),
            ("9223372036854775808", None),
            ("", None),
            ("-", None),
            (".5", None),
            ("1.5.5", None),
            ("1e9", None),
        ];
        for (text, expected) in cases {
            let found = time(text.as_bytes()).ok().map(|time| (time.secs, time.nanos));
            assert_eq!(found, *expected, "{text}");
        }
    }

    #[test]
    fn refuses_malformed_records() {
        let cases = [
            "",
            "6 a=b",
            "5 a=b\n",
            "7 a=b\n",
            "99 a=b\n",
            "a=b\n",
            "3 \n",
            "5 ab\n",
            "5 =b\n",
            "x a=b\n",
            "99999999999999999999 a=b\n",
            "9 uid=-1\n",
            "12 size=12x\n",
            "10 path=\0\n",
        ];
        assert!(Records::default().parse(b"6 a=b\n").is_ok());
        for content in &cases[1..] {
            assert!(Records::default().parse(content.as_bytes()).is_err(), "{content:?}");
        }
    }
}
