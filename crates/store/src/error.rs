//! What can go wrong with a store, as far as a caller decides by it.

use std::error::Error;
use std::io::ErrorKind;

use object_store::Error as Cause;

/// Every variant names the operation and the object.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{operation} {object}: not in the store")]
    NotFound { operation: &'static str, object: String },
    #[error("{operation} {object}: the store refuses access: {reason}")]
    Denied { operation: &'static str, object: String, reason: String },
    #[error("{operation} {object}: the store is full: {reason}")]
    Full { operation: &'static str, object: String, reason: String },
    /// Worth another try later.
    #[error("{operation} {object}: the store does not answer: {reason}")]
    Unavailable { operation: &'static str, object: String, reason: String },
    #[error("{operation} {object}: {reason}")]
    Other { operation: &'static str, object: String, reason: String },
    /// A project, digest or address that cannot name anything in a store.
    #[error("not a valid {what}: {name:?}")]
    BadName { what: &'static str, name: String },
}

impl StoreError {
    pub(crate) fn new(operation: &'static str, object: &str, cause: &Cause) -> StoreError {
        let object = object.to_owned();
        let reason = reason(cause);
        let io = io_kind(cause);
        match (cause, io) {
            (Cause::NotFound { .. }, _) => StoreError::NotFound { operation, object },
            (Cause::PermissionDenied { .. } | Cause::Unauthenticated { .. }, _)
            | (_, Some(ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)) => {
                StoreError::Denied { operation, object, reason }
            }
            (_, Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded)) => {
                StoreError::Full { operation, object, reason }
            }
            // What a remote store could not finish within its own retries.
            (Cause::Generic { store, .. }, None) if *store != "LocalFileSystem" => {
                StoreError::Unavailable { operation, object, reason }
            }
            _ => StoreError::Other { operation, object, reason },
        }
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, StoreError::NotFound { .. })
    }
}

impl From<StoreError> for tonic::Status {
    fn from(error: StoreError) -> tonic::Status {
        let code = match &error {
            StoreError::NotFound { .. } => tonic::Code::NotFound,
            // The caller is not to blame for what the store refuses us.
            StoreError::Denied { .. } => tonic::Code::FailedPrecondition,
            StoreError::Full { .. } => tonic::Code::ResourceExhausted,
            StoreError::Unavailable { .. } => tonic::Code::Unavailable,
            StoreError::Other { .. } => tonic::Code::Internal,
            StoreError::BadName { .. } => tonic::Code::InvalidArgument,
        };
        tonic::Status::new(code, error.to_string())
    }
}

/// The operating system's own error, where one stands behind `cause`.
fn io_kind(cause: &Cause) -> Option<ErrorKind> {
    let mut next: Option<&(dyn Error + 'static)> = Some(cause);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        next = error.source();
    }
    None
}

/// The innermost message: the outer ones repeat the operation and the object.
fn reason(cause: &Cause) -> String {
    let mut innermost: &dyn Error = cause;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
