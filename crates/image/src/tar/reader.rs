//! The reader's states: which block comes next, and what it means.

use std::mem;

use super::extension::{Described, ExtensionKind, Extensions};
use super::header::{self, Header};
use super::sparse::{Body, DataMap, GnuMap, Part};
use super::{BLOCK, Block, Event, Fault, Member, MemberKind, TarError, padding};
use crate::limits::TAR_EXTENSION_MAX;

/// Turns pushed bytes into [`Event`]s. After an error it is of no more use.
#[derive(Debug)]
pub struct Reader {
    state: State,
    /// A block that arrives in pieces.
    block: Box<Block>,
    filled: usize,
    /// How many bytes were read.
    offset: u64,
    /// Where the header of the current member begins.
    member_at: u64,
    extensions: Extensions,
}

#[derive(Debug)]
enum State {
    Header,
    /// One of the two blocks that end an archive was read.
    HalfEnd,
    Extension {
        kind: ExtensionKind,
        content: Vec<u8>,
        left: u64,
        padding: u64,
    },
    /// The rest of an old GNU sparse map comes before the data.
    GnuMap {
        map: GnuMap,
        member: Member,
        size: u64,
        stored: u64,
    },
    /// A sparse map of PAX form 1.0 comes before the data.
    DataMap {
        map: DataMap,
        member: Member,
        size: u64,
        stored: u64,
    },
    /// A hard link that declares a size: its next block is either the file's bytes once more
    /// (POSIX) or the next header (most writers).
    LinkBody {
        size: u64,
    },
    Body(Body),
    /// Bytes without meaning, then a header.
    Skip {
        data: u64,
        padding: u64,
    },
    /// Nothing after the end matters: writers fill up whole records.
    Ended,
}

impl Default for Reader {
    fn default() -> Reader {
        Reader::new()
    }
}

impl Reader {
    pub fn new() -> Reader {
        Reader {
            state: State::Header,
            block: Box::new([0; BLOCK]),
            filled: 0,
            offset: 0,
            member_at: 0,
            extensions: Extensions::default(),
        }
    }

    /// The next event that `input` holds; advances `input` past what was read. `None` once more
    /// bytes are needed: `input` is then empty.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, TarError> {
        loop {
            let before = input.len();
            let step = self.step(input).map_err(|fault| TarError { at: self.member_at, fault })?;
            self.offset += (before - input.len()) as u64;
            match step {
                Step::Event(event) => return Ok(Some(event)),
                Step::More => {}
                Step::Starved => return Ok(None),
            }
        }
    }

    /// Whether the archive may end here. The end blocks may be missing, as may the last padding.
    pub fn finish(&self) -> Result<(), TarError> {
        let complete = match &self.state {
            State::Header => self.filled == 0 && !self.extensions.announced,
            State::HalfEnd | State::LinkBody { .. } => self.filled == 0,
            State::Skip { data, .. } => *data == 0,
            State::Ended => true,
            State::Extension { .. } | State::GnuMap { .. } | State::DataMap { .. } | State::Body(_) => false,
        };
        match complete {
            true => Ok(()),
            false => Err(TarError { at: self.member_at, fault: Fault::Truncated }),
        }
    }

    fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Step<'a>, Fault> {
        match &mut self.state {
            State::Body(body) => match body.part() {
                Part::Stored(_) if input.is_empty() => Ok(Step::Starved),
                Part::Stored(left) => {
                    let data = take(input, left);
                    body.advance(data.len() as u64);
                    Ok(Step::Event(Event::Data(data)))
                }
                Part::Hole(len) => Ok(Step::Event(Event::Hole(len))),
                Part::End => {
                    self.state = State::Skip { data: 0, padding: body.padding };
                    Ok(Step::Event(Event::End))
                }
            },
            State::Skip { data, padding } => {
                *data -= take(input, *data).len() as u64;
                *padding -= take(input, *padding).len() as u64;
                if *data > 0 || *padding > 0 {
                    return Ok(Step::Starved);
                }
                self.state = State::Header;
                Ok(Step::More)
            }
            State::Extension { kind, content, left, padding } => {
                let piece = take(input, *left);
                *left -= piece.len() as u64;
                content.extend_from_slice(piece);
                if *left > 0 {
                    return Ok(Step::Starved);
                }
                self.extensions.add(*kind, content)?;
                self.state = State::Skip { data: 0, padding: *padding };
                Ok(Step::More)
            }
            State::Ended => {
                *input = &[];
                Ok(Step::Starved)
            }
            State::Header
            | State::HalfEnd
            | State::GnuMap { .. }
            | State::DataMap { .. }
            | State::LinkBody { .. } => match self.take_block(input) {
                Some(block) => self.read_block(&block),
                None => Ok(Step::Starved),
            },
        }
    }

    fn take_block(&mut self, input: &mut &[u8]) -> Option<Block> {
        let begins = self.offset - self.filled as u64;
        let piece = take(input, (BLOCK - self.filled) as u64);
        self.block[self.filled..self.filled + piece.len()].copy_from_slice(piece);
        self.filled += piece.len();
        if self.filled < BLOCK {
            return None;
        }
        self.filled = 0;
        if matches!(self.state, State::Header | State::LinkBody { .. }) && !self.extensions.announced {
            self.member_at = begins;
        }
        Some(*self.block)
    }

    fn read_block<'a>(&mut self, block: &Block) -> Result<Step<'a>, Fault> {
        match mem::replace(&mut self.state, State::Header) {
            State::HalfEnd if is_zero(block) => {
                self.state = State::Ended;
                Ok(Step::More)
            }
            State::HalfEnd => Err(Fault::LoneZeroBlock),
            State::LinkBody { size } if !is_zero(block) && !header::checksum_matches(block) => {
                let rest = size.saturating_sub(BLOCK as u64);
                self.state = State::Skip { data: rest, padding: padding(rest) };
                Ok(Step::More)
            }
            State::GnuMap { mut map, member, size, stored } => {
                map.read_continuation(block)?;
                self.open_gnu_sparse(map, member, size, stored)
            }
            State::DataMap { mut map, member, size, stored } => {
                let too_short = Fault::Sparse("a map longer than the member");
                let stored = stored.checked_sub(BLOCK as u64).ok_or(too_short)?;
                match map.read(block)? {
                    Some(extents) => self.open(member, Body::sparse(extents, size, stored)?),
                    None => {
                        self.state = State::DataMap { map, member, size, stored };
                        Ok(Step::More)
                    }
                }
            }
            _ => self.read_header(block),
        }
    }

    fn read_header<'a>(&mut self, block: &Block) -> Result<Step<'a>, Fault> {
        if is_zero(block) {
            self.state = State::HalfEnd;
            return match self.extensions.announced {
                true => Err(Fault::Truncated),
                false => Ok(Step::More),
            };
        }
        let header = Header::parse(block)?;
        if let Some(kind) = ExtensionKind::of(header.flag) {
            return self.begin_extension(kind, header.size);
        }
        let described = self.extensions.describe(&header)?;
        match described.member.kind {
            MemberKind::File(stored) if header.is_gnu_sparse() => {
                let (map, size) = GnuMap::from_header(block)?;
                let member = Member { kind: MemberKind::File(size), ..described.member };
                return self.open_gnu_sparse(map, member, size, stored);
            }
            MemberKind::File(_) => return self.open_file(described),
            // What has no content may declare a size all the same, but no bytes follow.
            MemberKind::Hardlink(_) if described.size > 0 => {
                self.state = State::LinkBody { size: described.size };
            }
            _ => self.state = State::Header,
        }
        Ok(Step::Event(Event::Member(described.member)))
    }

    fn open_file<'a>(&mut self, described: Described) -> Result<Step<'a>, Fault> {
        let Described { mut member, size: stored, sparse } = described;
        let Some(sparse) = sparse else { return self.open(member, Body::whole(stored)) };
        let map_in_data = sparse.map_in_data()?;
        let size = sparse.real_size.ok_or(Fault::Sparse("no real size"))?;
        member.kind = MemberKind::File(size);
        if map_in_data {
            self.state = State::DataMap { map: DataMap::default(), member, size, stored };
            return Ok(Step::More);
        }
        self.open(member, Body::sparse(sparse.extents, size, stored)?)
    }

    fn open_gnu_sparse<'a>(
        &mut self,
        map: GnuMap,
        member: Member,
        size: u64,
        stored: u64,
    ) -> Result<Step<'a>, Fault> {
        if map.continued {
            self.state = State::GnuMap { map, member, size, stored };
            return Ok(Step::More);
        }
        self.open(member, Body::sparse(map.extents, size, stored)?)
    }

    fn open<'a>(&mut self, mut member: Member, body: Body) -> Result<Step<'a>, Fault> {
        member.sparse = body.has_holes();
        self.state = State::Body(body);
        Ok(Step::Event(Event::Member(member)))
    }

    fn begin_extension<'a>(&mut self, kind: ExtensionKind, size: u64) -> Result<Step<'a>, Fault> {
        if size > TAR_EXTENSION_MAX {
            return Err(Fault::ExtensionTooLong(size));
        }
        self.extensions.announce(kind);
        self.state = State::Extension { kind, content: Vec::new(), left: size, padding: padding(size) };
        Ok(Step::More)
    }
}

enum Step<'a> {
    Event(Event<'a>),
    /// The state changed: go on.
    More,
    /// All input is used up.
    Starved,
}

/// The first `at_most` bytes of `input`, or all of it.
fn take<'a>(input: &mut &'a [u8], at_most: u64) -> &'a [u8] {
    let len = usize::try_from(at_most).map_or(input.len(), |most| most.min(input.len()));
    let (piece, rest) = input.split_at(len);
    *input = rest;
    piece
}

fn is_zero(block: &Block) -> bool {
    block.iter().all(|&byte| byte == 0)
}
