//! How registries are reached.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use credentials::docker::Places;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use url::Url;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Mirrors by registry host, asked in order before the registry itself:
    /// `"docker.io" = ["https://mirror.example:5000/prefix"]`. A mirror gets what the docker config
    /// holds for its own host, never a caller's credential; what it serves without one, every
    /// caller may read.
    pub mirrors: BTreeMap<String, Vec<Url>>,
    /// Registry hosts (`host` or `host:port`) to speak plain HTTP to.
    pub plain_http: Vec<String>,
    /// Speak it to any registry for which a caller asks for it: where all callers are who this process works for.
    pub plain_http_on_request: bool,
    /// A docker `config.json`, or the folder that holds it. Unset: `$DOCKER_CONFIG`, then `~/.docker`. For mirrors and for what is
    /// done without a caller; of callers, only for what `shared_credentials` names.
    pub docker_config: Option<PathBuf>,
    /// Registries (`host`) and repositories (`host/team`, and all below it) for which a caller without a credential gets what
    /// the docker config holds: whoever may ask may read them.
    pub shared_credentials: Vec<String>,
    /// Whether a registry that a caller names may be at a private or a loopback address.
    pub private_registries: bool,
    /// Addresses that may be asked though they are private, loopback or link-local: where redirects and token servers lead.
    pub allowed_addresses: Vec<IpNet>,
    /// Where `docker-credential-*` helpers are looked for, like `PATH`. Unset: `PATH`.
    pub helper_path: Option<String>,
    /// PEM files of certificate authorities to trust besides the system's.
    pub certificates: Vec<PathBuf>,
    /// For a connection to be made.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// For the next bytes to arrive; then the connection counts as broken.
    #[serde(with = "humantime_serde")]
    pub stall_timeout: Duration,
    pub retry: RetryConfig,
}

/// How often, and for how long, one request is tried again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryConfig {
    /// Tries in all; the first counts.
    pub attempts: u32,
    /// The pause after the first failure; it doubles with each further one, and is then spread at random.
    #[serde(with = "humantime_serde")]
    pub first_pause: Duration,
    /// No pause of ours is longer.
    #[serde(with = "humantime_serde")]
    pub longest_pause: Duration,
    /// All pauses together; a registry that asks for a longer one is given up.
    #[serde(with = "humantime_serde")]
    pub total_pause: Duration,
}

impl Config {
    pub(super) fn docker(&self) -> Places {
        Places { config: self.docker_config.clone(), helper_path: self.helper_path.clone() }
    }

    /// Whether callers may read a repository with what the docker config holds.
    pub(super) fn shares(&self, registry: &str, repository: &str) -> bool {
        let holds = |named: &String| {
            let (host, prefix) = named.split_once('/').unwrap_or((named, ""));
            let rest = repository.strip_prefix(prefix.trim_end_matches('/'));
            host == registry
                && rest.is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest.starts_with('/'))
        };
        self.shared_credentials.iter().any(holds)
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            mirrors: BTreeMap::new(),
            plain_http: Vec::new(),
            plain_http_on_request: false,
            docker_config: None,
            shared_credentials: Vec::new(),
            private_registries: true,
            allowed_addresses: Vec::new(),
            helper_path: None,
            certificates: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            retry: RetryConfig::default(),
        }
    }
}

impl Default for RetryConfig {
    fn default() -> RetryConfig {
        RetryConfig {
            attempts: 5,
            first_pause: Duration::from_millis(250),
            longest_pause: Duration::from_secs(8),
            total_pause: Duration::from_secs(60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_is_a_registry_or_what_is_below_a_repository() {
        let shared_credentials = ["all.example".to_owned(), "some.example:5000/team/".to_owned()].into();
        let config = Config { shared_credentials, ..Config::default() };
        for (registry, repository, shared) in [
            ("all.example", "any/thing", true),
            ("all.example:5000", "any/thing", false),
            ("some.example:5000", "team", true),
            ("some.example:5000", "team/app", true),
            ("some.example:5000", "teams/app", false),
            ("some.example:5000", "other", false),
            ("other.example", "team", false),
        ] {
            assert_eq!(config.shares(registry, repository), shared, "{registry}/{repository}");
        }
        assert!(!Config::default().shares("", ""));
    }
}
