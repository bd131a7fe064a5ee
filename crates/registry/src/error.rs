//! Why a registry, or another place that holds images, did not give what was asked of it.
//!
//! Each kind tells the caller what to do next; every message names the image and the cause.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such image, or no such part of it.
    #[error("{image}: {what} not found{}", spaced(detail))]
    NotFound { image: String, what: String, detail: String },
    /// The registry wants a (different) credential.
    #[error("{image}: {host} wants a credential{}", spaced(detail))]
    Unauthorized { image: String, host: String, detail: String },
    /// The credential is known and does not suffice.
    #[error("{image}: {host} refuses access{}", spaced(detail))]
    Denied { image: String, host: String, detail: String },
    /// The image exists and is of a kind that cannot be streamed, or not for this platform.
    #[error("{image}: {reason}")]
    Unsupported { image: String, reason: String },
    /// What the source holds contradicts itself.
    #[error("{image}: {what} is corrupt: {reason}")]
    Corrupt { image: String, what: String, reason: String },
    /// The registry did not answer, or not sensibly, in all attempts: worth another try later.
    #[error("{image}: {host} cannot be reached: {reason}")]
    Unreachable { image: String, host: String, reason: String },
    /// The registry asks to come back later, and later is too late.
    #[error("{image}: {host} limits requests{}", spaced(detail))]
    Limited { image: String, host: String, detail: String },
    /// A local file or folder could not be read.
    #[error("{image}: cannot read {}: {source}", path.display())]
    Local { image: String, path: PathBuf, source: std::io::Error },
}

impl Error {
    pub fn corrupt(image: &str, what: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Corrupt { image: image.to_owned(), what: what.into(), reason: reason.into() }
    }

    pub fn unsupported(image: &str, reason: impl Into<String>) -> Error {
        Error::Unsupported { image: image.to_owned(), reason: reason.into() }
    }

    pub fn not_found(image: &str, what: impl Into<String>, detail: impl Into<String>) -> Error {
        Error::NotFound { image: image.to_owned(), what: what.into(), detail: detail.into() }
    }

    pub fn local(image: &str, path: impl Into<PathBuf>, source: std::io::Error) -> Error {
        let path = path.into();
        if source.kind() == std::io::ErrorKind::NotFound {
            return Error::not_found(image, path.display().to_string(), "");
        }
        Error::Local { image: image.to_owned(), path, source }
    }
}

/// `: detail`, or nothing.
fn spaced(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

/// Hostile text, short enough for a message and on one line.
pub fn brief(text: &str) -> String {
    const SHOWN_CHARS: usize = 120;
    format!("{:?}", text.chars().take(SHOWN_CHARS).collect::<String>())
}
