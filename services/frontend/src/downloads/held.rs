//! Chunks that were asked for ahead of any reader, before one reads them. Pure.
//!
//! Once its objects are on the disk the kernel reads them without us, and the profile would not learn whether the
//! start needed them. So they are held in memory until a read comes, until there are too many of them, or
//! until the start is over.

use std::collections::VecDeque;

use bytes::Bytes;
use image::Digest;

#[derive(Debug)]
pub(super) struct Held {
    /// Plain bytes held; beyond, the oldest go first.
    max_bytes: usize,
    chunks: VecDeque<(Digest, Bytes)>,
    bytes: usize,
}

impl Held {
    pub(super) fn new(max_bytes: usize) -> Held {
        Held { max_bytes, chunks: VecDeque::new(), bytes: 0 }
    }

    /// Holds one more; gives back those that it pushes out.
    pub(super) fn push(&mut self, chunk: Digest, bytes: Bytes) -> Vec<(Digest, Bytes)> {
        self.bytes += bytes.len();
        self.chunks.push_back((chunk, bytes));
        let mut out = Vec::new();
        while self.bytes > self.max_bytes {
            out.extend(self.pop());
        }
        out
    }

    /// A read needs it now.
    pub(super) fn take(&mut self, chunk: &Digest) -> Option<Bytes> {
        let index = self.chunks.iter().position(|(held, _)| held == chunk)?;
        let (_, bytes) = self.chunks.remove(index)?;
        self.bytes -= bytes.len();
        Some(bytes)
    }

    pub(super) fn contains(&self, chunk: &Digest) -> bool {
        self.chunks.iter().any(|(held, _)| held == chunk)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The oldest.
    pub(super) fn pop(&mut self) -> Option<(Digest, Bytes)> {
        let (chunk, bytes) = self.chunks.pop_front()?;
        self.bytes -= bytes.len();
        Some((chunk, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_until_taken_or_pushed_out() {
        let chunk = |number: u8| (Digest::of(&[number]), Bytes::from(vec![number; 50]));
        let mut held = Held::new(100);
        for number in [1, 2] {
            let (digest, bytes) = chunk(number);
            assert!(held.push(digest, bytes).is_empty());
        }
        let (third, bytes) = chunk(3);
        assert_eq!(held.push(third, bytes), [chunk(1)]);
        assert_eq!(held.take(&chunk(2).0), Some(chunk(2).1));
        assert_eq!(held.take(&chunk(2).0), None);
        assert!(held.contains(&third));
        assert_eq!(held.pop(), Some(chunk(3)));
        assert!(held.is_empty());
    }
}
