use std::collections::{HashMap, HashSet};

use super::*;
use crate::limits::{CDC_MAX, CHUNK_PLAIN_MAX, INLINE_MAX, PACK_TARGET, SMALL_OBJECT_MAX};
use crate::record::Content;
use crate::sparse::{Extent, Sparse, SparseHasher};
use crate::tar::tests::archive::{Archive, Block};

mod contents;
mod members;

/// What one scan gave.
#[derive(Debug, PartialEq)]
struct Scan {
    record: LayerRecord,
    chunks: Vec<CutChunk>,
}

fn scan_with(limits: ScanLimits, tar: &[u8], piece: usize) -> Result<Scan, ScanError> {
    let mut chunks = Vec::new();
    let mut emit = |chunk| {
        chunks.push(chunk);
        Ok::<_, ScanError>(())
    };
    let mut scanner = LayerScanner::new(limits);
    for piece in tar.chunks(piece) {
        scanner.push(piece, &mut emit)?;
    }
    let record = scanner.finish(&mut emit)?;
    Ok(Scan { record, chunks })
}

fn scan(tar: &[u8]) -> Result<Scan, ScanError> {
    scan_with(ScanLimits::default(), tar, tar.len().max(1))
}

impl Scan {
    /// Checks that record and chunks belong together; gives the content of every object.
    fn objects(&self) -> HashMap<Digest, Vec<u8>> {
        let plain: HashMap<Digest, &[u8]> =
            self.chunks.iter().map(|chunk| (chunk.digest, &chunk.plain[..])).collect();
        assert_eq!(plain.len(), self.chunks.len(), "a chunk was given out twice");
        let named: HashSet<Digest> = self.record.chunks.iter().map(|chunk| chunk.digest).collect();
        assert_eq!(named, plain.keys().copied().collect(), "chunks given out and chunks named");
        for chunk in &self.record.chunks {
            assert_eq!(plain[&chunk.digest].len(), chunk.plain_len as usize);
            assert_eq!(Digest::of(plain[&chunk.digest]), chunk.digest);
        }
        let object = |place: &crate::record::ObjectPlace| {
            let chunks = &self.record.chunks[place.first_chunk as usize..][..place.chunk_count as usize];
            let joined = chunks.iter().map(|chunk| plain[&chunk.digest]).collect::<Vec<_>>().concat();
            let Some(sparse) = Sparse::find(&self.record.sparse, &place.digest) else {
                let content = joined[place.offset as usize..][..place.len as usize].to_vec();
                assert_eq!(Digest::of(&content), place.digest);
                return (place.digest, content);
            };
            let (mut content, mut data) = (vec![0; place.len as usize], &joined[..]);
            for extent in &sparse.extents {
                let (piece, rest) = data.split_at(extent.len as usize);
                content[extent.offset as usize..][..piece.len()].copy_from_slice(piece);
                data = rest;
            }
            assert!(data.is_empty());
            let mut hasher = SparseHasher::new(place.len);
            hasher.data(&content);
            assert_eq!(hasher.finish(), place.digest);
            (place.digest, content)
        };
        let objects: HashMap<_, _> = self.record.objects.iter().map(object).collect();
        assert_eq!(objects.len(), self.record.objects.len(), "an object stands twice");
        self.check_that_it_decodes();
        objects
    }

    fn check_that_it_decodes(&self) {
        let mut record = self.record.clone();
        let stored = self.chunks.iter().map(|chunk| (chunk.digest, chunk.plain.len() as u32)).collect();
        record.set_stored_lens(&stored).unwrap();
        assert_eq!(LayerRecord::decode(&record.encode().unwrap()).unwrap(), record);
    }

    /// Path and content of every regular file.
    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let objects = self.objects();
        let file = |entry: &Entry| match &entry.kind {
            EntryKind::File(Content::Inline(bytes)) => Some((lossy(&entry.path), bytes.clone())),
            EntryKind::File(Content::Object { digest, .. }) => {
                Some((lossy(&entry.path), objects[digest].clone()))
            }
            _ => None,
        };
        self.record.entries.iter().filter_map(file).collect()
    }
}

/// Bytes that neither repeat nor compress, the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
