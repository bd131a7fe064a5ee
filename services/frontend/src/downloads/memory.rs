//! Verified chunks in memory, bounded by bytes, the least recently used first to go. Pure.
//!
//! A chunk is here from its arrival until newer ones push it out: a read that comes just before its
//! objects are on the disk is answered from here.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use image::Digest;

#[derive(Debug)]
pub(super) struct Memory {
    max_bytes: usize,
    bytes: usize,
    clock: u64,
    chunks: HashMap<Digest, (u64, Bytes)>,
    /// By last use.
    order: BTreeMap<u64, Digest>,
}

impl Memory {
    pub(super) fn new(max_bytes: usize) -> Memory {
        Memory { max_bytes, bytes: 0, clock: 0, chunks: HashMap::new(), order: BTreeMap::new() }
    }

    pub(super) fn get(&mut self, chunk: &Digest) -> Option<Bytes> {
        self.clock += 1;
        let (used, bytes) = self.chunks.get_mut(chunk)?;
        self.order.remove(used);
        *used = self.clock;
        self.order.insert(self.clock, *chunk);
        Some(bytes.clone())
    }

    pub(super) fn insert(&mut self, chunk: Digest, bytes: Bytes) {
        if self.get(&chunk).is_some() || bytes.len() > self.max_bytes {
            return;
        }
        self.bytes += bytes.len();
        self.order.insert(self.clock, chunk);
        self.chunks.insert(chunk, (self.clock, bytes));
        while self.bytes > self.max_bytes
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.bytes -= self.chunks.remove(&oldest).map_or(0, |(_, bytes)| bytes.len());
        }
    }

    /// Gives all of it back: nobody will read it from here again.
    pub(super) fn clear(&mut self) {
        *self = Memory::new(self.max_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_its_bytes_and_keeps_what_is_used() {
        let mut memory = Memory::new(100);
        let names: Vec<Digest> = (0..5u8).map(|name| Digest::of(&[name])).collect();
        for name in &names[..4] {
            memory.insert(*name, Bytes::from(vec![0; 25]));
        }
        assert!(memory.get(&names[0]).is_some());
        memory.insert(names[4], Bytes::from(vec![0; 30]));
        let there: Vec<bool> = names.iter().map(|name| memory.chunks.contains_key(name)).collect();
        assert_eq!(there, [true, false, false, true, true]);
        assert_eq!(memory.bytes, 80);
        assert_eq!(memory.order.len(), memory.chunks.len());
        memory.insert(Digest::of(b"huge"), Bytes::from(vec![0; 101]));
        memory.insert(names[4], Bytes::from(vec![0; 30]));
        assert_eq!(memory.bytes, 80);
        memory.clear();
        assert!(memory.get(&names[4]).is_none());
    }
}
