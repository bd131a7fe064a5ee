//! gzip, as RFC 1952 has it: any number of members, each with a header, deflated bytes and a trailer.
//!
//! The trailer's CRC-32 is not computed, which every general reader does: it costs 4 % of an import,
//! and whoever uses this compares the SHA-256 of what came out with the layer's diff id. Lengths are
//! compared, so a stream of members that was put together wrongly is told where it is read.

use std::io::{self, BufRead, Read};

use flate2::{Decompress, FlushDecompress, Status};

/// What a header may hold in names, comments and extra fields together; real ones hold some dozens.
const HEADER_MAX: usize = 128 * 1024;
const MAGIC: [u8; 2] = [0x1f, 0x8b];
const DEFLATE: u8 = 8;

// Bits of a header's flags.
const HEADER_CRC: u8 = 1 << 1;
const EXTRA: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0b1110_0000;

/// The plain bytes of all members, one after the other.
pub(super) struct Gunzip<R> {
    from: R,
    inflate: Decompress,
    within: bool,
}

impl<R: BufRead> Gunzip<R> {
    pub(super) fn new(from: R) -> Gunzip<R> {
        Gunzip { from, inflate: Decompress::new(false), within: false }
    }

    /// Inflates into `out`; whether the member has ended, and how many bytes were written.
    fn inflate(&mut self, out: &mut [u8]) -> io::Result<(bool, usize)> {
        loop {
            let input = self.from.fill_buf()?;
            let ended = input.is_empty();
            let (read, written) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self.inflate.decompress(input, out, FlushDecompress::None);
            let status = status.map_err(|_| malformed("deflated bytes that make no sense"))?;
            let read = (self.inflate.total_in() - read) as usize;
            let written = (self.inflate.total_out() - written) as usize;
            self.from.consume(read);
            match status {
                Status::StreamEnd => return Ok((true, written)),
                _ if written > 0 => return Ok((false, written)),
                _ if ended => return Err(io::ErrorKind::UnexpectedEof.into()),
                // No progress on input that is there would be no progress for ever.
                _ if read == 0 => return Err(malformed("deflated bytes that lead nowhere")),
                _ => {}
            }
        }
    }

    fn trailer(&mut self) -> io::Result<()> {
        let mut trailer = [0; 8];
        self.from.read_exact(&mut trailer)?;
        let [_, _, _, _, len @ ..] = trailer;
        // The length is told modulo 2^32.
        if u32::from_le_bytes(len) != self.inflate.total_out() as u32 {
            return Err(malformed("a member of another length than its trailer tells"));
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.within {
                if self.from.fill_buf()?.is_empty() {
                    return Ok(0);
                }
                header(&mut self.from)?;
                self.inflate.reset(false);
                self.within = true;
            }
            let (ended, written) = self.inflate(out)?;
            if ended {
                self.trailer()?;
                self.within = false;
            }
            if written > 0 {
                return Ok(written);
            }
        }
    }
}

/// Reads a header and forgets it: nothing in it is of use here.
fn header(from: &mut impl BufRead) -> io::Result<()> {
    let mut fixed = [0; 10];
    from.read_exact(&mut fixed)?;
    let [magic_0, magic_1, method, flags, ..] = fixed;
    if [magic_0, magic_1] != MAGIC {
        return Err(malformed("bytes after a gzip member that begin no other"));
    }
    if method != DEFLATE || flags & RESERVED != 0 {
        return Err(malformed("a gzip header of an unknown kind"));
    }
    if flags & EXTRA != 0 {
        let mut len = [0; 2];
        from.read_exact(&mut len)?;
        skip(from, u16::from_le_bytes(len).into())?;
    }
    for field in [NAME, COMMENT] {
        if flags & field != 0 {
            skip_text(from)?;
        }
    }
    if flags & HEADER_CRC != 0 {
        skip(from, 2)?;
    }
    Ok(())
}

fn skip(from: &mut impl BufRead, len: u64) -> io::Result<()> {
    let skipped = io::copy(&mut from.take(len), &mut io::sink())?;
    if skipped < len { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// Skips text that a zero byte ends.
fn skip_text(from: &mut impl BufRead) -> io::Result<()> {
    let skipped = from.take(HEADER_MAX as u64).skip_until(0)?;
    match skipped {
        HEADER_MAX => Err(malformed("a gzip header without an end")),
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, GzBuilder};

    use super::*;

    fn member(plain: &[u8]) -> Vec<u8> {
        full(GzBuilder::new(), plain)
    }

    fn full(builder: GzBuilder, plain: &[u8]) -> Vec<u8> {
        let mut encoder = builder.write(Vec::new(), Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    /// What `blob` holds, read through buffers of `buffer` bytes on both sides.
    fn gunzip(blob: &[u8], buffer: usize) -> io::Result<Vec<u8>> {
        let mut decoder = Gunzip::new(io::BufReader::with_capacity(buffer, blob));
        let (mut plain, mut piece) = (Vec::new(), vec![0; buffer]);
        loop {
            match decoder.read(&mut piece)? {
                0 => return Ok(plain),
                read => plain.extend_from_slice(&piece[..read]),
            }
        }
    }

    #[test]
    fn members_of_every_kind_are_read_whatever_the_buffers() {
        let text: Vec<u8> = (0..100_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let named = GzBuilder::new().filename("a name").comment("a comment").extra(vec![7; 300]);
        let blob = [member(&text), member(b""), full(named, b"middle"), member(&text[..1000])].concat();
        let expected = [&text[..], b"middle", &text[..1000]].concat();
        for buffer in [1, 7, 4096, 1 << 20] {
            assert_eq!(gunzip(&blob, buffer).unwrap(), expected, "buffers of {buffer}");
        }
    }

    #[test]
    fn every_cut_is_an_error_and_none_is_an_end() {
        let named = GzBuilder::new().filename("name").comment("comment").extra(vec![1; 20]);
        let blob = [member(b"one"), full(named, b"two")].concat();
        let first = member(b"one").len();
        for cut in (1..blob.len()).filter(|cut| *cut != first) {
            let error = gunzip(&blob[..cut], 64).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_not_gzip_is_told() {
        let one = member(b"one");
        let garbage = [one.clone(), b"no member here".to_vec()].concat();
        assert!(gunzip(&garbage, 64).unwrap_err().to_string().contains("begin no other"));
        let mut longer = one.clone();
        *longer.iter_mut().nth_back(3).unwrap() += 1;
        assert!(gunzip(&longer, 64).unwrap_err().to_string().contains("another length"));
        let mut unknown = one.clone();
        unknown[3] = 0x80;
        assert!(gunzip(&unknown, 64).unwrap_err().to_string().contains("unknown kind"));
        let mut endless = one[..10].to_vec();
        endless[3] = NAME;
        endless.resize(HEADER_MAX + 100, b'a');
        assert!(gunzip(&endless, 64).unwrap_err().to_string().contains("without an end"));
        let mut broken = one;
        broken[10] = 0xff;
        assert!(gunzip(&broken, 64).unwrap_err().to_string().contains("make no sense"));
    }
}
