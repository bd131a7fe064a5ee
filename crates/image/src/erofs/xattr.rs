//! An inode's extended attributes as they stand behind it, and those that inodes share.
//!
//! `header (12 bytes) | number of a shared entry (u32) … | entry …`, an entry being
//! `name length (u8) | namespace (u8) | value length (u16) | name | value`, padded to four bytes. Shared entries stand in an
//! area of their own, where an entry's number is its offset in units of four bytes.

use std::collections::HashMap;

use crate::merge::{FileTree, Inode, Node};
use crate::record::xattrs::Interner;
use crate::record::{Content, Xattr};

pub(super) const HEADER: [u8; 12] = [0; 12];
/// Where the header says how many shared entries there are.
const SHARED_COUNT_AT: usize = 4;
/// What fits into that byte.
const SHARED_MAX: usize = 255;
/// Sets that are shorter stand behind each inode: reading them there costs no other block.
const SHARED_FROM: usize = 64;

const USER: u8 = 1;
const POSIX_ACL_ACCESS: u8 = 2;
const POSIX_ACL_DEFAULT: u8 = 3;
const TRUSTED: u8 = 4;
const SECURITY: u8 = 6;

/// What overlayfs keeps for itself inside `trusted.`; twice, it stands for the image's own.
const OVERLAY: &[u8] = b"overlay.";

/// Of an inode's attributes, in their order, the numbers of those that are shared.
type Numbers = [Option<u32>];

/// Entries that several inodes have, each once.
#[derive(Default)]
pub(super) struct Shared {
    /// By inode the number of its set, and by that the numbers of its entries.
    sets: Vec<u32>,
    numbers: HashMap<u32, Vec<Option<u32>>>,
    pub(super) area: Vec<u8>,
}

impl Shared {
    pub(super) fn of(tree: &FileTree) -> Result<Shared, &'static str> {
        let mut interner = Interner::default();
        let number = |inode: &Inode| match interner.intern(&inode.meta.xattrs) {
            Ok((number, _)) | Err((number, _)) => number,
        };
        let mut shared = Shared { sets: tree.inodes().iter().map(number).collect(), ..Shared::default() };
        let mut uses: HashMap<u32, u32> = HashMap::new();
        for (at, inode) in tree.inodes().iter().enumerate() {
            let set = shared.sets[at];
            let uses = uses.entry(set).or_default();
            *uses += 1;
            if *uses == 2 && inode.meta.xattrs.content_len() >= SHARED_FROM {
                let numbers = shared.put(&inode.meta.xattrs)?;
                shared.numbers.insert(set, numbers);
            }
        }
        Ok(shared)
    }

    pub(super) fn numbers(&self, at: usize) -> &Numbers {
        self.sets.get(at).and_then(|set| self.numbers.get(set)).map_or(&[], Vec::as_slice)
    }

    fn put(&mut self, xattrs: &[Xattr]) -> Result<Vec<Option<u32>>, &'static str> {
        let mut longest: Vec<usize> = (0..xattrs.len()).collect();
        longest.sort_by_key(|at| (std::cmp::Reverse(xattrs[*at].name.len() + xattrs[*at].value.len()), *at));
        let mut numbers = vec![None; xattrs.len()];
        for at in longest.into_iter().take(SHARED_MAX) {
            let number =
                u32::try_from(self.area.len() / 4).map_err(|_| "the length of all shared attributes")?;
            if push_own(&mut self.area, &xattrs[at])? {
                numbers[at] = Some(number);
            }
        }
        Ok(numbers)
    }
}

/// Appends nothing when there are none. An error names what does not fit.
pub(super) fn encode(inode: &Inode, shared: &Numbers, into: &mut Vec<u8>) -> Result<(), &'static str> {
    let start = into.len();
    into.extend_from_slice(&HEADER);
    let wanted = |xattr: &Xattr| takes_user_attributes(inode) || !xattr.name.starts_with(b"user.");
    for (_, number) in inode.meta.xattrs.iter().zip(shared).filter(|(xattr, _)| wanted(xattr)) {
        if let Some(number) = number {
            into[start + SHARED_COUNT_AT] += 1;
            into.extend_from_slice(&number.to_le_bytes());
        }
    }
    if let Node::File(Content::Object { digest, .. }) = &inode.node {
        push(into, TRUSTED, &[OVERLAY, b"metacopy"], b"")?;
        push(into, TRUSTED, &[OVERLAY, b"redirect"], format!("/{}", digest.path()).as_bytes())?;
    }
    for (at, xattr) in inode.meta.xattrs.iter().enumerate() {
        if wanted(xattr) && !matches!(shared.get(at), Some(Some(_))) {
            push_own(into, xattr)?;
        }
    }
    if into.len() == start + HEADER.len() {
        into.truncate(start);
    }
    if (into.len() - start) / 4 > usize::from(u16::MAX) {
        return Err("the length of all its extended attributes");
    }
    Ok(())
}

/// One attribute of the image's own; false when the format knows no such namespace.
fn push_own(into: &mut Vec<u8>, xattr: &Xattr) -> Result<bool, &'static str> {
    let Some((namespace, name)) = split(&xattr.name) else { return Ok(false) };
    match namespace {
        TRUSTED if name.starts_with(OVERLAY) => push(into, namespace, &[OVERLAY, name], &xattr.value)?,
        _ => push(into, namespace, &[name], &xattr.value)?,
    }
    Ok(true)
}

/// The namespaces that the format knows. Others are left out, as an unpacker leaves out what the file
/// system does not support.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    match name {
        b"system.posix_acl_access" => return Some((POSIX_ACL_ACCESS, b"")),
        b"system.posix_acl_default" => return Some((POSIX_ACL_DEFAULT, b"")),
        _ => {}
    }
    let namespaces: [(&[u8], u8); 3] = [(b"user.", USER), (b"trusted.", TRUSTED), (b"security.", SECURITY)];
    namespaces.iter().find_map(|(prefix, namespace)| Some((*namespace, name.strip_prefix(*prefix)?)))
}

/// Linux lets only files and directories have them; an unpacker leaves them out elsewhere.
fn takes_user_attributes(inode: &Inode) -> bool {
    matches!(inode.node, Node::File(_) | Node::Directory(_))
}

fn push(into: &mut Vec<u8>, namespace: u8, name: &[&[u8]], value: &[u8]) -> Result<(), &'static str> {
    let name_len: usize = name.iter().map(|part| part.len()).sum();
    let name_len = u8::try_from(name_len).map_err(|_| "the name of an extended attribute")?;
    let value_len = u16::try_from(value.len()).map_err(|_| "the value of an extended attribute")?;
    into.extend_from_slice(&[name_len, namespace]);
    into.extend_from_slice(&value_len.to_le_bytes());
    name.iter().for_each(|part| into.extend_from_slice(part));
    into.extend_from_slice(value);
    into.resize(into.len().next_multiple_of(4), 0);
    Ok(())
}
