//! Large objects that are still arriving: a sparse file beside a bitmap of its chunks.
//!
//! A chunk is written first and marked second, so that a mark is never ahead of its bytes: a crash
//! of the process loses at most a mark. When all are there the whole file is hashed once more and
//! renamed into `objects/`. After a power loss marks are worth nothing until checked: the bitmap is
//! renamed to `.unverified` by `recovery`, and [`Objects::load_partial`] checks chunk by chunk.
//!
//! Of an object with holes a chunk may stand in several places, its runs; what no chunk covers is a hole of the file, too.
//!
//! Any number may write and read; one at a time lets an object in.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};

use image::record::ObjectPlace;
use image::{Digest, Extent, Map};

use super::{BLOCK_BYTES, Bits, Objects, PutError, hashing, put_error, read_at};

const HAVE: u8 = b'1';

impl Objects {
    /// Whether chunk `index` of a partial object is here.
    pub(crate) fn has_piece(&self, object: &Digest, index: usize) -> bool {
        self.partials().get(object).is_some_and(|have| have.get(index))
    }

    /// Up to `len` bytes of a partial object at `offset`. The caller knows that their chunk is here.
    pub(crate) fn read_partial(
        &self,
        object: &Digest,
        offset: u64,
        len: usize,
    ) -> io::Result<Option<Vec<u8>>> {
        match File::open(self.partial_path(object)) {
            Ok(file) => read_at(&file, offset, len).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The chunks that an earlier process left of a partial object.
    pub(crate) fn load_partial(&self, map: &Map, place: &ObjectPlace) -> io::Result<Bits> {
        let chunks = place.chunk_count as usize;
        if let Some(have) = self.partials().get(&place.digest) {
            return Ok(have.clone());
        }
        let Some(marks) = self.read_marks(map, place)? else { return Ok(Bits::new(chunks)) };
        let have = parse_marks(&marks, chunks);
        Ok(self.partials().entry(place.digest).or_insert(have).clone())
    }

    /// Keeps chunk `index` of a large object; tells whether the object is now whole, and in `objects/`.
    pub(crate) fn put_piece(
        &self,
        place: &ObjectPlace,
        form: Form,
        piece: &Piece,
        bytes: &[u8],
    ) -> Result<bool, PutError> {
        if self.contains_of_len(&place.digest, place.len) {
            return Ok(true);
        }
        let io = |error| put_error(place.digest, error);
        // Before the first piece of this process is marked: later the marks on the disk would tell of pieces that
        // other writers are about to note themselves.
        self.know(place).map_err(io)?;
        self.write_piece(place, piece, bytes).map_err(io)?;
        let whole = self.partials().get_mut(&place.digest).is_some_and(|have| {
            have.set(piece.index as usize);
            have.all()
        });
        if whole { self.finish(place, form).map(|()| true) } else { Ok(false) }
    }

    /// Keeps an object that is nothing but a hole.
    pub(crate) fn put_hollow(&self, place: &ObjectPlace) -> Result<(), PutError> {
        let mut hasher = image::SparseHasher::new(place.len);
        hasher.hole(place.len);
        if hasher.finish() != place.digest {
            return Err(PutError::Mismatch(place.digest));
        }
        if self.contains_of_len(&place.digest, place.len) {
            return Ok(());
        }
        let keep = || {
            let incoming = self.incoming()?;
            incoming.set_len(place.len)?;
            self.keep(incoming, &self.path(&place.digest))
        };
        keep().map_err(|error| put_error(place.digest, error))
    }

    /// Makes an object's pieces known: an earlier process may have left some.
    fn know(&self, place: &ObjectPlace) -> io::Result<()> {
        if let Entry::Vacant(unknown) = self.partials().entry(place.digest) {
            let marks = read_optional(&self.marks_path(&place.digest))?.unwrap_or_default();
            unknown.insert(parse_marks(&marks, place.chunk_count as usize));
        }
        Ok(())
    }

    /// Takes a partial object off the disk and tells how many bytes that freed.
    pub fn remove_partial(&self, object: &Digest) -> io::Result<u64> {
        self.partials().remove(object);
        let freed = self.unlink(&self.partial_path(object))?;
        Ok(freed + self.unlink(&self.marks_path(object))? + self.unlink(&self.unverified_path(object))?)
    }

    pub(super) fn partial_path(&self, object: &Digest) -> PathBuf {
        self.root.join("partial").join(object.to_string())
    }

    fn marks_path(&self, object: &Digest) -> PathBuf {
        self.root.join("partial").join(format!("{object}.have"))
    }

    fn unverified_path(&self, object: &Digest) -> PathBuf {
        self.root.join("partial").join(format!("{object}.unverified"))
    }

    fn partials(&self) -> MutexGuard<'_, HashMap<Digest, Bits>> {
        self.partials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_piece(&self, place: &ObjectPlace, piece: &Piece, bytes: &[u8]) -> io::Result<()> {
        let open = |path| OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = open(self.partial_path(&place.digest))?;
        let before = file.metadata()?.blocks();
        let mut rest = bytes;
        for run in &piece.runs {
            // The map was checked: the runs of a piece are as long as its chunk.
            let (now, later) = rest.split_at(rest.len().min(usize::try_from(run.len).unwrap_or(usize::MAX)));
            file.write_all_at(now, run.offset)?;
            rest = later;
        }
        let after = file.metadata()?.blocks();
        open(self.marks_path(&place.digest))?.write_all_at(&[HAVE], u64::from(piece.index))?;
        self.grew(after.saturating_sub(before) * BLOCK_BYTES);
        Ok(())
    }

    /// Hashes a file that has all its chunks, and lets it in or drops it.
    pub(crate) fn finish(&self, place: &ObjectPlace, form: Form) -> Result<(), PutError> {
        let _turn = self.finishing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.contains_of_len(&place.digest, place.len) {
            return Ok(());
        }
        let digest = place.digest;
        let path = self.partial_path(&digest);
        let hash = || match form {
            Form::Plain => hashing::plain(&path),
            Form::Sparse => {
                // It may end in a hole.
                OpenOptions::new().write(true).open(&path)?.set_len(place.len)?;
                hashing::sparse(&path)
            }
        };
        let hashed = hash().map_err(|error| put_error(digest, error))?;
        if hashed != (digest, place.len) {
            self.remove_partial(&digest).map_err(|error| put_error(digest, error))?;
            return Err(PutError::Mismatch(digest));
        }
        fs::rename(&path, self.path(&digest)).map_err(|error| put_error(digest, error))?;
        self.partials().remove(&digest);
        // A mark without its file means nothing, and is dropped at the next start if it stays.
        let _ = self.unlink(&self.marks_path(&digest));
        Ok(())
    }

    /// The marks of a partial object, checked against its chunks when the last start was after a power loss.
    fn read_marks(&self, map: &Map, place: &ObjectPlace) -> io::Result<Option<Vec<u8>>> {
        if let Some(marks) = read_optional(&self.marks_path(&place.digest))? {
            return Ok(Some(marks));
        }
        let unverified = self.unverified_path(&place.digest);
        let Some(mut marks) = read_optional(&unverified)? else { return Ok(None) };
        marks.truncate(place.chunk_count as usize);
        let mut start = 0;
        for (index, mark) in marks.iter_mut().enumerate() {
            let Some(chunk) = map.chunks.get(place.first_chunk as usize + index) else { break };
            let end = start + u64::from(chunk.plain_len);
            if *mark == HAVE {
                let mut bytes = Vec::with_capacity(chunk.plain_len as usize);
                for run in map.runs(place, start..end) {
                    let read = self.read_partial(&place.digest, run.offset, run.len as usize)?;
                    bytes.extend(read.unwrap_or_default());
                }
                if Digest::of(&bytes) != chunk.digest {
                    *mark = b'0';
                }
            }
            start = end;
        }
        fs::write(self.marks_path(&place.digest), &marks)?;
        self.unlink(&unverified)?;
        Ok(Some(marks))
    }
}

/// Which chunk of an object, and where its bytes stand in it, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) index: u32,
    pub(crate) runs: Vec<Extent>,
}

/// How an object is named: see [`image::sparse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Plain,
    Sparse,
}

impl Form {
    pub(crate) fn of(map: &Map, object: &Digest) -> Form {
        match map.sparse(object) {
            Some(_) => Form::Sparse,
            None => Form::Plain,
        }
    }
}

fn parse_marks(marks: &[u8], chunks: usize) -> Bits {
    let mut have = Bits::new(chunks);
    for (index, _) in marks.iter().enumerate().filter(|(_, mark)| **mark == HAVE) {
        have.set(index);
    }
    have
}

fn read_optional(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
