//! Puts a stream of chunk frames together. Pure.
//!
//! A replica answers in the order asked; one that does not, sends more than a chunk may hold, or speaks
//! of chunks nobody asked for, is not believed any further.

use bytes::{Bytes, BytesMut};
use image::limits::CHUNK_STORED_MAX;
use proto::ChunkFrame;
use proto::chunk_frame::Failure;

/// Where in the answer we are.
#[derive(Debug)]
pub(super) struct Assembly {
    /// How many chunks were asked for.
    asked: u32,
    next: u32,
    received: BytesMut,
}

/// One chunk's end in the stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Stored bytes, not verified yet.
    Stored(Bytes),
    Failed(Failure),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProtocolError {
    #[error("the replica sent chunk {got} where {expected} was due")]
    OutOfOrder { got: u32, expected: u32 },
    #[error("the replica sent more bytes than a chunk may have")]
    TooLarge,
}

impl Assembly {
    pub(super) fn new(asked: u32) -> Assembly {
        Assembly { asked, next: 0, received: BytesMut::new() }
    }

    /// Takes one frame; returns the chunk that it ends, if it does.
    pub(super) fn push(&mut self, frame: ChunkFrame) -> Result<Option<(u32, Ended)>, ProtocolError> {
        let index = frame.index;
        if index != self.next || index >= self.asked {
            return Err(ProtocolError::OutOfOrder { got: index, expected: self.next });
        }
        let failure = frame.failure();
        if failure != Failure::None {
            self.received.clear();
            self.next += 1;
            return Ok(Some((index, Ended::Failed(failure))));
        }
        if self.received.len() + frame.data.len() > CHUNK_STORED_MAX {
            return Err(ProtocolError::TooLarge);
        }
        if !frame.last {
            self.received.extend_from_slice(&frame.data);
            return Ok(None);
        }
        self.next += 1;
        if self.received.is_empty() {
            return Ok(Some((index, Ended::Stored(frame.data))));
        }
        self.received.extend_from_slice(&frame.data);
        Ok(Some((index, Ended::Stored(self.received.split().freeze()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(index: u32, data: &[u8], last: bool) -> ChunkFrame {
        ChunkFrame { index, data: data.to_vec().into(), last, ..ChunkFrame::default() }
    }

    #[test]
    fn joins_frames_and_passes_failures_on() {
        let mut assembly = Assembly::new(3);
        assert_eq!(assembly.push(frame(0, b"ab", false)), Ok(None));
        assert_eq!(
            assembly.push(frame(0, b"cd", true)),
            Ok(Some((0, Ended::Stored(Bytes::from_static(b"abcd")))))
        );
        let failed = ChunkFrame { index: 1, failure: Failure::Missing.into(), ..ChunkFrame::default() };
        assert_eq!(assembly.push(failed), Ok(Some((1, Ended::Failed(Failure::Missing)))));
        assert_eq!(
            assembly.push(frame(2, b"e", true)),
            Ok(Some((2, Ended::Stored(Bytes::from_static(b"e")))))
        );
    }

    #[test]
    fn refuses_what_nobody_asked_for() {
        assert!(Assembly::new(1).push(frame(1, b"", true)).is_err());
        assert!(Assembly::new(0).push(frame(0, b"", true)).is_err());
        let mut assembly = Assembly::new(2);
        assert_eq!(assembly.push(frame(0, &vec![0; CHUNK_STORED_MAX], false)), Ok(None));
        assert_eq!(assembly.push(frame(0, b"x", true)), Err(ProtocolError::TooLarge));
    }
}
