//! Layers as a test states them: entries with their contents at hand, cut into chunks in the plainest way.

use std::collections::BTreeMap;
use std::fmt;

use image::Digest;
use image::limits::INLINE_MAX;
use image::record::{ChunkRef, Content, Entry, EntryKind, LayerRecord, Meta, ObjectPlace};

/// Objects are cut into chunks of this many bytes.
const CHUNK_LEN: usize = 1_000_000;

#[derive(Clone, Default)]
pub(crate) struct Stack {
    pub(crate) layers: Vec<LayerRecord>,
    pub(crate) objects: BTreeMap<Digest, Vec<u8>>,
    pub(crate) chunks: BTreeMap<Digest, Vec<u8>>,
}

/// A file that is small enough to stand in the record itself, or an object; see [`Stack::add`].
pub(crate) fn file(bytes: &[u8]) -> EntryKind {
    EntryKind::File(Content::Inline(bytes.to_vec()))
}

impl Stack {
    /// Begins a layer on top of the others: nothing can be added before.
    pub(crate) fn layer(&mut self) {
        self.layers.push(LayerRecord::default());
    }

    pub(crate) fn add_file(&mut self, path: &str, bytes: &[u8]) {
        self.add(path, file(bytes), |_| {});
    }

    pub(crate) fn add(&mut self, path: &str, kind: EntryKind, change: impl FnOnce(&mut Meta)) {
        let mut meta = Meta { mode: 0o644, ..Meta::default() };
        change(&mut meta);
        self.push(Entry { path: path.as_bytes().to_vec(), kind, meta });
    }

    /// Adds an entry to the top layer. Content that is too long to stand inline becomes an object.
    pub(crate) fn push(&mut self, mut entry: Entry) {
        if let EntryKind::File(Content::Inline(bytes)) = &mut entry.kind
            && bytes.len() > INLINE_MAX
        {
            let bytes = std::mem::take(bytes);
            entry.kind = EntryKind::File(self.object(bytes));
        }
        self.top().entries.push(entry);
    }

    pub(crate) fn pop(&mut self) {
        self.top().entries.pop();
    }

    fn object(&mut self, bytes: Vec<u8>) -> Content {
        let (digest, len) = (Digest::of(&bytes), bytes.len() as u64);
        if self.top().objects.iter().all(|place| place.digest != digest) {
            let first_chunk = self.top().chunks.len() as u32;
            for plain in bytes.chunks(CHUNK_LEN) {
                let digest = Digest::of(plain);
                self.top().chunks.push(ChunkRef { digest, plain_len: plain.len() as u32, stored_len: 1 });
                self.chunks.insert(digest, plain.to_vec());
            }
            let chunk_count = self.top().chunks.len() as u32 - first_chunk;
            self.top().objects.push(ObjectPlace { digest, len, first_chunk, chunk_count, offset: 0 });
            self.objects.insert(digest, bytes);
        }
        Content::Object { digest, len }
    }

    fn top(&mut self) -> &mut LayerRecord {
        let top = self.layers.len() - 1;
        &mut self.layers[top]
    }
}

/// One line for each entry: a failing stack must be readable.
impl fmt::Debug for Stack {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, layer) in self.layers.iter().enumerate() {
            for Entry { path, kind, meta } in &layer.entries {
                let kind = match kind {
                    EntryKind::Symlink(target) => format!("-> {}", target.escape_ascii()),
                    EntryKind::Hardlink(target) => format!("= {}", target.escape_ascii()),
                    EntryKind::File(content) => format!("file of {} bytes", content.len()),
                    kind => format!("{kind:?}"),
                };
                let xattrs: Vec<_> =
                    meta.xattrs.iter().map(|xattr| xattr.name.escape_ascii().to_string()).collect();
                write!(formatter, "\nlayer {number}: {} {kind}, {:o}", path.escape_ascii(), meta.mode)?;
                write!(formatter, " {}:{} at {:?} {xattrs:?}", meta.uid, meta.gid, meta.mtime)?;
            }
        }
        Ok(())
    }
}
