//! An inode's extended attributes as they stand behind it.
//!
//! `header (12 bytes, no shared attributes) | entry …`, an entry being
//! `name length (u8) | namespace (u8) | value length (u16) | name | value`, padded to four bytes.

use crate::merge::{Inode, Node};
use crate::record::Content;

pub(super) const HEADER: [u8; 12] = [0; 12];

const USER: u8 = 1;
const POSIX_ACL_ACCESS: u8 = 2;
const POSIX_ACL_DEFAULT: u8 = 3;
const TRUSTED: u8 = 4;
const SECURITY: u8 = 6;

/// What overlayfs keeps for itself inside `trusted.`; twice, it stands for the image's own.
const OVERLAY: &[u8] = b"overlay.";

/// Appends nothing when there are none. An error names what does not fit.
pub(super) fn encode(inode: &Inode<'_>, into: &mut Vec<u8>) -> Result<(), &'static str> {
    let start = into.len();
    into.extend_from_slice(&HEADER);
    if let Node::File(Content::Object { digest, .. }) = &inode.node {
        push(into, TRUSTED, &[OVERLAY, b"metacopy"], b"")?;
        push(into, TRUSTED, &[OVERLAY, b"redirect"], format!("/{}", digest.path()).as_bytes())?;
    }
    for xattr in &inode.meta.xattrs {
        let Some((namespace, name)) = split(&xattr.name) else { continue };
        match namespace {
            USER if !takes_user_attributes(inode) => {}
            TRUSTED if name.starts_with(OVERLAY) => push(into, namespace, &[OVERLAY, name], &xattr.value)?,
            _ => push(into, namespace, &[name], &xattr.value)?,
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
fn takes_user_attributes(inode: &Inode<'_>) -> bool {
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
