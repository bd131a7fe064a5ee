//! Names of what is limited, and the refusal that says which limit is used up.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, QuotaViolation, StatusExt};

use crate::{QuotaMetric, QuotaWindow};

/// The reason of a refusal, in its `ErrorInfo`.
pub const REASON: &str = "quota";
/// Who says so, in its `ErrorInfo`.
const DOMAIN: &str = "sluice";

/// A limit that is used up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhausted {
    pub metric: QuotaMetric,
    pub window: QuotaWindow,
    pub project: String,
    pub region: String,
    pub limit: u64,
    /// When it is worth asking again.
    pub retry: Duration,
    /// Nobody hands out more: the quota service does not answer.
    pub unanswered: bool,
}

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

impl Exhausted {
    pub fn status(&self) -> Status {
        let name = limit_name(self.metric, self.window);
        let (project, metric) = (&self.project, self.metric.code());
        let (limit, window, seconds) = (self.limit, self.window.code(), self.retry.as_secs().max(1));
        let message = match self.unanswered {
            true => format!(
                "quota {name} of project {project}: the quota service does not answer, and what may be spent without it is used up: \
                 ask again in {seconds} s"
            ),
            false => format!(
                "quota {name} of project {project} is used up ({limit} in a {window}): ask again in {seconds} s, or have it raised \
                 (`sluice quota set`)"
            ),
        };
        let mut dimensions = HashMap::from([("project".to_owned(), project.clone())]);
        if self.window == QuotaWindow::Minute {
            dimensions.insert("region".to_owned(), self.region.clone());
        }
        let violation = QuotaViolation {
            subject: format!("project:{project}"),
            description: message.clone(),
            api_service: DOMAIN.to_owned(),
            quota_metric: metric.to_owned(),
            quota_id: name.clone(),
            quota_dimensions: dimensions.clone(),
            quota_value: i64::try_from(self.limit).unwrap_or(i64::MAX),
            futura_quota_value: None,
        };
        let mut metadata = dimensions;
        metadata.extend([("metric".to_owned(), metric.to_owned()), ("limit".to_owned(), name)]);
        let mut details = ErrorDetails::with_quota_failure(vec![violation]);
        details.set_retry_info(Some(self.retry));
        details.set_error_info(REASON, DOMAIN, metadata);
        Status::with_error_details(Code::ResourceExhausted, message, details)
    }
}

impl Refused {
    /// What a refusal says, if it is one for want of quota.
    pub fn of(status: &Status) -> Option<Refused> {
        if status.code() != Code::ResourceExhausted {
            return None;
        }
        let violation = status.get_details_quota_failure()?.violations.into_iter().next()?;
        let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
        Some(Refused {
            subject: violation.subject,
            metric: violation.quota_metric,
            limit: violation.quota_id,
            message: status.message().to_owned(),
            retry: retry.unwrap_or(RETRY_DEFAULT),
        })
    }

    /// The same refusal, handed on by who was refused, in its own words.
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
        details.set_error_info(REASON, DOMAIN, metadata.map(|(name, value)| (name.to_owned(), value.clone())));
        Status::with_error_details(Code::ResourceExhausted, message, details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_metric_limit_and_project_and_is_read_back() {
        let status = Exhausted {
            metric: QuotaMetric::ContentBytes,
            window: QuotaWindow::Minute,
            project: "team".to_owned(),
            region: "eu-1".to_owned(),
            limit: 1000,
            retry: Duration::from_secs(42),
            unanswered: false,
        }
        .status();
        assert_eq!(status.code(), Code::ResourceExhausted);
        let violation = status.get_details_quota_failure().unwrap().violations.remove(0);
        assert_eq!(violation.subject, "project:team");
        assert_eq!((violation.quota_value, violation.quota_dimensions["region"].as_str()), (1000, "eu-1"));
        assert_eq!(status.get_details_error_info().unwrap().reason, REASON);
        assert!(status.details().len() < 4096, "it fits in a header");
        let refused = Refused::of(&status).unwrap();
        assert_eq!(refused.metric, "content_bytes");
        assert_eq!(refused.limit, "content_bytes_per_project_region_minute");
        assert_eq!(refused.retry, Duration::from_secs(42));
        let handed_on = Refused::of(&refused.status("no tree".to_owned())).unwrap();
        assert_eq!(handed_on, Refused { message: "no tree".to_owned(), ..refused });
        assert_eq!(Refused::of(&Status::resource_exhausted("busy")), None);
    }

    #[test]
    fn every_name_is_found_again() {
        assert!(QuotaMetric::ALL.iter().all(|metric| QuotaMetric::from_code(metric.code()) == Some(*metric)));
        assert!(QuotaWindow::ALL.iter().all(|window| QuotaWindow::from_code(window.code()) == Some(*window)));
        assert_eq!(QuotaMetric::from_code("unspecified"), None);
    }
}
