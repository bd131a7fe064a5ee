//! Why an import ended: always with the image's name, the layer where there is one, and the cause.

use image::encoding::EncodingError;
use image::erofs::TreeError;
use image::merge::MergeError;
use image::scan::ScanError;
use store::StoreError;
use tonic::{Code, Status};

use crate::marker::Busy;
use crate::source::SourceError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("{image}: layer {layer}: {fault}")]
    Layer { image: String, layer: String, fault: Box<LayerFault> },
    #[error("{image}: {cause}")]
    Merge { image: String, cause: MergeError },
    #[error("{image}: {cause}")]
    Tree { image: String, cause: TreeError },
    #[error("{image}: {cause}")]
    Encoding { image: String, cause: EncodingError },
    #[error("{image}: {cause}")]
    Store { image: String, cause: StoreError },
    #[error("{image}: {cause}")]
    Busy { image: String, cause: Busy },
    /// The process is about to end; what was stored stays, and the next import goes on from there.
    #[error("{image}: the fetcher stops")]
    Stopped { image: String },
    #[error("{image}: {reason}")]
    Internal { image: String, reason: String },
}

/// What is wrong with one layer, or with reading it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerFault {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("the blob's digest is {found}")]
    Digest { found: String },
    #[error("the blob has {found} bytes, {expected} were promised")]
    Size { found: u64, expected: u64 },
    #[error("its tar has the diff id {found}, {expected} was promised")]
    DiffId { found: String, expected: String },
    #[error("it is compressed with {0}, which no image may be")]
    Compression(&'static str),
    #[error("it cannot be inflated: {0}")]
    Inflate(std::io::Error),
    #[error("it inflates to more than the limit of {0} bytes")]
    TooLarge(u64),
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Encoding(#[from] EncodingError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    Internal(String),
}

impl From<ImportError> for Status {
    fn from(error: ImportError) -> Status {
        Status::new(error.code(), error.to_string())
    }
}

impl ImportError {
    fn code(&self) -> Code {
        match self {
            ImportError::Merge { .. } | ImportError::Tree { .. } => Code::InvalidArgument,
            ImportError::Source(error) => source_code(error),
            ImportError::Layer { fault, .. } => fault.code(),
            ImportError::Store { cause, .. } => store_code(cause),
            ImportError::Busy { cause: Busy::Store(cause), .. } => store_code(cause),
            ImportError::Busy { .. } | ImportError::Stopped { .. } => Code::Unavailable,
            ImportError::Encoding { .. } | ImportError::Internal { .. } => Code::Internal,
        }
    }
}

impl LayerFault {
    fn code(&self) -> Code {
        match self {
            LayerFault::Source(error) => source_code(error),
            LayerFault::Digest { .. } | LayerFault::Size { .. } | LayerFault::DiffId { .. } => Code::DataLoss,
            LayerFault::Compression(_)
            | LayerFault::Inflate(_)
            | LayerFault::TooLarge(_)
            | LayerFault::Scan(_) => Code::InvalidArgument,
            LayerFault::Store(cause) => store_code(cause),
            LayerFault::Encoding(_) | LayerFault::Internal(_) => Code::Internal,
        }
    }
}

pub(crate) fn source_status(error: SourceError) -> Status {
    Status::new(source_code(&error), error.to_string())
}

fn source_code(error: &SourceError) -> Code {
    match error {
        SourceError::NotFound { .. } => Code::NotFound,
        SourceError::Unauthorized { .. } => Code::Unauthenticated,
        SourceError::Denied { .. } => Code::PermissionDenied,
        SourceError::Unsupported { .. } => Code::InvalidArgument,
        SourceError::Corrupt { .. } => Code::DataLoss,
        SourceError::Unreachable { .. } | SourceError::Limited { .. } => Code::Unavailable,
        SourceError::Local { .. } => Code::FailedPrecondition,
    }
}

fn store_code(error: &StoreError) -> Code {
    match error {
        StoreError::Denied { .. } => Code::FailedPrecondition,
        StoreError::Full { .. } => Code::ResourceExhausted,
        StoreError::Unavailable { .. } => Code::Unavailable,
        StoreError::BadName { .. } => Code::InvalidArgument,
        StoreError::NotFound { .. } | StoreError::Other { .. } => Code::Internal,
    }
}
