//! Sparse files: which parts of a file the archive stores; the rest are holes.

use super::header::unsigned;
use super::pax::decimal;
use super::{Block, Fault, padding};
use crate::limits::SPARSE_EXTENTS_MAX;

/// A part of a file that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub offset: u64,
    pub len: u64,
}

pub(super) fn push(extents: &mut Vec<Extent>, extent: Extent) -> Result<(), Fault> {
    if extents.len() == SPARSE_EXTENTS_MAX {
        return Err(Fault::TooManyExtents);
    }
    extents.push(extent);
    Ok(())
}

/// PAX form 0.1: `offset,len,offset,len`.
pub(super) fn parse_list(value: &[u8]) -> Result<Vec<Extent>, Fault> {
    const NAME: &str = "GNU.sparse.map";
    let mut extents = Vec::new();
    if value.is_empty() {
        return Ok(extents);
    }
    let mut numbers = value.split(|&byte| byte == b',').map(|number| decimal(NAME, number));
    while let Some(offset) = numbers.next() {
        let len = numbers.next().ok_or(Fault::Sparse("an extent without its length"))?;
        push(&mut extents, Extent { offset: offset?, len: len? })?;
    }
    Ok(extents)
}

/// The old GNU map: in the header from byte 386 (4 extents), continued in whole blocks (21 each).
#[derive(Debug, Default)]
pub(super) struct GnuMap {
    pub extents: Vec<Extent>,
    /// Whether another block of the map follows.
    pub continued: bool,
}

impl GnuMap {
    /// The map's beginning, and the file's real size.
    pub(super) fn from_header(block: &Block) -> Result<(GnuMap, u64), Fault> {
        let mut map = GnuMap::default();
        map.read(&block[386..482], block[482])?;
        Ok((map, unsigned("real size", &block[483..495])?))
    }

    pub(super) fn read_continuation(&mut self, block: &Block) -> Result<(), Fault> {
        self.read(&block[..504], block[504])
    }

    fn read(&mut self, entries: &[u8], continued: u8) -> Result<(), Fault> {
        self.continued = continued != 0;
        for entry in entries.chunks_exact(24).take_while(|entry| entry[0] != 0) {
            let offset = unsigned("sparse offset", &entry[..12])?;
            push(&mut self.extents, Extent { offset, len: unsigned("sparse length", &entry[12..])? })?;
        }
        Ok(())
    }
}

/// PAX form 1.0: decimal lines before the data (how many extents, then offset and length of each),
/// filled up to whole blocks.
#[derive(Debug, Default)]
pub(super) struct DataMap {
    extents: Vec<Extent>,
    announced: Option<u64>,
    offset: Option<u64>,
    digits: Vec<u8>,
}

/// No decimal number in range has more digits.
const DIGITS_MAX: usize = 19;

impl DataMap {
    /// Reads one block; gives the extents once they are complete.
    pub(super) fn read(&mut self, block: &Block) -> Result<Option<Vec<Extent>>, Fault> {
        for &byte in block {
            if byte != b'\n' {
                self.digits.push(byte);
                if self.digits.len() > DIGITS_MAX {
                    return Err(Fault::Sparse("a map that is not decimal"));
                }
                continue;
            }
            let value = decimal("sparse map", &self.digits)?;
            self.digits.clear();
            self.number(value)?;
            if self.announced == Some(self.extents.len() as u64) {
                return Ok(Some(std::mem::take(&mut self.extents)));
            }
        }
        Ok(None)
    }

    fn number(&mut self, value: u64) -> Result<(), Fault> {
        match (self.announced, self.offset.take()) {
            (None, _) if value > SPARSE_EXTENTS_MAX as u64 => Err(Fault::TooManyExtents),
            (None, _) => {
                self.announced = Some(value);
                Ok(())
            }
            (Some(_), None) => {
                self.offset = Some(value);
                Ok(())
            }
            (Some(_), Some(offset)) => push(&mut self.extents, Extent { offset, len: value }),
        }
    }
}

/// A file's content as the archive stores it: extents in order, holes between them.
#[derive(Debug)]
pub(super) struct Body {
    size: u64,
    /// Of `size`, so many bytes are in the archive.
    stored: u64,
    position: u64,
    extent: Extent,
    later: std::vec::IntoIter<Extent>,
    /// After the data.
    pub padding: u64,
}

/// What a [`Body`] has next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    Stored(u64),
    Hole(u64),
    End,
}

impl Body {
    pub(super) fn whole(size: u64) -> Body {
        let extent = Extent { offset: 0, len: size };
        Body {
            size,
            stored: size,
            position: 0,
            extent,
            later: Vec::new().into_iter(),
            padding: padding(size),
        }
    }

    /// `stored` bytes that `extents` spread over `size`.
    pub(super) fn sparse(extents: Vec<Extent>, size: u64, stored: u64) -> Result<Body, Fault> {
        let mut end = 0_u64;
        let mut total = 0_u64;
        for extent in &extents {
            if extent.offset < end {
                return Err(Fault::Sparse("extents that overlap"));
            }
            end = extent.offset.checked_add(extent.len).ok_or(Fault::Sparse("an extent out of range"))?;
            // No overflow: extents do not overlap, so their sum is at most `end`.
            total += extent.len;
        }
        if end > size {
            return Err(Fault::Sparse("an extent beyond the file's end"));
        }
        if total != stored {
            return Err(Fault::Sparse("more or less data than its extents name"));
        }
        let extent = Extent { offset: 0, len: 0 };
        Ok(Body { size, stored, position: 0, extent, later: extents.into_iter(), padding: padding(stored) })
    }

    pub(super) fn has_holes(&self) -> bool {
        self.stored < self.size
    }

    /// The next part; a hole is passed with that, stored bytes by [`Body::advance`].
    pub(super) fn part(&mut self) -> Part {
        loop {
            let end = self.extent.offset + self.extent.len;
            if self.position < self.extent.offset {
                return self.hole(self.extent.offset);
            }
            if self.position < end {
                return Part::Stored(end - self.position);
            }
            match self.later.next() {
                Some(extent) => self.extent = extent,
                None if self.position < self.size => return self.hole(self.size),
                None => return Part::End,
            }
        }
    }

    pub(super) fn advance(&mut self, stored: u64) {
        self.position += stored;
    }

    fn hole(&mut self, end: u64) -> Part {
        let len = end - self.position;
        self.position = end;
        Part::Hole(len)
    }
}
