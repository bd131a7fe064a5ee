//! Objects with holes: where their data stands, and how they are named.
//!
//! BLAKE3 numbers every KiB that it hashes, so that zeros cost as much as other bytes: a terabyte of them some
//! minutes. An object with holes is therefore named by what it holds and where, in two digests and under a name of their own:
//!
//! ```text
//! name  = BLAKE3, derive_key CONTEXT ( length | first block, count of every run | BLAKE3(blocks of all runs) )
//! block = 4 KiB, at a multiple of 4 KiB; a run is blocks in a row that are not all zeros
//! ```
//!
//! The name follows from the content alone, never from where a tar or a file system happens to keep zeros as data: whoever
//! has the file can check it, and passes over what the file system says is a hole.

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::encoding;
use crate::limits::SPARSE_EXTENTS_MAX;

/// Holes are whole blocks: what every file system in use can leave out.
pub const BLOCK: usize = 4096;
const BLOCK_LEN: u64 = BLOCK as u64;
const CONTEXT: &str = "sluice 2026-11 object with holes";
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// A part of an object that is not a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    pub offset: u64,
    /// Never 0.
    pub len: u64,
}

/// Where the data of an object with holes stands. Its chunks hold the extents' bytes in a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sparse {
    pub object: Digest,
    /// In order, apart from each other; they begin at a multiple of [`BLOCK`], and end at one or with the object.
    #[serde(deserialize_with = "encoding::at_most::<_, _, SPARSE_EXTENTS_MAX>")]
    pub extents: Vec<Extent>,
}

impl Extent {
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

impl Sparse {
    /// Bytes that are no hole.
    pub fn data_len(&self) -> u64 {
        self.extents.iter().map(|extent| extent.len).fold(0, u64::saturating_add)
    }

    /// The one of an object, in a list that is sorted by object.
    pub fn find<'a>(list: &'a [Sparse], object: &Digest) -> Option<&'a Sparse> {
        let at = list.binary_search_by(|sparse| sparse.object.cmp(object)).ok()?;
        list.get(at)
    }

    pub(crate) fn check(&self, len: u64) -> Result<(), String> {
        let mut end = None;
        for extent in &self.extents {
            let apart = end.is_none_or(|end| extent.offset > end);
            let whole = extent.end().is_multiple_of(BLOCK_LEN) || extent.end() == len;
            if extent.len == 0
                || !apart
                || !extent.offset.is_multiple_of(BLOCK_LEN)
                || !whole
                || extent.end() > len
            {
                return Err(format!("object {}: extents that are no extents of it", self.object));
            }
            end = Some(extent.end());
        }
        Ok(())
    }
}

/// Names an object with holes, from its content in order.
#[derive(Debug)]
pub struct SparseHasher {
    /// Of where data stands.
    shape: blake3::Hasher,
    data: blake3::Hasher,
    position: u64,
    /// The block that `position` stands in, when it came in parts.
    part: Vec<u8>,
    /// The first block of the run that is open.
    run: Option<u64>,
}

impl SparseHasher {
    /// For an object of `len` bytes.
    pub fn new(len: u64) -> SparseHasher {
        let mut shape = blake3::Hasher::new_derive_key(CONTEXT);
        shape.update(&len.to_le_bytes());
        SparseHasher { shape, data: blake3::Hasher::new(), position: 0, part: Vec::new(), run: None }
    }

    /// The next bytes, zeros or not.
    pub fn data(&mut self, mut bytes: &[u8]) {
        if !self.part.is_empty() {
            let (piece, rest) = bytes.split_at(bytes.len().min(BLOCK - self.part.len()));
            self.part.extend_from_slice(piece);
            self.position += piece.len() as u64;
            bytes = rest;
            if self.part.len() < BLOCK {
                return;
            }
            let block = std::mem::take(&mut self.part);
            self.blocks(self.position - BLOCK_LEN, &block);
            self.part = block;
            self.part.clear();
        }
        let (whole, rest) = bytes.split_at(bytes.len() - bytes.len() % BLOCK);
        self.blocks(self.position, whole);
        self.position += bytes.len() as u64;
        self.part.extend_from_slice(rest);
    }

    /// The next `len` bytes are zeros: costs the same however many there are.
    pub fn hole(&mut self, mut len: u64) {
        if !self.part.is_empty() {
            let rest = len.min(BLOCK_LEN - self.part.len() as u64);
            self.data(&ZEROS[..rest as usize]);
            len -= rest;
        }
        let whole = len - len % BLOCK_LEN;
        if whole > 0 {
            self.end_run(self.position / BLOCK_LEN);
            self.position += whole;
        }
        self.data(&ZEROS[..(len - whole) as usize]);
    }

    /// How many bytes were told so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn finish(mut self) -> Digest {
        let last = std::mem::take(&mut self.part);
        let first = self.position - last.len() as u64;
        self.blocks(first, &last);
        self.end_run(self.position.div_ceil(BLOCK_LEN));
        self.shape.update(self.data.finalize().as_bytes());
        self.shape.finalize().into()
    }

    /// Blocks in a row of which the first begins at `offset`; only the last of the object may be shorter.
    fn blocks(&mut self, offset: u64, bytes: &[u8]) {
        // Data goes to the hasher in pieces as long as possible: that is several times as fast.
        let mut begun = 0;
        for (at, block) in bytes.chunks(BLOCK).enumerate() {
            let (at, number) = (at * BLOCK, offset / BLOCK_LEN + at as u64);
            if *block == ZEROS[..block.len()] {
                self.data.update(&bytes[begun..at]);
                begun = at + block.len();
                self.end_run(number);
            } else {
                self.run.get_or_insert(number);
            }
        }
        self.data.update(&bytes[begun..]);
    }

    fn end_run(&mut self, end: u64) {
        if let Some(first) = self.run.take() {
            self.shape.update(&first.to_le_bytes()).update(&(end - first).to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The name, as its definition reads.
    fn plainly(content: &[u8]) -> Digest {
        let mut shape = content.len().to_le_bytes().to_vec();
        let mut data = Vec::new();
        let blocks: Vec<&[u8]> = content.chunks(BLOCK).collect();
        let mut at = 0;
        for run in blocks.chunk_by(|one, other| is_zero(one) == is_zero(other)) {
            if !is_zero(run[0]) {
                shape.extend(u64::to_le_bytes(at));
                shape.extend((run.len() as u64).to_le_bytes());
                data.extend(run.concat());
            }
            at += run.len() as u64;
        }
        shape.extend(blake3::hash(&data).as_bytes());
        Digest::from_bytes(blake3::derive_key(CONTEXT, &shape))
    }

    fn is_zero(block: &[u8]) -> bool {
        block.iter().all(|byte| *byte == 0)
    }

    proptest! {
        /// However the content comes, and whichever of its zeros come as holes.
        #[test]
        fn the_name_follows_from_the_content_alone(
            parts in prop::collection::vec((any::<bool>(), any::<bool>(), 0..3 * BLOCK), 0..12),
            cut in 1..2 * BLOCK,
        ) {
            let len = parts.iter().map(|(_, _, len)| *len as u64).sum();
            let mut hasher = SparseHasher::new(len);
            let mut content = Vec::new();
            for (zero, as_hole, len) in parts {
                let part = vec![u8::from(!zero); len];
                content.extend(&part);
                match zero && as_hole {
                    true => hasher.hole(len as u64),
                    false => part.chunks(cut).for_each(|part| hasher.data(part)),
                }
            }
            prop_assert_eq!(hasher.position(), len);
            prop_assert_eq!(hasher.finish(), plainly(&content));
        }
    }

    #[test]
    fn other_places_other_lengths_and_other_forms_have_other_names() {
        let name = |len, parts: &[(u64, &[u8])]| {
            let mut hasher = SparseHasher::new(len);
            for (hole, data) in parts {
                hasher.hole(*hole);
                hasher.data(data);
            }
            hasher.hole(len - hasher.position());
            hasher.finish()
        };
        let block = [1; BLOCK];
        let names = [
            name(1 << 40, &[]),
            name((1 << 40) + 1, &[]),
            name(1 << 40, &[(0, &block)]),
            name(1 << 40, &[(1 << 39, &block)]),
            name(1 << 40, &[(0, &block), (BLOCK_LEN, &block)]),
            name(1 << 40, &[(0, &block), (2 * BLOCK_LEN, &block)]),
            name(1 << 40, &[(0, &[1; 2 * BLOCK])]),
            Digest::of(&block),
            name(BLOCK_LEN, &[(0, &block)]),
        ];
        for (at, one) in names.iter().enumerate() {
            assert!(!names[..at].contains(one), "{at}");
        }
    }
}
