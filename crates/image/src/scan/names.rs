//! What a member's name says: layers mark what is gone by names (OCI image specification, layers).

use crate::limits::PATH_MAX;
use crate::path::{self, PathError};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names that aufs kept for itself: `.wh..wh.plnk`, `.wh..wh.orph`, `.wh..wh.aufs`.
const BOOKKEEPING: &[u8] = b".wh..wh.";

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    Plain(Vec<u8>),
    /// What stands at this path below is gone.
    Whiteout(Vec<u8>),
    /// What stands in this directory below is gone.
    Opaque(Vec<u8>),
    /// No file of the image.
    Bookkeeping,
    Refused(PathError),
}

/// Reads a normal path.
pub(super) fn classify(path: Vec<u8>) -> Name {
    let (directory, name) = path::split(&path);
    if name == OPAQUE {
        return Name::Opaque(directory.to_vec());
    }
    if path.split(|&byte| byte == b'/').any(|component| component.starts_with(BOOKKEEPING)) {
        return Name::Bookkeeping;
    }
    let Some(gone) = name.strip_prefix(WHITEOUT) else { return Name::Plain(path) };
    match gone {
        b"" | b"." => Name::Refused(PathError::NotNormal),
        b".." => Name::Refused(PathError::DotDot),
        _ if directory.is_empty() => Name::Whiteout(gone.to_vec()),
        _ => Name::Whiteout([directory, b"/", gone].concat()),
    }
}

/// A hard link's target in normal form.
pub(super) fn link_target(raw: &[u8]) -> Result<Vec<u8>, String> {
    let target = path::normalise(raw)
        .map_err(|error| format!("a hard link whose target {:?} {error}", String::from_utf8_lossy(raw)))?;
    match target.is_empty() {
        true => Err("a hard link to the root".into()),
        false => Ok(target),
    }
}

/// A symbolic link's target: kept as it is, if Linux could make such a link.
pub(super) fn symlink_target(target: Vec<u8>) -> Result<Vec<u8>, String> {
    match (1..PATH_MAX).contains(&target.len()) && !target.contains(&0) {
        true => Ok(target),
        false => Err(format!("a symbolic link with a target of {} bytes", target.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mark_what_is_gone() {
        let plain = |path: &[u8]| Name::Plain(path.to_vec());
        let cases: &[(&[u8], Name)] = &[
            (b"", plain(b"")),
            (b"a/b", plain(b"a/b")),
            (b"a/.whx", plain(b"a/.whx")),
            (b".wh.dir/file", plain(b".wh.dir/file")),
            (b".wh.a", Name::Whiteout(b"a".to_vec())),
            (b"a/.wh.b", Name::Whiteout(b"a/b".to_vec())),
            (b"a/.wh..b", Name::Whiteout(b"a/.b".to_vec())),
            (b".wh..wh..opq", Name::Opaque(Vec::new())),
            (b"a/b/.wh..wh..opq", Name::Opaque(b"a/b".to_vec())),
            (b".wh..wh.aufs", Name::Bookkeeping),
            (b".wh..wh.plnk/1.2", Name::Bookkeeping),
            (b".wh.", Name::Refused(PathError::NotNormal)),
            (b"a/.wh..", Name::Refused(PathError::NotNormal)),
            (b"a/.wh...", Name::Refused(PathError::DotDot)),
        ];
        for (path, meaning) in cases {
            assert_eq!(classify(path.to_vec()), *meaning, "{:?}", String::from_utf8_lossy(path));
        }
    }

    #[test]
    fn link_targets_stay_inside() {
        assert_eq!(link_target(b"usr/bin/perl").as_deref(), Ok(&b"usr/bin/perl"[..]));
        assert_eq!(link_target(b"./a/./b").as_deref(), Ok(&b"a/b"[..]));
        assert_eq!(link_target(b"//usr/bin/perl").as_deref(), Ok(&b"usr/bin/perl"[..]));
        for refused in [&b""[..], b"/", b".", b"../a", b"a/../../b", b"a\0b"] {
            assert!(link_target(refused).is_err(), "{refused:?}");
        }
    }
}
