//! Where a root is to be mounted, checked before anything is made for it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{MountError, table};

/// An existing, empty directory where nothing is mounted; without symbolic links in its path.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) point: PathBuf,
    pub(crate) upper: Option<Upper>,
}

/// The container's writable layer.
#[derive(Debug)]
pub(crate) struct Upper {
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
}

impl Target {
    /// Empty `upper` and `work` mean a read-only root.
    pub(crate) fn check(point: &str, upper: &str, work: &str) -> Result<Target, MountError> {
        let point = directory("mount point", point)?;
        if table::read()?.iter().any(|entry| entry.point == point) {
            return Err(MountError::InUse(point));
        }
        let mut entries = fs::read_dir(&point)
            .map_err(|source| MountError::kernel("list the mount point", &point, source))?;
        if entries.next().is_some() {
            return Err(MountError::NotEmpty(point));
        }
        Ok(Target { point, upper: Upper::check(upper, work)? })
    }
}

impl Upper {
    fn check(upper: &str, work: &str) -> Result<Option<Upper>, MountError> {
        if upper.is_empty() && work.is_empty() {
            return Ok(None);
        }
        if upper.is_empty() || work.is_empty() {
            return Err(MountError::Upper("one of them is missing".to_owned()));
        }
        let (upper, work) = (directory("upper", upper)?, directory("work", work)?);
        if device(&upper)? != device(&work)? {
            return Err(MountError::Upper(format!("{upper:?} and {work:?} are on two")));
        }
        if upper.starts_with(&work) || work.starts_with(&upper) {
            return Err(MountError::Upper(format!("{upper:?} and {work:?} overlap")));
        }
        Ok(Some(Upper { upper, work }))
    }
}

/// The path as given to `unmount`, as it stands in the mount table. The target itself may be gone or
/// unreadable, so only what leads to it is resolved when it cannot be.
pub(crate) fn resolve(point: &str) -> Result<PathBuf, MountError> {
    let path = Path::new(point);
    if !path.is_absolute() {
        return Err(MountError::Relative { what: "mount point", path: path.to_owned() });
    }
    Ok(path.canonicalize().unwrap_or_else(|_| path.to_owned()))
}

fn directory(what: &'static str, path: &str) -> Result<PathBuf, MountError> {
    let path = PathBuf::from(path);
    if !path.is_absolute() {
        return Err(MountError::Relative { what, path });
    }
    match path.canonicalize() {
        Ok(resolved) if resolved.is_dir() => Ok(resolved),
        Ok(_) => Err(MountError::NotADirectory { what, path }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(MountError::Missing { what, path }),
        Err(source) => Err(MountError::kernel("resolve", &path, source)),
    }
}

fn device(path: &Path) -> Result<u64, MountError> {
    let metadata = fs::metadata(path).map_err(|source| MountError::kernel("look at", path, source))?;
    Ok(metadata.dev())
}
