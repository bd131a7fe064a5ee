//! Live limits: a table in which each limit that was set stands by project, metric and window.
//!
//! A key is `PROJECT/METRIC/WINDOW`, with `*` for all projects; a value is JSON: `{"limit":100000,"shadow":false}`, with
//! `"unlimited"` for none. Whoever may write to the bucket can change it, so what cannot be read is told, and the limit before it
//! stays.

use std::sync::Arc;

use bus::{Change, TableChanges};
use futures::StreamExt as _;
use names::Project;
use proto::{QuotaMetric, QuotaMode, QuotaWindow};
use serde::{Deserialize, Serialize};

use crate::config::Amount;
use crate::limits::{Limit, LimitKey, Limits};
use crate::meters;

pub(crate) const TABLE: &str = "quota-limits";
/// For all projects.
const ALL: &str = "*";

/// Why what stands in the table is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadLimit {
    #[error("the key {0:?} is not PROJECT/METRIC/WINDOW")]
    Key(String),
    #[error("the value is not a limit: {0}")]
    Value(String),
}

/// A value of the table.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    limit: Amount,
    #[serde(default)]
    shadow: bool,
}

/// Takes over what changes, for as long as it does.
pub(crate) async fn follow(mut changes: TableChanges, limits: Arc<Limits>) {
    while let Some(change) = changes.next().await {
        match change {
            Change::Settled => limits.settled(),
            Change::Put(entry) => {
                let read =
                    parse_key(&entry.key).and_then(|key| parse_value(&entry.value).map(|limit| (key, limit)));
                match read {
                    Ok((key, limit)) => limits.set(key, Some(limit)),
                    Err(error) => refused(&entry.key, &error),
                }
            }
            Change::Deleted(key) => match parse_key(&key) {
                Ok(key) => limits.set(key, None),
                Err(error) => refused(&key, &error),
            },
        }
    }
}

fn refused(key: &str, error: &BadLimit) {
    meters::bad_limit();
    tracing::error!(key, %error, "a live limit cannot be used: the one before stays");
}

pub(crate) fn write_key(key: &LimitKey) -> String {
    let project = key.project.as_ref().map_or(ALL, Project::as_str);
    format!("{project}/{}/{}", key.metric.code(), key.window.code())
}

fn parse_key(text: &str) -> Result<LimitKey, BadLimit> {
    let parse = || {
        let mut parts = text.split('/');
        let (project, metric, window) = (parts.next()?, parts.next()?, parts.next()?);
        let project =
            (project != ALL).then(|| project.parse().ok()).map_or(Some(None), |named| named.map(Some))?;
        if parts.next().is_some() {
            return None;
        }
        let (metric, window) = (QuotaMetric::from_code(metric)?, QuotaWindow::from_code(window)?);
        Some(LimitKey { project, metric, window })
    };
    parse().ok_or_else(|| BadLimit::Key(text.to_owned()))
}

pub(crate) fn write_value(limit: Limit) -> Vec<u8> {
    let stored = Stored { limit: limit.amount, shadow: limit.mode == QuotaMode::Shadow };
    // Two plain fields always serialize.
    serde_json::to_vec(&stored).unwrap_or_default()
}

fn parse_value(value: &[u8]) -> Result<Limit, BadLimit> {
    let stored: Stored = serde_json::from_slice(value).map_err(|error| BadLimit::Value(error.to_string()))?;
    let mode = if stored.shadow { QuotaMode::Shadow } else { QuotaMode::Enforce };
    Ok(Limit { amount: stored.limit, mode })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for project in [None, Some("team.a-1".parse().unwrap())] {
            let key = LimitKey { project, metric: QuotaMetric::Imports, window: QuotaWindow::Day };
            assert_eq!(parse_key(&write_key(&key)), Ok(key));
        }
        for (amount, mode) in [(Amount::Limit(5), QuotaMode::Enforce), (Amount::Unlimited, QuotaMode::Shadow)]
        {
            let limit = Limit { amount, mode };
            assert_eq!(parse_value(&write_value(limit)), Ok(limit));
        }
    }

    #[test]
    fn what_others_write_is_checked() {
        for wrong in
            ["", "a", "a/imports", "a/imports/week", "a/reads/day", "a/imports/day/x", "a b/imports/day"]
        {
            assert!(parse_key(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "5", "{}", r#"{"limit":-1}"#, r#"{"limit":"much"}"#, r#"{"limit":5,"mode":1}"#] {
            assert!(parse_value(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_limit_that_is_not_a_number_leaves_the_one_before() {
        let table = bus::Bus::in_process().table(TABLE);
        let limits = Arc::new(Limits::new(crate::Config::default()));
        let amount = || limits.of(&"p".parse().unwrap(), QuotaMetric::Imports, QuotaWindow::Day).limit.amount;
        table.put("p/imports/day", r#"{"limit":5}"#.into()).await.unwrap();
        assert!(!limits.are_known());
        let following = tokio::spawn(follow(table.watch(), limits.clone()));
        let until = async |wanted: Amount| {
            let waiting = async {
                while amount() != wanted || !limits.are_known() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(std::time::Duration::from_secs(30), waiting).await.unwrap();
        };
        until(Amount::Limit(5)).await;
        table.put("p/imports/day", r#"{"limit":"much"}"#.into()).await.unwrap();
        table.put("p/imports/minute", r#"{"limit":1}"#.into()).await.unwrap();
        let minute =
            || limits.of(&"p".parse().unwrap(), QuotaMetric::Imports, QuotaWindow::Minute).limit.amount;
        while minute() != Amount::Limit(1) {
            tokio::task::yield_now().await;
        }
        assert_eq!(amount(), Amount::Limit(5));
        table.put("p/imports/day", r#"{"limit":7}"#.into()).await.unwrap();
        until(Amount::Limit(7)).await;
        table.delete("p/imports/day").await.unwrap();
        until(Amount::Unlimited).await;
        following.abort();
    }
}
