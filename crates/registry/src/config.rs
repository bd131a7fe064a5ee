//! How registries are reached.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use credentials::docker::Places;
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
    /// A docker `config.json`, or the folder that holds it. Unset: `$DOCKER_CONFIG`, then `~/.docker`.
    pub docker_config: Option<PathBuf>,
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
}

impl Default for Config {
    fn default() -> Config {
        Config {
            mirrors: BTreeMap::new(),
            plain_http: Vec::new(),
            docker_config: None,
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
