//! Why a request is refused: the same few reasons in the whole mesh.
//!
//! Each is a gRPC code with a `google.rpc.ErrorInfo` of the domain [`DOMAIN`], whose reason is one of [`Refusal::reason`].
//! [`Refusal::of`] reads it back. Errors of other kinds (`DATA_LOSS`, `INTERNAL`, …) are faults, not refusals: they have no reason.

use std::collections::HashMap;
use std::time::Duration;

use names::Project;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, QuotaViolation, StatusExt as _};

/// Of all reasons of ours.
pub const DOMAIN: &str = "sluice.dev";
/// When to ask again who was busy. Callers spread it.
const BUSY_RETRY: Duration = Duration::from_millis(100);
/// The policy that refused, and its own stable code, in the details of [`Refusal::Invalid`].
pub const POLICY: &str = "policy";
pub const POLICY_REASON: &str = "policy_reason";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// Whoever was asked has too much to do at this moment; another instance may not.
    Busy,
    /// The project has used up what it may use in this minute or day.
    Quota,
    /// There is no memory, no disk or no store left for it.
    NoRoom,
    /// The caller may not: by the registry's word, its grant, or an operator's switch.
    Denied,
    /// It is being imported, or nobody has begun to.
    NotImported,
    /// Who could answer is away: a service, a registry, the store.
    Unreachable,
    /// What was asked for cannot stream, or the request is malformed. Asking again changes nothing.
    Invalid,
}

/// What a quota was of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted<'a> {
    pub project: &'a str,
    /// `content_bytes`
    pub metric: &'a str,
    /// The limit's name: `content_bytes-per-minute-per-project-per-region`
    pub limit: &'a str,
    pub value: u64,
    /// Until the window ends.
    pub retry: Duration,
}

impl Refusal {
    pub const ALL: [Refusal; 7] = [
        Refusal::Busy,
        Refusal::Quota,
        Refusal::NoRoom,
        Refusal::Denied,
        Refusal::NotImported,
        Refusal::Unreachable,
        Refusal::Invalid,
    ];

    /// As `ErrorInfo` has it.
    pub fn reason(self) -> &'static str {
        match self {
            Refusal::Busy => "BUSY",
            Refusal::Quota => "QUOTA_EXCEEDED",
            Refusal::NoRoom => "NO_ROOM",
            Refusal::Denied => "DENIED",
            Refusal::NotImported => "NOT_IMPORTED",
            Refusal::Unreachable => "UNREACHABLE",
            Refusal::Invalid => "INVALID",
        }
    }

    pub fn code(self) -> Code {
        match self {
            Refusal::Busy | Refusal::Quota | Refusal::NoRoom => Code::ResourceExhausted,
            Refusal::Denied => Code::PermissionDenied,
            Refusal::NotImported => Code::FailedPrecondition,
            Refusal::Unreachable => Code::Unavailable,
            Refusal::Invalid => Code::InvalidArgument,
        }
    }

    pub fn status(self, message: impl Into<String>) -> Status {
        self.with(message, HashMap::new(), None)
    }

    /// `metadata`: for machines. `retry`: when to ask again.
    pub fn with(
        self,
        message: impl Into<String>,
        metadata: HashMap<String, String>,
        retry: Option<Duration>,
    ) -> Status {
        let mut details = ErrorDetails::with_error_info(self.reason(), DOMAIN, metadata);
        let retry = retry.or_else(|| (self == Refusal::Busy).then_some(BUSY_RETRY));
        if retry.is_some() {
            details.set_retry_info(retry);
        }
        Status::with_error_details(self.code(), message, details)
    }

    /// Which one a status is; of one that others made, what its code says. None: it is a fault.
    pub fn of(status: &Status) -> Option<Refusal> {
        let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN);
        let named = info.and_then(|info| Refusal::ALL.into_iter().find(|it| it.reason() == info.reason));
        named.or_else(|| match status.code() {
            Code::ResourceExhausted if status.get_details_quota_failure().is_some() => Some(Refusal::Quota),
            Code::ResourceExhausted => Some(Refusal::NoRoom),
            Code::PermissionDenied | Code::Unauthenticated => Some(Refusal::Denied),
            Code::Unavailable | Code::DeadlineExceeded => Some(Refusal::Unreachable),
            Code::InvalidArgument | Code::FailedPrecondition | Code::Unimplemented => Some(Refusal::Invalid),
            _ => None,
        })
    }

    /// A quota is used up: with `QuotaFailure` and `RetryInfo`, as `google.rpc` has them.
    pub fn quota(exhausted: &Exhausted<'_>) -> Status {
        let Exhausted { project, metric, limit, value, retry } = *exhausted;
        let message = format!("project {project} has used up its {metric}: the limit {limit} is {value}");
        let pairs = [("project", project), ("metric", metric), ("limit", limit)];
        let metadata: HashMap<String, String> =
            pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let mut details = ErrorDetails::with_error_info(Refusal::Quota.reason(), DOMAIN, metadata);
        details.set_retry_info(Some(retry)).set_quota_failure(vec![QuotaViolation {
            quota_metric: metric.to_owned(),
            quota_id: limit.to_owned(),
            quota_value: i64::try_from(value).unwrap_or(i64::MAX),
            ..QuotaViolation::new(format!("project:{project}"), message.clone())
        }]);
        Status::with_error_details(Refusal::Quota.code(), message, details)
    }
}

/// A project as a request names it.
pub fn project(name: &str) -> Result<Project, Status> {
    Project::named(name).map_err(|error| Refusal::Invalid.status(error.to_string()))
}

/// When a refused caller may ask again, if that was said.
pub fn retry_after(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_read_back_as_what_it_was() {
        for refusal in Refusal::ALL {
            let status = refusal.status("because");
            assert_eq!(Refusal::of(&status), Some(refusal));
            assert_eq!((status.code(), status.message()), (refusal.code(), "because"));
            assert_eq!(retry_after(&status).is_some(), refusal == Refusal::Busy, "{refusal:?}");
        }
    }

    #[test]
    fn a_quota_says_which_and_when_to_come_back() {
        let exhausted = Exhausted {
            project: "team",
            metric: "imports",
            limit: "imports-per-day",
            value: 3,
            retry: Duration::from_secs(9),
        };
        let status = Refusal::quota(&exhausted);
        assert_eq!((Refusal::of(&status), status.code()), (Some(Refusal::Quota), Code::ResourceExhausted));
        assert_eq!(retry_after(&status), Some(Duration::from_secs(9)));
        let violations = status.get_details_quota_failure().unwrap().violations;
        assert_eq!(violations[0].subject, "project:team");
        assert_eq!((&*violations[0].quota_metric, &*violations[0].quota_id), ("imports", "imports-per-day"));
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.metadata.get("metric").map(String::as_str), Some("imports"));
    }

    #[test]
    fn what_others_refuse_is_told_by_its_code() {
        for (status, refusal) in [
            (Status::unauthenticated(""), Some(Refusal::Denied)),
            (Status::deadline_exceeded(""), Some(Refusal::Unreachable)),
            (Status::resource_exhausted(""), Some(Refusal::NoRoom)),
            (Status::data_loss(""), None),
            (Status::internal(""), None),
            (Status::not_found(""), None),
        ] {
            assert_eq!(Refusal::of(&status), refusal, "{status}");
        }
        let foreign = ErrorDetails::with_error_info("BUSY", "others.example", HashMap::new());
        let foreign = Status::with_error_details(Code::PermissionDenied, "", foreign);
        assert_eq!(Refusal::of(&foreign), Some(Refusal::Denied), "only our own reasons count");
    }
}
