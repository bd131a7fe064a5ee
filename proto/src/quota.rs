//! Names of what is limited, and what a refusal says of it.

use std::time::Duration;

use tonic::Status;
use tonic_types::{ErrorDetails, QuotaViolation, StatusExt};

use crate::refusal::{DOMAIN, retry_after};
use crate::{QuotaMetric, QuotaWindow, Refusal};

/// What a refusal for want of quota says to whoever was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// `project:<name>`
    pub subject: String,
    pub metric: String,
    /// The limit's name.
    pub limit: String,
    pub message: String,
    pub retry: Duration,
}

/// For a refusal that does not say when to ask again.
const RETRY_DEFAULT: Duration = Duration::from_secs(5);

impl QuotaMetric {
    pub const ALL: [QuotaMetric; 3] =
        [QuotaMetric::ContentRequests, QuotaMetric::ContentBytes, QuotaMetric::Imports];

    /// As users, metrics and errors name it.
    pub fn code(self) -> &'static str {
        match self {
            QuotaMetric::Unspecified => "unspecified",
            QuotaMetric::ContentRequests => "content_requests",
            QuotaMetric::ContentBytes => "content_bytes",
            QuotaMetric::Imports => "imports",
        }
    }

    pub fn from_code(code: &str) -> Option<QuotaMetric> {
        QuotaMetric::ALL.into_iter().find(|metric| metric.code() == code)
    }
}

impl QuotaWindow {
    pub const ALL: [QuotaWindow; 2] = [QuotaWindow::Minute, QuotaWindow::Day];

    /// As users and metrics name it.
    pub fn code(self) -> &'static str {
        match self {
            QuotaWindow::Unspecified => "unspecified",
            QuotaWindow::Minute => "minute",
            QuotaWindow::Day => "day",
        }
    }

    pub fn from_code(code: &str) -> Option<QuotaWindow> {
        QuotaWindow::ALL.into_iter().find(|window| window.code() == code)
    }

    pub fn length(self) -> Duration {
        match self {
            QuotaWindow::Day => Duration::from_secs(24 * 60 * 60),
            QuotaWindow::Minute | QuotaWindow::Unspecified => Duration::from_secs(60),
        }
    }
}

/// A limit's name: `content_requests_per_project_region_minute`.
pub fn limit_name(metric: QuotaMetric, window: QuotaWindow) -> String {
    let of = match window {
        QuotaWindow::Day => "project_day",
        QuotaWindow::Minute | QuotaWindow::Unspecified => "project_region_minute",
    };
    format!("{}_per_{of}", metric.code())
}

impl Refused {
    /// What a refusal says, if it is one for want of quota.
    pub fn of(status: &Status) -> Option<Refused> {
        if Refusal::of(status) != Some(Refusal::Quota) {
            return None;
        }
        let violation = status.get_details_quota_failure()?.violations.into_iter().next()?;
        Some(Refused {
            subject: violation.subject,
            metric: violation.quota_metric,
            limit: violation.quota_id,
            message: status.message().to_owned(),
            retry: retry_after(status).unwrap_or(RETRY_DEFAULT),
        })
    }

    /// The same refusal in other words: handed on by who was refused.
    pub fn status(&self, message: String) -> Status {
        let violation = QuotaViolation {
            subject: self.subject.clone(),
            description: self.message.clone(),
            quota_metric: self.metric.clone(),
            quota_id: self.limit.clone(),
            ..QuotaViolation::default()
        };
        let mut details = ErrorDetails::with_quota_failure(vec![violation]);
        details.set_retry_info(Some(self.retry));
        let metadata = [("metric", &self.metric), ("limit", &self.limit)];
        details.set_error_info(
            Refusal::Quota.reason(),
            DOMAIN,
            metadata.map(|(name, value)| (name.to_owned(), value.clone())),
        );
        Status::with_error_details(Refusal::Quota.code(), message, details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Exhausted;

    #[test]
    fn a_refusal_is_read_back_and_handed_on() {
        let status = Refusal::quota(&Exhausted {
            project: "team",
            metric: QuotaMetric::ContentBytes.code(),
            limit: &limit_name(QuotaMetric::ContentBytes, QuotaWindow::Minute),
            value: 1000,
            retry: Duration::from_secs(42),
        });
        assert!(status.details().len() < 4096, "it fits in a header");
        let refused = Refused::of(&status).unwrap();
        assert_eq!((refused.subject.as_str(), refused.metric.as_str()), ("project:team", "content_bytes"));
        assert_eq!(refused.limit, "content_bytes_per_project_region_minute");
        assert_eq!(refused.retry, Duration::from_secs(42));
        let handed_on = Refused::of(&refused.status("no tree".to_owned())).unwrap();
        assert_eq!(handed_on, Refused { message: "no tree".to_owned(), ..refused });
        for other in [Refusal::Busy.status("busy"), Status::resource_exhausted("full")] {
            assert_eq!(Refused::of(&other), None);
        }
    }

    #[test]
    fn every_name_is_found_again() {
        assert!(QuotaMetric::ALL.iter().all(|metric| QuotaMetric::from_code(metric.code()) == Some(*metric)));
        assert!(QuotaWindow::ALL.iter().all(|window| QuotaWindow::from_code(window.code()) == Some(*window)));
        assert_eq!(QuotaMetric::from_code("unspecified"), None);
    }
}
