//! Writes whole lines to standard error. A line that cannot be written (a full disk, a pipe that nobody reads) is dropped and
//! counted, and the log says so once it can be written again.

use std::io::{self, ErrorKind, Stderr, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use metrics::counter;
use tracing_subscriber::fmt::MakeWriter;

use super::rotation::Rotation;

/// Log lines that could not be written, and are lost.
const DROPPED_TOTAL: &str = "sluice_log_lines_dropped_total";

/// Of this process; and of these, those that the log has told of.
static DROPPED: AtomicU64 = AtomicU64::new(0);
static TOLD: AtomicU64 = AtomicU64::new(0);

/// Where all lines of the process go, one after the other.
#[derive(Debug)]
pub(super) struct Output {
    lines: Mutex<Lines<Stderr>>,
}

#[derive(Debug)]
struct Lines<W> {
    sink: W,
    rotation: Option<Rotation>,
    /// The last line was written in part: the next one begins with a line's end.
    torn: bool,
}

impl Output {
    pub(super) fn new(rotation: Option<Rotation>) -> Output {
        Output { lines: Mutex::new(Lines { sink: io::stderr(), rotation, torn: false }) }
    }
}

/// One event is one call.
impl Write for &Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // A panic while writing leaves a line that may be torn, no more.
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.write(line).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
            publish_dropped();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = &'a Output;

    fn make_writer(&'a self) -> &'a Output {
        self
    }
}

impl<W: Write> Lines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if let Some(rotation) = &mut self.rotation {
            rotation.make_room(line.len() as u64)?;
        }
        if self.torn {
            self.write_all(b"\n")?;
            self.torn = false;
        }
        self.write_all(line)
    }

    fn write_all(&mut self, mut rest: &[u8]) -> io::Result<()> {
        while !rest.is_empty() {
            match self.sink.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    rest = &rest[written..];
                    self.torn = !rest.is_empty();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Makes the count visible; it is there from the start.
pub(crate) fn publish_dropped() {
    counter!(DROPPED_TOTAL).absolute(DROPPED.load(Ordering::Relaxed));
}

/// Says how many lines were lost since it was said last. Where that cannot be written either, it is said the next time.
pub(crate) fn tell_dropped() {
    let (dropped, told) = (DROPPED.load(Ordering::Relaxed), TOLD.load(Ordering::Relaxed));
    if dropped == told {
        return;
    }
    tracing::warn!(lines = dropped - told, "lines of this log could not be written and are lost");
    if DROPPED.load(Ordering::Relaxed) == dropped {
        TOLD.store(dropped, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes, and then has no room.
    struct Small {
        written: Vec<u8>,
        room: usize,
    }

    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let fits = bytes.len().min(self.room);
            if fits == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            self.written.extend_from_slice(&bytes[..fits]);
            self.room -= fits;
            Ok(fits)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_was_cut_off_does_not_spoil_the_next() {
        let sink = Small { written: Vec::new(), room: 9 };
        let mut lines = Lines { sink, rotation: None, torn: false };
        lines.write(b"first\n").unwrap();
        assert_eq!(lines.write(b"second\n").unwrap_err().kind(), ErrorKind::StorageFull);
        lines.write(b"third\n").unwrap_err();
        lines.sink.room = 100;
        lines.write(b"fourth\n").unwrap();
        lines.write(b"fifth\n").unwrap();
        assert_eq!(lines.sink.written, b"first\nsec\nfourth\nfifth\n");
    }
}
