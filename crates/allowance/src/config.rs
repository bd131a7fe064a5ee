//! How a service that spends allowances behaves.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where this service stands: limits of a minute are of a project and a region.
    pub region: String,
    pub unanswered: Unanswered,
}

/// What holds while the quota service does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unanswered {
    /// Of limits that were heard of, this one's share; of others nothing is known: a mesh needs no quota service.
    #[default]
    Safe,
    /// Nothing is refused.
    Open,
    /// Everything is refused that was not handed out before.
    Closed,
}
