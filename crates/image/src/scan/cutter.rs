//! Cuts the contents of a layer's files into chunks.
//!
//! ```text
//! up to INLINE_MAX           kept in the entry
//! below SMALL_OBJECT_MAX     packed: whole objects in tar order, a chunk closes at PACK_TARGET
//! larger                     FastCDC: pieces of this object alone, cut by content; its holes are passed over
//! ```
//!
//! The pack stays open across large objects, so that small neighbours stay together. Chunks are
//! numbered as they are cut. An object that the layer had before leaves no second trace.
//! Buffers: one pack (below `PACK_TARGET + SMALL_OBJECT_MAX`), one window of `WINDOW` bytes.

use std::collections::HashSet;
use std::mem;

use fastcdc::v2020::FastCDC;

use super::budget::tables_bytes;
use super::{CutChunk, ScanError};
use crate::Digest;
use crate::limits::{CDC_AVG, CDC_MAX, CDC_MIN, INLINE_MAX, PACK_TARGET, SMALL_OBJECT_MAX};
use crate::record::{ChunkRef, Content, ObjectPlace};
use crate::sparse::{BLOCK, Extent, Sparse, SparseHasher};

/// What a large object is cut from, in bytes: a cut looks at `CDC_MAX` of it, and the rest saves
/// moving what is left after every cut.
const WINDOW: usize = 4 * CDC_MAX as usize;
static ZEROS: [u8; SMALL_OBJECT_MAX as usize] = [0; SMALL_OBJECT_MAX as usize];

#[derive(Debug, Default)]
pub(super) struct Cutter {
    chunks: Chunks,
    objects: Vec<ObjectPlace>,
    known: HashSet<Digest>,
    pack: Vec<u8>,
    /// Of `objects`, those in the open pack: they learn their chunk's number when it closes.
    in_pack: Vec<usize>,
    window: Vec<u8>,
    open: Open,
    sparse: Vec<Sparse>,
    /// Of all of `sparse`.
    extents: usize,
    /// Zeros of holes that became data, since their blocks hold other data too.
    filled: u64,
}

/// The object being written.
#[derive(Debug, Default)]
enum Open {
    #[default]
    None,
    Inline(Vec<u8>),
    /// Stands in the pack from here on.
    Small {
        start: usize,
    },
    Large(Box<Large>),
}

#[derive(Debug)]
struct Large {
    len: u64,
    first_chunk: usize,
    /// Where in the window the next chunk begins.
    start: usize,
    /// Over the chunks cut so far.
    hasher: blake3::Hasher,
    holes: Option<Holes>,
}

/// What is known of the holes of an object that has some.
#[derive(Debug)]
struct Holes {
    /// Over the content so far.
    hasher: SparseHasher,
    extents: Vec<Extent>,
    /// Zeros behind that: how many of them are whole blocks shows once the hole ends.
    pending: u64,
}

/// Everything that a layer's contents became.
#[derive(Debug, Default)]
pub(super) struct Cut {
    pub(super) chunks: Vec<ChunkRef>,
    pub(super) objects: Vec<ObjectPlace>,
    pub(super) sparse: Vec<Sparse>,
}

#[derive(Debug, Default)]
struct Chunks {
    table: Vec<ChunkRef>,
    emitted: HashSet<Digest>,
}

type Emit<'a, E> = &'a mut dyn FnMut(CutChunk) -> Result<(), E>;

impl Cutter {
    /// A file of `len` bytes comes, with holes if it is `sparse`.
    pub(super) fn begin(&mut self, len: u64, sparse: bool) {
        self.open = if len <= INLINE_MAX as u64 {
            Open::Inline(Vec::with_capacity(INLINE_MAX.min(len as usize)))
        } else if len < SMALL_OBJECT_MAX {
            Open::Small { start: self.pack.len() }
        } else {
            let (first_chunk, hasher) = (self.chunks.table.len(), blake3::Hasher::new());
            let holes =
                sparse.then(|| Holes { hasher: SparseHasher::new(len), extents: Vec::new(), pending: 0 });
            Open::Large(Box::new(Large { len, first_chunk, start: 0, hasher, holes }))
        };
    }

    pub(super) fn write<E: From<ScanError>>(&mut self, data: &[u8], emit: Emit<E>) -> Result<(), E> {
        match &mut self.open {
            Open::None => {}
            Open::Inline(bytes) => bytes.extend_from_slice(data),
            Open::Small { .. } => self.pack.extend_from_slice(data),
            Open::Large(_) => return self.write_large(data, emit),
        }
        Ok(())
    }

    /// A hole of `len` bytes. A file that is not large takes it as zeros.
    pub(super) fn write_hole<E: From<ScanError>>(&mut self, len: u64, emit: Emit<E>) -> Result<(), E> {
        if let Open::Large(large) = &mut self.open
            && let Some(holes) = &mut large.holes
        {
            holes.pending = holes.pending.saturating_add(len);
            return Ok(());
        }
        // What was begun with fewer bytes than a large object gets no more.
        self.write(&ZEROS[..len.min(ZEROS.len() as u64) as usize], emit)
    }

    /// What the tables so far take in memory.
    pub(super) fn tables_bytes(&self) -> u64 {
        tables_bytes(self.chunks.table.len(), self.objects.len(), self.extents())
    }

    /// Of all objects with holes, the one that is being written included.
    pub(super) fn extents(&self) -> usize {
        let open = match &self.open {
            Open::Large(large) => large.holes.as_ref().map_or(0, |holes| holes.extents.len()),
            _ => 0,
        };
        self.extents + open
    }

    /// Zeros of holes that became data.
    pub(super) fn filled(&self) -> u64 {
        self.filled
    }

    /// The file is whole.
    pub(super) fn end<E: From<ScanError>>(&mut self, emit: Emit<E>) -> Result<Content, E> {
        match mem::take(&mut self.open) {
            Open::None => Ok(Content::Inline(Vec::new())),
            Open::Inline(bytes) => Ok(Content::Inline(bytes)),
            Open::Small { start } => self.end_small(start, emit),
            Open::Large(large) => self.end_large(large, emit),
        }
    }

    /// All chunks and objects of the layer.
    pub(super) fn finish<E: From<ScanError>>(mut self, emit: Emit<E>) -> Result<Cut, E> {
        self.close_pack(emit)?;
        self.sparse.sort_unstable_by_key(|sparse| sparse.object);
        Ok(Cut { chunks: self.chunks.table, objects: self.objects, sparse: self.sparse })
    }

    fn end_small<E: From<ScanError>>(&mut self, start: usize, emit: Emit<E>) -> Result<Content, E> {
        let object = &self.pack[start..];
        let (digest, len) = (Digest::of(object), object.len() as u64);
        if self.known.insert(digest) {
            self.in_pack.push(self.objects.len());
            // The chunk's number is filled in when the pack closes.
            let place = ObjectPlace { digest, len, first_chunk: 0, chunk_count: 1, offset: start as u32 };
            self.objects.push(place);
            if self.pack.len() >= PACK_TARGET {
                self.close_pack(emit)?;
            }
        } else {
            self.pack.truncate(start);
        }
        Ok(Content::Object { digest, len })
    }

    fn close_pack<E: From<ScanError>>(&mut self, emit: Emit<E>) -> Result<(), E> {
        if self.pack.is_empty() {
            return Ok(());
        }
        let number = self.chunks.table.len() as u32;
        for object in self.in_pack.drain(..) {
            self.objects[object].first_chunk = number;
        }
        self.chunks.add(Digest::of(&self.pack), &self.pack, emit)?;
        self.pack.clear();
        Ok(())
    }

    fn write_large<E: From<ScanError>>(&mut self, data: &[u8], emit: Emit<E>) -> Result<(), E> {
        let Open::Large(mut large) = mem::take(&mut self.open) else { return Ok(()) };
        self.end_hole(&mut large, &mut *emit)?;
        self.cut(&mut large, data, emit)?;
        self.open = Open::Large(large);
        Ok(())
    }

    /// Passes over the whole blocks of a hole that ended; what is left of it at its ends is data.
    fn end_hole<E: From<ScanError>>(&mut self, large: &mut Large, emit: Emit<E>) -> Result<(), E> {
        let Some(holes) = large.holes.as_mut().filter(|holes| holes.pending > 0) else { return Ok(()) };
        let begin = holes.hasher.position();
        let end = begin + mem::take(&mut holes.pending);
        let first = begin.next_multiple_of(BLOCK as u64).min(end);
        let last = if end == large.len { end } else { end - end % BLOCK as u64 }.max(first);
        self.filled += (first - begin) + (end - last);
        self.cut(large, &ZEROS[..(first - begin) as usize], &mut *emit)?;
        if let Some(holes) = &mut large.holes {
            holes.hasher.hole(last - first);
        }
        self.cut(large, &ZEROS[..(end - last) as usize], emit)
    }

    fn cut<E: From<ScanError>>(
        &mut self,
        large: &mut Large,
        mut data: &[u8],
        emit: Emit<E>,
    ) -> Result<(), E> {
        if let Some(holes) = &mut large.holes {
            holes.data(data);
        }
        while !data.is_empty() {
            if self.window.len() == WINDOW {
                self.window.drain(..mem::take(&mut large.start));
            }
            let (piece, rest) = data.split_at(data.len().min(WINDOW - self.window.len()));
            self.window.extend_from_slice(piece);
            data = rest;
            // A cut is final only where the longest chunk would end too.
            while self.window.len() - large.start >= CDC_MAX as usize {
                let piece = first_piece(&self.window[large.start..]);
                large.start += piece.len();
                if large.holes.is_none() {
                    large.hasher.update(piece);
                }
                self.chunks.add(Digest::of(piece), piece, &mut *emit)?;
            }
        }
        Ok(())
    }

    fn end_large<E: From<ScanError>>(&mut self, mut large: Box<Large>, emit: Emit<E>) -> Result<Content, E> {
        self.end_hole(&mut large, &mut *emit)?;
        let mut rest = &self.window[large.start..];
        let mut digest = None;
        while !rest.is_empty() {
            let piece = first_piece(rest);
            rest = &rest[piece.len()..];
            let name = Digest::of(piece);
            // An object of one chunk has its name.
            if piece.len() as u64 == large.len {
                digest = Some(name);
            } else if large.holes.is_none() {
                large.hasher.update(piece);
            }
            self.chunks.add(name, piece, &mut *emit)?;
        }
        self.window.clear();
        let Large { len, first_chunk, hasher, holes, .. } = *large;
        let (digest, extents) = match holes {
            Some(Holes { hasher, extents, .. }) => (hasher.finish(), Some(extents)),
            None => (digest.unwrap_or_else(|| hasher.finalize().into()), None),
        };
        if self.known.insert(digest) {
            let chunk_count = (self.chunks.table.len() - first_chunk) as u32;
            self.objects.push(ObjectPlace {
                digest,
                len,
                first_chunk: first_chunk as u32,
                chunk_count,
                offset: 0,
            });
            self.extents += extents.as_ref().map_or(0, Vec::len);
            self.sparse.extend(extents.map(|extents| Sparse { object: digest, extents }));
        } else {
            // The same chunks stand earlier.
            self.chunks.table.truncate(first_chunk);
        }
        Ok(Content::Object { digest, len })
    }
}

impl Holes {
    fn data(&mut self, data: &[u8]) {
        let (offset, len) = (self.hasher.position(), data.len() as u64);
        match self.extents.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.end() == offset => last.len += len,
            _ => self.extents.push(Extent { offset, len }),
        }
        self.hasher.data(data);
    }
}

impl Chunks {
    /// Numbers a chunk. A digest that was there before is repeated in the table, so that an
    /// object's chunks stand in a row, but given out once.
    fn add<E>(&mut self, digest: Digest, plain: &[u8], emit: Emit<E>) -> Result<(), E> {
        self.table.push(ChunkRef { digest, plain_len: plain.len() as u32, stored_len: 0 });
        match self.emitted.insert(digest) {
            true => emit(CutChunk { digest, plain: plain.to_vec() }),
            false => Ok(()),
        }
    }
}

/// The first chunk of `window`, which holds `CDC_MAX` bytes or ends with its object.
fn first_piece(window: &[u8]) -> &[u8] {
    let window = &window[..window.len().min(CDC_MAX as usize)];
    let cutter = FastCDC::new(window, CDC_MIN as usize, CDC_AVG as usize, CDC_MAX as usize);
    let (_, end) = cutter.cut(0, window.len());
    &window[..end]
}
