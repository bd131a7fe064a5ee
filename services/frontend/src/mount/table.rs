//! The kernel's mount table of this process, `/proc/self/mountinfo`, read and taken apart.
//!
//! ```text
//! 36 35 98:0 /subtree /mount/point rw,noatime shared:1 - ext3 /dev/root rw,errors=continue
//! id parent device root point options [tags…] - kind source super-options
//! ```
//!
//! Space, tab, newline, backslash (and, inside of options, comma) are written as three octal digits.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

pub(crate) const PATH: &str = "/proc/self/mountinfo";

/// One mount. Later ones of the same point cover earlier ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// `major:minor`
    pub(crate) device: String,
    pub(crate) point: PathBuf,
    pub(crate) kind: String,
    /// Whether what is mounted in it is seen elsewhere, too.
    pub(crate) shared: bool,
    /// Of the file system: `name` or `name=value`, still escaped.
    options: Vec<Vec<u8>>,
}

impl Entry {
    /// The values of the option `name`, which may be given more than once.
    pub(crate) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
        self.options.iter().filter_map(move |option| {
            let value = option.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(path(value))
        })
    }
}

pub(crate) fn read() -> io::Result<Vec<Entry>> {
    Ok(parse(&fs::read(PATH)?))
}

fn parse(text: &[u8]) -> Vec<Entry> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let point = path(fields.nth(1)?);
    let mut shared = false;
    for tag in fields.by_ref().skip(1).take_while(|field| *field != b"-") {
        shared |= tag.starts_with(b"shared:");
    }
    let kind = String::from_utf8(fields.next()?.to_vec()).ok()?;
    let options = fields.nth(1)?.split(|byte| *byte == b',').map(<[u8]>::to_vec).collect();
    Some(Entry { device, point, kind, shared, options })
}

fn path(escaped: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    while let [first, tail @ ..] = rest {
        let (byte, after) = octal(rest).unwrap_or((*first, tail));
        bytes.push(byte);
        rest = after;
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// `\ooo` at the beginning of `text`, and what follows it.
fn octal(text: &[u8]) -> Option<(u8, &[u8])> {
    let [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', rest @ ..] = text else { return None };
    Some(((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_lines_apart() {
        let text = b"22 1 0:20 / / rw shared:1 - ext4 /dev/vda rw\n\
            90 22 0:51 / /a\\040b\\134c rw,relatime shared:2 master:3 - overlay sluice ro,lowerdir+=/x\\054y,lowerdir+=/z,metacopy=on\n\
            91 22 0:52 / /c rw,relatime master:3 - tmpfs none rw\n\
            92 22 0:53 / /d rw,relatime - tmpfs none rw\n\
            garbage\n";
        let entries = parse(text);
        assert_eq!(entries.len(), 4);
        assert_eq!(entries.iter().map(|entry| entry.shared).collect::<Vec<_>>(), [true, true, false, false]);
        assert_eq!(entries[1].point, PathBuf::from("/a b\\c"));
        assert_eq!((entries[1].kind.as_str(), entries[1].device.as_str()), ("overlay", "0:51"));
        let lowers: Vec<_> = entries[1].values("lowerdir+").collect();
        assert_eq!(lowers, [PathBuf::from("/x,y"), PathBuf::from("/z")]);
    }
}
