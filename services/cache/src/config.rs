//! What can be set, with its units and defaults.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{bail, ensure};
use bytesize::ByteSize;
use proto::signed::TrustedKeys;
use serde::{Deserialize, Serialize};

/// Below this the memory tier could not hold the chunks of one request.
const MEMORY_MIN: ByteSize = ByteSize::mib(32);
/// The disk tier is written in blocks of 16 MiB, and needs a few of them.
const DISK_MIN: ByteSize = ByteSize::mib(256);
/// As `advertise`: this machine's own name.
const HOSTNAME: &str = "hostname";

/// The `cache` section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where content is served; port 0 takes any that is free.
    pub listen: SocketAddr,
    /// How nodes reach this replica (`http://host:port`); as it is bound when absent. `hostname`: by this machine's name, where
    /// others resolve that, as containers of one network do.
    pub advertise: Option<String>,
    /// The memory tier's budget.
    pub memory: ByteSize,
    /// The disk tier; none when absent.
    pub disk: Option<Disk>,
    /// Public keys of the fetchers whose grants count, in hexadecimal.
    pub trusted_keys: Vec<String>,
    /// How allowances are spent: content requests and bytes.
    pub quota: allowance::Config,
    /// What it shows to nodes, and what nodes must show.
    pub tls: tls::Config,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// A folder of its own. What is in it may be deleted while the cache does not run.
    pub path: PathBuf,
    /// The disk tier's budget.
    pub capacity: ByteSize,
}

/// The whole configuration of the service as a process of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    pub lifecycle: lifecycle::Config,
    pub nats: bus::NatsConfig,
    pub store: store::Config,
    pub cache: Config,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            memory: ByteSize::mib(256),
            disk: None,
            trusted_keys: Vec::new(),
            quota: allowance::Config::default(),
            tls: tls::Config::default(),
        }
    }
}

impl Config {
    /// The keys of `trusted_keys`, decoded.
    pub fn trusted(&self) -> anyhow::Result<TrustedKeys> {
        Ok(TrustedKeys::parse(&self.trusted_keys)?)
    }

    /// Whether a cache can work with it.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.memory >= MEMORY_MIN,
            "cache.memory is {}, at least {MEMORY_MIN} are needed",
            self.memory
        );
        if let Some(disk) = &self.disk {
            let capacity = disk.capacity;
            ensure!(
                capacity >= DISK_MIN,
                "cache.disk.capacity is {capacity}, at least {DISK_MIN} are needed"
            );
        }
        Ok(())
    }

    /// How nodes reach a cache that is bound to `address`.
    pub(crate) fn endpoint(&self, address: SocketAddr) -> anyhow::Result<String> {
        let scheme = if self.tls.certificate_file.is_some() { "https" } else { "http" };
        match &self.advertise {
            Some(word) if word == HOSTNAME => {
                let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
                Ok(format!("{scheme}://{name}:{}", address.port()))
            }
            Some(endpoint) if endpoint.starts_with("http://") && self.tls.certificate_file.is_some() => {
                bail!(
                    "cache.advertise is {endpoint:?}, but this cache serves TLS alone: https://host:port is expected"
                )
            }
            Some(endpoint) if endpoint.starts_with("http://") || endpoint.starts_with("https://") => {
                Ok(endpoint.trim_end_matches('/').to_owned())
            }
            Some(endpoint) => bail!("cache.advertise is {endpoint:?}, http://host:port is expected"),
            None if address.ip().is_unspecified() => {
                bail!("cache.listen is {address}: cache.advertise must say how nodes reach it")
            }
            None => Ok(format!("{scheme}://{address}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_how_it_is_reached() {
        let mut config = Config::default();
        let loopback = "127.0.0.1:80".parse().unwrap();
        assert_eq!(config.endpoint(loopback).unwrap(), "http://127.0.0.1:80");
        assert!(config.endpoint("0.0.0.0:80".parse().unwrap()).is_err());
        config.advertise = Some("http://cache-0:7460/".to_owned());
        assert_eq!(config.endpoint(loopback).unwrap(), "http://cache-0:7460");
        config.advertise = Some("hostname".to_owned());
        let endpoint = config.endpoint("0.0.0.0:80".parse().unwrap()).unwrap();
        assert!(endpoint.starts_with("http://") && endpoint.ends_with(":80"), "{endpoint}");
        assert!(!endpoint.contains("0.0.0.0"), "{endpoint}");
        config.advertise = Some("cache-0:7460".to_owned());
        assert!(config.endpoint(loopback).is_err());
    }

    #[test]
    fn refuses_budgets_that_are_too_small() {
        assert!(Config::default().check().is_ok());
        assert!(Config { memory: ByteSize::mib(1), ..Config::default() }.check().is_err());
        let disk = Some(Disk { path: "/".into(), capacity: ByteSize::mib(1) });
        assert!(Config { disk, ..Config::default() }.check().is_err());
    }
}
