//! Brings arrived chunks to the disk, on blocking threads. Nobody who reads waits for it.

use bytes::Bytes;
use image::Digest;

use super::plan::Target;
use crate::objects::{Objects, PutError};

/// One chunk and everything to write of it.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) sequence: u64,
    pub(super) chunk: Digest,
    pub(super) bytes: Bytes,
    pub(super) targets: Vec<Target>,
}

/// What came of a job.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) sequence: u64,
    pub(super) chunk: Digest,
    pub(super) bytes: Bytes,
    /// Objects that are whole and local now.
    pub(super) whole: Vec<Digest>,
    /// Pieces of large objects that are local now.
    pub(super) pieces: Vec<(Digest, u32)>,
    /// Objects that were whole but did not match their names.
    pub(super) spoiled: Vec<Digest>,
    /// Why the rest of it is not local.
    pub(super) failed: Option<PutError>,
}

impl Job {
    pub(super) fn run(self, objects: &Objects) -> Written {
        let mut written = Written {
            sequence: self.sequence,
            chunk: self.chunk,
            bytes: self.bytes.clone(),
            whole: Vec::new(),
            pieces: Vec::new(),
            spoiled: Vec::new(),
            failed: None,
        };
        for target in &self.targets {
            match written.write(objects, &self.bytes, target) {
                Ok(()) => {}
                Err(PutError::Mismatch(object)) => written.spoiled.push(object),
                Err(error) => {
                    written.failed = Some(error);
                    break;
                }
            }
        }
        written
    }
}

impl Written {
    fn write(&mut self, objects: &Objects, chunk: &[u8], target: &Target) -> Result<(), PutError> {
        match target {
            Target::Whole { object, offset, len } => {
                let (start, len) = (*offset as usize, *len as usize);
                let bytes = chunk.get(start..start.saturating_add(len)).ok_or(PutError::Mismatch(*object))?;
                objects.put(object, bytes)?;
                self.whole.push(*object);
            }
            Target::Part { place, form, piece } => {
                let whole = objects.put_piece(place, *form, piece, chunk)?;
                self.pieces.push((place.digest, piece.index));
                if whole {
                    self.whole.push(place.digest);
                }
            }
        }
        Ok(())
    }
}
