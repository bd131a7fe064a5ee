//! Exit codes: what a script may rely on.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed |
//! | 2 | wrong usage (clap's own) |
//! | 3 | the image cannot be streamed, or is named in a way that none can be; the message says why |
//! | 4 | there is no such image, file or mount, or the registry refused |
//! | 5 | `policy replay`: other policies decide differently |
//! | 6 | `serve`: another node works in the state folder |
//! | 125 | `run` only: sluice failed, the container's command did not run |
//! | 126, 127 | `run` only: the container's command cannot be executed, or there is none such |
//! | 130 | `import`: interrupted, as by ctrl-C |
//! | other | `run` only: the exit code of the container's command; 128 and the number of the signal that ended it |

use std::process::ExitCode;
use std::time::Duration;

use tonic::{Code, Status};

/// How long blocking work may hold up the exit.
pub const LINGER: Duration = Duration::from_secs(2);

pub const FAILED: u8 = 1;
pub const NOT_ELIGIBLE: u8 = 3;
pub const REFUSED: u8 = 4;
pub const DIFFERENT: u8 = 5;
pub const IN_USE: u8 = 6;
pub const RUN_FAILED: u8 = 125;
/// As a shell says it of what ctrl-C ended.
pub const INTERRUPTED: u8 = 130;

/// Carries the exit code that an error ends in, where its kind does not say it.
#[derive(Debug, thiserror::Error)]
#[error("{source:#}")]
pub struct ExitWith {
    pub code: u8,
    pub source: anyhow::Error,
}

/// Prints `error` to stderr, on one line, and picks the exit code.
pub fn failed(error: &anyhow::Error) -> ExitCode {
    crate::render::say(&format!("sluice: {}", explain(error)));
    ExitCode::from(code(error))
}

fn is_refusal(error: &registry::Error) -> bool {
    use registry::Error::{Denied, NotFound, Unauthorized};
    matches!(error, NotFound { .. } | Denied { .. } | Unauthorized { .. })
}

pub fn code(error: &anyhow::Error) -> u8 {
    if let Some(with) = error.downcast_ref::<ExitWith>() {
        return with.code;
    }
    if error.chain().any(|cause| cause.downcast_ref::<registry::Error>().is_some_and(is_refusal)) {
        return REFUSED;
    }
    if error.chain().any(|cause| cause.is::<frontend::InUse>()) {
        return IN_USE;
    }
    match error.chain().find_map(|cause| cause.downcast_ref::<Status>()).map(Status::code) {
        Some(Code::InvalidArgument) => NOT_ELIGIBLE,
        Some(Code::NotFound | Code::PermissionDenied | Code::Unauthenticated) => REFUSED,
        _ => FAILED,
    }
}

/// The chain of causes; of a status its message, not its debugging form.
pub fn explain(error: &anyhow::Error) -> String {
    if let Some(with) = error.downcast_ref::<ExitWith>() {
        return explain(&with.source);
    }
    let mut text = String::new();
    for cause in error.chain() {
        let part = match cause.downcast_ref::<Status>() {
            Some(status) if status.message().is_empty() => status.code().to_string(),
            Some(status) => status.message().to_owned(),
            None => cause.to_string(),
        };
        // A cause that its context already quotes is not said twice.
        if text.ends_with(&part) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&part);
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn codes_follow_the_kind_of_error_through_its_context() {
        let cases = [
            (Status::not_found("no manifest"), REFUSED),
            (Status::permission_denied("denied"), REFUSED),
            (Status::unauthenticated("who are you"), REFUSED),
            (Status::invalid_argument("schema 1"), NOT_ELIGIBLE),
            (Status::unavailable("try later"), FAILED),
            (Status::data_loss("corrupt"), FAILED),
        ];
        for (status, expected) in cases {
            let error = anyhow::Error::new(status.clone()).context("import app:1");
            assert_eq!(code(&error), expected, "{status}");
        }
        let run = ExitWith { code: RUN_FAILED, source: anyhow::anyhow!("no runc") };
        assert_eq!(code(&run.into()), RUN_FAILED);
    }

    #[test]
    fn explains_a_status_by_its_message() {
        let error = Err::<(), _>(Status::not_found("no manifest")).context("import app:1").unwrap_err();
        assert_eq!(explain(&error), "import app:1: no manifest");
    }
}
