//! What the policy service can be told.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::record::RecordConfig;

/// The longest that a call or a question may be allowed to take: no request crosses the bus for longer.
const TIME_MAX: Duration = Duration::from_secs(3_600);

/// The whole configuration of the service as a process of its own.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    pub lifecycle: lifecycle::Config,
    pub nats: bus::NatsConfig,
    pub policy: Config,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A TOML file with the policy set, instead of `set`. Looked at every two seconds: what changes in it is in use a
    /// moment later, without a restart.
    pub file: Option<PathBuf>,
    pub set: SetConfig,
    pub limits: Limits,
    /// Where decisions are written down; nowhere by default.
    pub record: Option<RecordConfig>,
    /// How registries are reached for plugins.
    pub registry: registry::Config,
    pub trust: TrustConfig,
    /// The folder of pulled plugins, each checked whenever it is loaded: a restart needs no registry.
    pub kept: PathBuf,
}

/// Whose plugins are believed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrustConfig {
    /// Public keys, each as PEM or as the name of a PEM file: ECDSA on P-256, as `sluice policy keygen` and cosign make them.
    pub public_keys: Vec<String>,
    pub required: Required,
}

/// Which plugins must be signed by one of the keys. Those that come with sluice need no signature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Required {
    /// Those from registries, as soon as there is a key.
    #[default]
    WithKeys,
    /// Those from registries; that there is no key is an error.
    Registry,
    /// Those from files as well.
    All,
}

/// Which policies decide, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SetConfig {
    pub combine: Combine,
    /// May an image stream?
    pub eligibility: Vec<PolicyConfig>,
    /// What is fetched first? The first policy that gives a plan decides.
    pub prefetch: Vec<PolicyConfig>,
}

/// How several verdicts become one. Without any, an image may stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Combine {
    /// One refusal refuses, and all reasons are told.
    #[default]
    All,
    /// The first policy that accepts or refuses decides; later ones are not asked.
    First,
}

/// One policy of the set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyConfig {
    /// By which logs, metrics and reasons name it. Unique within the set.
    pub name: String,
    /// `builtin:NAME`, `file:PATH@sha256:HEX`, or `oci://HOST/REPOSITORY[:TAG]@sha256:HEX`.
    pub source: String,
    #[serde(default)]
    pub mode: Mode,
    /// Of eligibility policies alone: `refuse` where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
    /// What the policy itself is told; `sluice policy check` lists what it takes.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub settings: toml::Table,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    #[default]
    Enforce,
    /// Asked, counted and shown, without a say: to try a policy on what really happens.
    Monitor,
}

/// What stands for the verdict of a policy that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// The image is pulled the ordinary way: what nobody judged does not stream.
    #[default]
    Refuse,
    Accept,
    Abstain,
}

/// What one call of a policy may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Linear memories and tables of one instance, together.
    pub memory: ByteSize,
    /// Of a processor, of one policy's call.
    #[serde(with = "humantime_serde")]
    pub time: Duration,
    /// By the clock, of all policies of one question.
    #[serde(with = "humantime_serde")]
    pub total_time: Duration,
    /// What one call may hand to the host: its answer, or a line of its log.
    pub output: ByteSize,
    /// Calls at the same time; others wait. 0: eight for each processor, at most 64.
    pub calls_at_once: usize,
    /// A plugin's file.
    pub plugin_size: ByteSize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            file: None,
            set: SetConfig::default(),
            limits: Limits::default(),
            record: None,
            registry: registry::Config::default(),
            trust: TrustConfig::default(),
            kept: PathBuf::from("/var/lib/sluice/plugins"),
        }
    }
}

impl Default for SetConfig {
    fn default() -> SetConfig {
        SetConfig {
            combine: Combine::All,
            eligibility: vec![
                PolicyConfig::builtin("schema-version"),
                PolicyConfig::builtin("encrypted-layers"),
            ],
            prefetch: vec![PolicyConfig::builtin("learned")],
        }
    }
}

impl PolicyConfig {
    /// A policy that comes with sluice, under its own name and without settings.
    pub fn builtin(name: &str) -> PolicyConfig {
        PolicyConfig {
            name: name.to_owned(),
            source: format!("builtin:{name}"),
            mode: Mode::Enforce,
            on_failure: None,
            settings: toml::Table::new(),
        }
    }
}

impl Limits {
    /// Finds times within which no policy could ever answer, or which no call could use.
    pub fn check(&self) -> anyhow::Result<()> {
        for (name, time) in [("time", self.time), ("total_time", self.total_time)] {
            ensure!(
                !time.is_zero() && time <= TIME_MAX,
                "policy.limits.{name} is {time:?}: more than 0s and at most {TIME_MAX:?} expected"
            );
        }
        Ok(())
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            memory: ByteSize::mib(64),
            time: Duration::from_millis(100),
            total_time: Duration::from_secs(1),
            output: ByteSize::mib(1),
            calls_at_once: 0,
            plugin_size: ByteSize::mib(32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_no_policy_could_keep_or_use_are_refused() {
        let limits = |time, total_time| {
            let [time, total_time] = [time, total_time].map(Duration::from_millis);
            Limits { time, total_time, ..Limits::default() }.check().map_err(|error| error.to_string())
        };
        Limits::default().check().unwrap();
        limits(100, 100).unwrap();
        for (time, total_time, expected) in [
            (0, 1_000, "policy.limits.time is 0ns: more than 0s"),
            (100, 0, "policy.limits.total_time is 0ns: more than 0s"),
            (100, 3_600_001, "policy.limits.total_time is 3600.001s"),
        ] {
            let error = limits(time, total_time).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
