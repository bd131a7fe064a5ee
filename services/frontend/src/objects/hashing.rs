//! What files are named: their content hashed, as an object without holes and as one that has some.

use std::fs::File;
use std::io;
use std::path::Path;

use image::{Digest, SparseHasher};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::read_at;

/// One read: large enough for the disk's speed, small beside the memory budget.
const BUFFER_BYTES: usize = 256 * 1024;
/// What is hashed of a file that has holes and no name of one: a file system may make holes of any zeros. Beyond that it is
/// taken for what a power loss left of an object, which is fetched again.
const HOLES_HASHED_MAX: u64 = 16 << 30;

/// The digest and the length of a file.
pub(super) fn plain(path: &Path) -> io::Result<(Digest, u64)> {
    plain_of(&File::open(path)?)
}

/// The digest that it has as an object with holes, and its length. Reads nothing of what the file system knows as a hole.
pub(super) fn sparse(path: &Path) -> io::Result<(Digest, u64)> {
    sparse_of(&File::open(path)?)
}

/// Whether a file is what its name says, in either form.
pub(super) fn is_named(path: &Path, digest: &Digest) -> io::Result<bool> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let has_holes = hole_after(&file, 0, len)? < len;
    let by_sparse = || Ok::<_, io::Error>(sparse_of(&file)?.0 == *digest);
    let by_plain = || Ok::<_, io::Error>(plain_of(&file)?.0 == *digest);
    match has_holes {
        true => Ok(by_sparse()? || (len <= HOLES_HASHED_MAX && by_plain()?)),
        false => Ok(by_plain()? || by_sparse()?),
    }
}

fn plain_of(file: &File) -> io::Result<(Digest, u64)> {
    let mut hasher = blake3::Hasher::new();
    let mut offset = 0;
    loop {
        let bytes = read_at(file, offset, BUFFER_BYTES)?;
        if bytes.is_empty() {
            return Ok((hasher.finalize().into(), offset));
        }
        hasher.update(&bytes);
        offset += bytes.len() as u64;
    }
}

fn sparse_of(file: &File) -> io::Result<(Digest, u64)> {
    let len = file.metadata()?.len();
    let mut hasher = SparseHasher::new(len);
    while hasher.position() < len {
        let begin = data_after(file, hasher.position(), len)?;
        hasher.hole(begin.saturating_sub(hasher.position()));
        let end = hole_after(file, hasher.position(), len)?;
        while hasher.position() < end {
            let wanted = (end - hasher.position()).min(BUFFER_BYTES as u64) as usize;
            let bytes = read_at(file, hasher.position(), wanted)?;
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            hasher.data(&bytes);
        }
    }
    Ok((hasher.finish(), len))
}

/// Where data begins at or after `offset`; `len` when there is none.
pub(super) fn data_after(file: &File, offset: u64, len: u64) -> io::Result<u64> {
    match seek(file, SeekFrom::Data(offset)) {
        Ok(found) => Ok(found.min(len)),
        Err(Errno::NXIO) => Ok(len),
        // A file system without holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(offset),
        Err(error) => Err(error.into()),
    }
}

/// Where a hole begins at or after `offset`: at the latest where the file ends.
pub(super) fn hole_after(file: &File, offset: u64, len: u64) -> io::Result<u64> {
    match seek(file, SeekFrom::Hole(offset)) {
        Ok(found) => Ok(found.min(len)),
        Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => Ok(len),
        Err(error) => Err(error.into()),
    }
}
