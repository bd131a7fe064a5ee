//! Finds the members of a tar file without reading what is in them.
//!
//! Just enough of the format for the archives that image tools write: ustar and its prefix, GNU
//! long names, PAX `path`, `linkpath` and `size`. A layer's own tar is read elsewhere, in full.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

const BLOCK: u64 = 512;
/// Members of one archive: an image has three per layer, and a few more.
const MEMBERS_MAX: usize = 20_000;
/// One extension (a long name, PAX records), in bytes; a name has 4,096 at most.
const EXTENSION_MAX: u64 = 64 * 1024;
/// Links followed from one name; `docker save` writes one.
const LINKS_MAX: usize = 8;

/// The members by name, the later of two winning.
#[derive(Debug, Default)]
pub(super) struct Members(HashMap<String, Member>);

#[derive(Debug)]
enum Member {
    /// Where its bytes stand in the archive.
    File(Range<u64>),
    /// Another member's name.
    Link(String),
}

/// What extension members say of the one that follows them.
#[derive(Default)]
struct Overrides {
    path: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl Members {
    /// Blocks. `len` is the file's length: nothing may stand beyond it.
    pub(super) fn find(file: &File, len: u64) -> io::Result<Members> {
        let mut members = Members::default();
        let mut overrides = Overrides::default();
        let mut at = 0;
        while let Some(header) = Header::read(file, at, len)? {
            let data = at + BLOCK;
            let size = overrides.size.filter(|_| !header.is_extension()).unwrap_or(header.size);
            let end =
                data.checked_add(size).filter(|end| *end <= len).ok_or_else(|| wrong(at, "it is cut off"))?;
            match header.kind {
                b'L' => overrides.path = Some(terminated(&extension(file, data..end, at)?)),
                b'K' => overrides.link = Some(terminated(&extension(file, data..end, at)?)),
                b'x' => overrides
                    .pax(&extension(file, data..end, at)?)
                    .ok_or_else(|| wrong(at, "bad PAX records"))?,
                _ => members.add(header, std::mem::take(&mut overrides), data..end, at)?,
            }
            at = end.div_ceil(BLOCK).saturating_mul(BLOCK);
        }
        Ok(members)
    }

    /// Where the bytes of `name` stand, through links.
    pub(super) fn file(&self, name: &str) -> Option<Range<u64>> {
        let mut name = normalised(name)?;
        for _ in 0..=LINKS_MAX {
            match self.0.get(&name)? {
                Member::File(range) => return Some(range.clone()),
                Member::Link(target) => name = target.clone(),
            }
        }
        None
    }

    fn add(&mut self, header: Header, overrides: Overrides, data: Range<u64>, at: u64) -> io::Result<()> {
        if self.0.len() >= MEMBERS_MAX {
            return Err(wrong(at, &format!("more than {MEMBERS_MAX} members")));
        }
        let Some(name) = normalised(overrides.path.as_ref().unwrap_or(&header.name)) else { return Ok(()) };
        let target = overrides.link.unwrap_or(header.link);
        let member = match header.kind {
            b'0' | 0 | b'7' => Member::File(data),
            // A hard link names a member, a symbolic one a path beside it.
            b'1' => match normalised(&target) {
                Some(target) => Member::Link(target),
                None => return Ok(()),
            },
            b'2' => {
                let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                match normalised(&format!("{folder}/{target}")) {
                    Some(target) => Member::Link(target),
                    None => return Ok(()),
                }
            }
            _ => return Ok(()),
        };
        self.0.insert(name, member);
        Ok(())
    }
}

struct Header {
    name: String,
    link: String,
    size: u64,
    kind: u8,
}

impl Header {
    /// The header at `at`; none at the end of the archive.
    fn read(file: &File, at: u64, len: u64) -> io::Result<Option<Header>> {
        if at >= len {
            return Ok(None);
        }
        let mut block = [0; BLOCK as usize];
        file.read_exact_at(&mut block, at).map_err(|_| wrong(at, "it is cut off"))?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) })
            .sum();
        if number(&block[148..156]) != Some(sum) {
            return Err(wrong(at, "not a tar header"));
        }
        let size = number(&block[124..136]).ok_or_else(|| wrong(at, "its size is not a number"))?;
        let mut name = terminated(&block[..100]);
        let prefix = terminated(&block[345..500]);
        // Old GNU headers keep times where POSIX has the prefix.
        if &block[257..263] == b"ustar\0" && !prefix.is_empty() {
            name = format!("{prefix}/{name}");
        }
        let kind = block[156];
        // Only files have data; some writers give a link its target's size.
        let size = if matches!(kind, b'1'..=b'6') { 0 } else { size };
        Ok(Some(Header { name, link: terminated(&block[157..257]), size, kind }))
    }

    fn is_extension(&self) -> bool {
        matches!(self.kind, b'L' | b'K' | b'x' | b'g')
    }
}

impl Overrides {
    /// Records of the form `LENGTH NAME=VALUE\n`.
    fn pax(&mut self, mut records: &[u8]) -> Option<()> {
        while !records.is_empty() {
            let blank = records.iter().position(|byte| *byte == b' ')?;
            let len: usize = std::str::from_utf8(&records[..blank]).ok()?.parse().ok()?;
            let record = records.get(blank + 1..len)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            let value = String::from_utf8_lossy(&record[equals + 1..]);
            match &record[..equals] {
                b"path" => self.path = Some(value.into_owned()),
                b"linkpath" => self.link = Some(value.into_owned()),
                b"size" => self.size = Some(value.parse().ok()?),
                _ => {}
            }
            records = records.get(len..)?;
        }
        Some(())
    }
}

fn extension(file: &File, range: Range<u64>, at: u64) -> io::Result<Vec<u8>> {
    let len = range.end - range.start;
    let len = usize::try_from(len).ok().filter(|_| len <= EXTENSION_MAX);
    let mut bytes = vec![0; len.ok_or_else(|| wrong(at, "an extension is too large"))?];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes)
}

/// Octal digits, or base 256 when the first bit is set. An empty field is zero.
fn number(field: &[u8]) -> Option<u64> {
    if let Some((first, rest)) = field.split_first()
        && *first >= 0x80
    {
        let start = u64::from(first & 0x3f);
        return rest
            .iter()
            .try_fold(start, |value, byte| value.checked_mul(256)?.checked_add(u64::from(*byte)));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

fn terminated(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// Without `.`, `..` and doubled slashes; none when it leads out of the archive.
fn normalised(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

fn wrong(at: u64, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not a tar archive: {what} (at byte {at})"))
}

#[cfg(test)]
mod tests;
