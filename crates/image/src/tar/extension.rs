//! Extensions: members that say something of the members after them, and how both become one.

use std::mem;

use super::header::{self, Header};
use super::pax::{Records, SparseRecords};
use super::{Fault, Member, MemberKind};
use crate::record::{Meta, Xattrs};

/// A member that is no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExtensionKind {
    /// PAX records for the next member.
    Local,
    /// PAX records for all that follow.
    Global,
    /// GNU: the next member's name or link target, too long for its header.
    LongPath,
    LongLink,
}

/// All that was said so far of members to come.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    /// Whether a member must follow.
    pub announced: bool,
    global: Records,
    global_xattrs: Xattrs,
    local: Records,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

/// A member, its declared size, and where its data goes if it is sparse.
#[derive(Debug)]
pub(super) struct Described {
    pub member: Member,
    pub size: u64,
    pub sparse: Option<SparseRecords>,
}

impl ExtensionKind {
    pub(super) fn of(flag: u8) -> Option<ExtensionKind> {
        match flag {
            b'x' => Some(ExtensionKind::Local),
            b'g' => Some(ExtensionKind::Global),
            b'L' => Some(ExtensionKind::LongPath),
            b'K' => Some(ExtensionKind::LongLink),
            _ => None,
        }
    }
}

impl Extensions {
    /// An extension begins.
    pub(super) fn announce(&mut self, kind: ExtensionKind) {
        self.announced |= kind != ExtensionKind::Global;
    }

    /// An extension is whole. A second one of its kind replaces the first; global ones add up.
    pub(super) fn add(&mut self, kind: ExtensionKind, content: &[u8]) -> Result<(), Fault> {
        let name = || Some(header::text(content).to_vec()).filter(|name| !name.is_empty());
        match kind {
            ExtensionKind::Global => {
                self.global.parse(content)?;
                self.global_xattrs = self.global.xattrs().into();
            }
            ExtensionKind::Local => {
                self.local = Records::default();
                self.local.parse(content)?;
            }
            ExtensionKind::LongPath => self.path = name(),
            ExtensionKind::LongLink => self.link = name(),
        }
        Ok(())
    }

    /// The member that `header` and the extensions before it describe.
    pub(super) fn describe(&mut self, header: &Header<'_>) -> Result<Described, Fault> {
        self.announced = false;
        let mut records = mem::take(&mut self.local).or(&self.global);
        let sparse_name = records.sparse.as_mut().and_then(|sparse| sparse.name.take());
        let path = sparse_name.or(self.path.take()).or(records.path.take());
        let link = self.link.take().or(records.link.take());
        let meta = Meta {
            mode: header.mode,
            uid: records.uid.map_or_else(|| header.uid(), Ok)?,
            gid: records.gid.map_or_else(|| header.gid(), Ok)?,
            mtime: records.mtime.unwrap_or(header.mtime),
            xattrs: match records.has_xattrs() {
                true => records.or_xattrs(&self.global),
                // What a global header gives to all members stands in memory once.
                false => self.global_xattrs.clone(),
            },
        };
        let path = path.unwrap_or_else(|| header.path());
        let link = link.unwrap_or_else(|| header.link());
        let size = records.size.unwrap_or(header.size);
        let kind = kind(header, &path, link, size)?;
        Ok(Described { member: Member { path, kind, meta, sparse: false }, size, sparse: records.sparse })
    }
}

fn kind(header: &Header<'_>, path: &[u8], link: Vec<u8>, size: u64) -> Result<MemberKind, Fault> {
    Ok(match header.flag {
        // Before ustar a directory was a file whose name ends so.
        0 if path.ends_with(b"/") => MemberKind::Directory,
        0 | b'0' | b'7' => MemberKind::File(size),
        b'S' if header.is_gnu_sparse() => MemberKind::File(size),
        b'1' => MemberKind::Hardlink(link),
        b'2' => MemberKind::Symlink(link),
        b'3' => MemberKind::CharDevice(header.device()?),
        b'4' => MemberKind::BlockDevice(header.device()?),
        b'5' => MemberKind::Directory,
        b'6' => MemberKind::Fifo,
        other => return Err(Fault::UnknownType(other.into())),
    })
}
