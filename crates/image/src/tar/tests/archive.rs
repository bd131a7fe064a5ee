//! Archives written byte by byte, so that tests can say exactly what stands in them.

use crate::tar::BLOCK;

/// An archive that grows by whole members.
#[derive(Clone, Default)]
pub(crate) struct Archive(Vec<u8>);

/// One header block; fields have sane values until set.
#[derive(Clone)]
pub(crate) struct Block(pub(crate) [u8; BLOCK]);

impl Block {
    pub(crate) fn ustar(name: &str, flag: u8) -> Block {
        Block::v7(name, flag).field(257, b"ustar\x0000")
    }

    pub(crate) fn gnu(name: &str, flag: u8) -> Block {
        Block::v7(name, flag).field(257, b"ustar  \0")
    }

    pub(crate) fn v7(name: &str, flag: u8) -> Block {
        let block = Block([0; BLOCK]).field(0, name.as_bytes());
        block.field(100, b"0000644\0").field(108, b"0001750\0").field(116, b"0000144\0").field(156, &[flag])
    }

    pub(crate) fn field(mut self, at: usize, bytes: &[u8]) -> Block {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn link(self, target: &str) -> Block {
        self.field(157, target.as_bytes())
    }

    pub(crate) fn size(self, size: u64) -> Block {
        self.field(124, format!("{size:011o}\0").as_bytes())
    }

    pub(crate) fn checked(self) -> [u8; BLOCK] {
        let blank = self.field(148, b"        ");
        let sum: u32 = blank.0.iter().map(|&byte| u32::from(byte)).sum();
        blank.field(148, format!("{sum:06o}\0 ").as_bytes()).0
    }

    /// With the sum that writers made which took bytes for signed.
    pub(crate) fn checked_signed(self) -> [u8; BLOCK] {
        let blank = self.field(148, b"        ");
        let sum: i32 = blank.0.iter().map(|&byte| i32::from(byte.cast_signed())).sum();
        blank.field(148, format!("{sum:06o}\0 ").as_bytes()).0
    }
}

impl Archive {
    /// A header as it is, and its content in whole blocks.
    pub(crate) fn raw(mut self, header: &[u8], content: &[u8]) -> Archive {
        self.0.extend_from_slice(header);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// A header with the content's size in it.
    pub(crate) fn member(self, header: Block, content: &[u8]) -> Archive {
        self.raw(&header.size(content.len() as u64).checked(), content)
    }

    pub(crate) fn file(self, name: &str, content: &[u8]) -> Archive {
        self.member(Block::ustar(name, b'0'), content)
    }

    /// A PAX extension of the kind `flag`.
    pub(crate) fn pax(self, flag: u8, records: &[(&str, &[u8])]) -> Archive {
        self.member(
            Block::ustar("PaxHeaders/x", flag),
            &records.iter().flat_map(pax_record).collect::<Vec<_>>(),
        )
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }

    pub(crate) fn without_end(self) -> Vec<u8> {
        self.0
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
