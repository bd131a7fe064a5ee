//! What the quota service can be told, and how a limit is written.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use anyhow::ensure;
use bytesize::ByteSize;
use names::Project;
use proto::{QuotaMetric, QuotaMode, QuotaWindow};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The whole configuration of the service as a process of its own.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    pub lifecycle: lifecycle::Config,
    pub nats: bus::NatsConfig,
    pub quota: Config,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Of every project that has none of its own. Without any nothing is limited.
    pub limits: ProjectLimits,
    /// Limits of one project's own, by its name.
    pub projects: BTreeMap<Project, ProjectLimits>,
    /// Caches and fetchers that spend: blocks are cut for so many, or for as many as were heard of, if they are more; and each has
    /// this part of a limit while no quota service answers.
    pub spenders: u32,
}

/// Limits of one project.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProjectLimits {
    /// Chunks, trees and maps that caches are asked for.
    #[serde(skip_serializing_if = "MetricLimits::is_empty")]
    pub content_requests: MetricLimits,
    /// Stored bytes that caches send.
    #[serde(skip_serializing_if = "MetricLimits::is_empty")]
    pub content_bytes: MetricLimits,
    /// Images whose import begins.
    #[serde(skip_serializing_if = "MetricLimits::is_empty")]
    pub imports: MetricLimits,
}

/// Limits of one metric. What is absent is as it is for all projects; there, unlimited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricLimits {
    /// Of a minute of the clock, in each region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minute: Option<Amount>,
    /// Of a day of UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub day: Option<Amount>,
    /// Only watched: counted and told, and nothing is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<bool>,
}

/// How much: a number, a size (`10GiB`) or `unlimited`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    Unlimited,
    Limit(u64),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no limit: a number, a size like 10GiB, or unlimited expected")]
pub struct NotALimit(pub String);

/// What a region's name may be.
pub(crate) fn is_region(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    name.len() <= REGION_MAX && name.bytes().all(good)
}

/// Of a region's name, in bytes.
const REGION_MAX: usize = 64;

impl Default for Config {
    fn default() -> Config {
        Config { limits: ProjectLimits::default(), projects: BTreeMap::new(), spenders: 8 }
    }
}

impl Config {
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(self.spenders > 0, "quota.spenders is 0: at least one spends");
        Ok(())
    }
}

impl ProjectLimits {
    pub(crate) fn of(&self, metric: QuotaMetric, window: QuotaWindow) -> Option<(Amount, QuotaMode)> {
        let limits = match metric {
            QuotaMetric::ContentRequests => &self.content_requests,
            QuotaMetric::ContentBytes => &self.content_bytes,
            QuotaMetric::Imports => &self.imports,
            QuotaMetric::Unspecified => return None,
        };
        let amount = match window {
            QuotaWindow::Minute => limits.minute,
            QuotaWindow::Day => limits.day,
            QuotaWindow::Unspecified => None,
        };
        let mode = if limits.shadow == Some(true) { QuotaMode::Shadow } else { QuotaMode::Enforce };
        amount.map(|amount| (amount, mode))
    }
}

impl MetricLimits {
    fn is_empty(&self) -> bool {
        *self == MetricLimits::default()
    }
}

impl Amount {
    pub fn limit(self) -> Option<u64> {
        match self {
            Amount::Unlimited => None,
            Amount::Limit(limit) => Some(limit),
        }
    }
}

impl FromStr for Amount {
    type Err = NotALimit;

    fn from_str(text: &str) -> Result<Amount, NotALimit> {
        if text == "unlimited" {
            return Ok(Amount::Unlimited);
        }
        if let Ok(limit) = text.parse() {
            return Ok(Amount::Limit(limit));
        }
        let size = text.parse::<ByteSize>().map_err(|_| NotALimit(text.to_owned()))?;
        Ok(Amount::Limit(size.as_u64()))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Amount::Unlimited => formatter.write_str("unlimited"),
            Amount::Limit(limit) => write!(formatter, "{limit}"),
        }
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Amount::Unlimited => serializer.serialize_str("unlimited"),
            Amount::Limit(limit) => serializer.serialize_u64(*limit),
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Amount, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Amount;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a number, a size like 10GiB, or unlimited")
            }

            fn visit_u64<E: serde::de::Error>(self, limit: u64) -> Result<Amount, E> {
                Ok(Amount::Limit(limit))
            }

            fn visit_i64<E: serde::de::Error>(self, limit: i64) -> Result<Amount, E> {
                let limit = u64::try_from(limit);
                limit.map(Amount::Limit).map_err(|_| E::custom("a limit is not below 0"))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Amount, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written_as_people_count() {
        let config: Config = toml::from_str(
            r#"
            limits.content_requests = { minute = 100000, shadow = true }
            [projects.team-a]
            content_bytes.day = "10GiB"
            content_requests.minute = "unlimited"
            "#,
        )
        .unwrap();
        let (minute, day) = (QuotaWindow::Minute, QuotaWindow::Day);
        let (requests, bytes) = (QuotaMetric::ContentRequests, QuotaMetric::ContentBytes);
        assert_eq!(config.limits.of(requests, minute), Some((Amount::Limit(100_000), QuotaMode::Shadow)));
        assert_eq!(config.limits.of(requests, day), None);
        let team = &config.projects[&"team-a".parse::<Project>().unwrap()];
        assert_eq!(team.of(bytes, day), Some((Amount::Limit(10 << 30), QuotaMode::Enforce)));
        assert_eq!(team.of(requests, minute), Some((Amount::Unlimited, QuotaMode::Enforce)));
        let written = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<Config>(&written).unwrap(), config, "{written}");
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        for wrong in ["-1", "\"many\"", "1.5", "true", "\"10 parsecs\""] {
            let error = toml::from_str::<Config>(&format!("limits.imports.day = {wrong}")).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("limit") || text.contains("a number"), "{wrong}: {text}");
        }
        let nobody = Config { spenders: 0, ..Config::default() }.check().unwrap_err();
        assert!(nobody.to_string().contains("quota.spenders"));
        let name = toml::from_str::<Config>("projects.\"a b\".imports.day = 1").unwrap_err();
        assert!(name.to_string().contains("a b"), "{name}");
    }
}
