//! Names inside an image: byte strings, relative to its root, in one normal form.
//!
//! Normal: components joined by single slashes, none of them empty, `.` or `..`; the root is the
//! empty path. Not necessarily UTF-8.

use crate::limits::{DEPTH_MAX, NAME_MAX, PATH_MAX};

/// Why a name cannot stand in an image.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PathError {
    #[error("has a \"..\" component")]
    DotDot,
    #[error("holds a NUL byte")]
    Nul,
    #[error("is longer than {PATH_MAX} bytes")]
    TooLong,
    #[error("has a component longer than {NAME_MAX} bytes")]
    NameTooLong,
    #[error("is nested deeper than {DEPTH_MAX} directories")]
    TooDeep,
    #[error("is empty")]
    Empty,
    #[error("is not in normal form")]
    NotNormal,
}

/// The normal form of a name as an archive writes it: `./a//b/` and `/a/b` are `a/b`. The root of an absolute name is the
/// image's, as whoever unpacks layers takes it: some builders write `/` for the root itself, some all names so.
pub fn normalise(raw: &[u8]) -> Result<Vec<u8>, PathError> {
    let mut path = Vec::with_capacity(raw.len());
    for component in raw.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => return Err(PathError::DotDot),
            _ => {}
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(component);
    }
    check(&path)?;
    Ok(path)
}

/// Refuses a path that is not in normal form, or that Linux could not open.
pub fn check(path: &[u8]) -> Result<(), PathError> {
    if path.is_empty() {
        return Ok(());
    }
    // PATH_MAX counts the terminating NUL.
    if path.len() >= PATH_MAX {
        return Err(PathError::TooLong);
    }
    if path.contains(&0) {
        return Err(PathError::Nul);
    }
    let mut depth = 0;
    for component in path.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => return Err(PathError::NotNormal),
            b".." => return Err(PathError::DotDot),
            _ if component.len() > NAME_MAX => return Err(PathError::NameTooLong),
            _ => depth += 1,
        }
    }
    if depth > DEPTH_MAX {
        return Err(PathError::TooDeep);
    }
    Ok(())
}

/// Splits a normal path into its directory (empty for the root) and its last component.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brings_names_into_normal_form() {
        let cases: &[(&[u8], &[u8])] = &[
            (b"", b""),
            (b".", b""),
            (b"./", b""),
            (b"/", b""),
            (b"//./", b""),
            (b"/etc/passwd", b"etc/passwd"),
            (b"a", b"a"),
            (b"./a/b/", b"a/b"),
            (b"a//./b", b"a/b"),
            (b"..a/b..", b"..a/b.."),
            (b"\xff\xfe/x", b"\xff\xfe/x"),
        ];
        for (raw, normal) in cases {
            assert_eq!(normalise(raw).as_deref(), Ok(*normal), "{raw:?}");
            assert_eq!(check(normal), Ok(()), "{normal:?}");
        }
    }

    #[test]
    fn refuses_names_that_lead_elsewhere() {
        let long_name = vec![b'n'; NAME_MAX + 1];
        let long_path = b"dir/".repeat(PATH_MAX / 4);
        let deep = b"d/".repeat(DEPTH_MAX + 1);
        let cases: &[(&[u8], PathError)] = &[
            (b"..", PathError::DotDot),
            (b"/..", PathError::DotDot),
            (b"a/../b", PathError::DotDot),
            (b"a/..", PathError::DotDot),
            (b"a\0b", PathError::Nul),
            (&long_name, PathError::NameTooLong),
            (&deep, PathError::TooDeep),
        ];
        for (raw, refusal) in cases {
            assert_eq!(normalise(raw), Err(*refusal), "{raw:?}");
        }
        assert!(normalise(&long_path[..long_path.len() - 2]).is_ok());
        assert_eq!(normalise(&b"dir/".repeat(PATH_MAX / 4 + 1)), Err(PathError::TooLong));
        for path in [&b"a/"[..], b"/a", b"a//b", b"./a"] {
            assert_eq!(check(path), Err(PathError::NotNormal), "{path:?}");
        }
    }

    #[test]
    fn splits_off_the_last_component() {
        assert_eq!(split(b"a/b/c"), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(split(b"a"), (&b""[..], &b"a"[..]));
    }
}
