//! Layers written member by member, so that a test can say things that no tar program would.
//!
//! Format: ustar, POSIX.1-1988; sizes, owners and times as octal numbers. Extensions as POSIX.1-2001 has them, and GNU's
//! sparse files of form 0.1.

/// A plain tar archive under construction.
#[derive(Clone, Debug, Default)]
pub struct Tarball {
    bytes: Vec<u8>,
}

impl Tarball {
    pub fn new() -> Tarball {
        Tarball::default()
    }

    pub fn file(self, name: &str, content: &[u8]) -> Tarball {
        self.member(b'0', name, "", 0o644, content)
    }

    pub fn executable(self, name: &str, content: &[u8]) -> Tarball {
        self.member(b'0', name, "", 0o755, content)
    }

    pub fn directory(self, name: &str) -> Tarball {
        self.member(b'5', name, "", 0o755, b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Tarball {
        self.member(b'2', name, target, 0o777, b"")
    }

    pub fn hard_link(self, name: &str, target: &str) -> Tarball {
        self.member(b'1', name, target, 0o644, b"")
    }

    /// A PAX extension: of kind `x` for the next member, `g` for all that follow.
    pub fn pax(self, kind: u8, records: &[(&str, &[u8])]) -> Tarball {
        let content: Vec<u8> = records.iter().flat_map(pax_record).collect();
        self.member(kind, "PaxHeaders/x", "", 0o644, &content)
    }

    /// A file of `size` bytes with holes; `data` are the bytes of all extents `(offset, length)`, in a row.
    pub fn sparse(self, name: &str, size: u64, extents: &[(u64, u64)], data: &[u8]) -> Tarball {
        let map: Vec<_> = extents.iter().map(|(offset, len)| format!("{offset},{len}")).collect();
        let (size, map) = (size.to_string(), map.join(","));
        self.pax(b'x', &[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())])
            .file(name, data)
    }

    /// One member of any type; names of up to 100 bytes.
    pub fn member(mut self, type_flag: u8, name: &str, link: &str, mode: u32, content: &[u8]) -> Tarball {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        let mut field =
            |at: usize, text: String| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        field(100, format!("{mode:07o}\0"));
        field(108, format!("{:07o}\0", 0));
        field(116, format!("{:07o}\0", 0));
        field(124, format!("{:011o}\0", content.len()));
        field(136, format!("{:011o}\0", 1_000_000_000));
        field(148, " ".repeat(8));
        field(257, "ustar\x0000".to_owned());
        header[156] = type_flag;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// The archive with its end marker.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn pax_record((key, value): &(&str, &[u8])) -> Vec<u8> {
    let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let mut len = rest.len();
    while len != rest.len() + len.to_string().len() {
        len = rest.len() + len.to_string().len();
    }
    [len.to_string().as_bytes(), &rest].concat()
}
