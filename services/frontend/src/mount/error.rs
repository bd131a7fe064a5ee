//! What can be wrong with a mount, so that the caller can say what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use tonic::{Code, Status};

#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    #[error("{what} {path:?} is not an absolute path")]
    Relative { what: &'static str, path: PathBuf },
    #[error("{what} {path:?} does not exist")]
    Missing { what: &'static str, path: PathBuf },
    #[error("{what} {path:?} is not a directory")]
    NotADirectory { what: &'static str, path: PathBuf },
    #[error("mount point {0:?} is not empty")]
    NotEmpty(PathBuf),
    #[error("mount point {0:?} is in use: something is mounted there")]
    InUse(PathBuf),
    #[error("{0:?} is busy: a process works in it or has a file of it open")]
    Busy(PathBuf),
    #[error("nothing of ours is mounted at {0:?}")]
    NotMounted(PathBuf),
    #[error("upper and work must be given together, as two folders of one file system: {0}")]
    Upper(String),
    #[error("{0:?} is longer than the {limit} bytes that the kernel takes for a layer", limit = super::root::LAYER_PATH_MAX)]
    TooLong(PathBuf),
    #[error("cannot {operation} {path:?}: {source}{}", if .detail.is_empty() { String::new() } else { format!(" ({})", .detail) })]
    Kernel { operation: &'static str, path: PathBuf, source: io::Error, detail: String },
    #[error("cannot read the mount table: {0}")]
    Table(#[from] io::Error),
}

impl MountError {
    pub(super) fn kernel(operation: &'static str, path: &Path, source: io::Error) -> MountError {
        MountError::Kernel { operation, path: path.to_owned(), source, detail: String::new() }
    }
}

impl From<MountError> for Status {
    fn from(error: MountError) -> Status {
        let code = match &error {
            MountError::Relative { .. }
            | MountError::NotADirectory { .. }
            | MountError::Upper(_)
            | MountError::TooLong(_) => Code::InvalidArgument,
            MountError::Missing { .. } | MountError::NotMounted(_) => Code::NotFound,
            MountError::NotEmpty(_) | MountError::InUse(_) | MountError::Busy(_) => Code::FailedPrecondition,
            MountError::Kernel { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Code::ResourceExhausted
            }
            MountError::Kernel { .. } | MountError::Table(_) => Code::Internal,
        };
        Status::new(code, error.to_string())
    }
}
