//! The part of an image's config that says how to run it.
//!
//! Read leniently: builders write `null` for what is empty and leave out what they do not know.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::{Deserialize, Deserializer};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`, in the order given.
    pub env: Vec<String>,
    pub working_dir: String,
    /// `""`, `user`, `uid`, `user:group`, `uid:gid` and mixtures.
    pub user: String,
    pub stop_signal: String,
    /// TCP, in the order of their numbers.
    pub exposed_ports: Vec<u16>,
    pub labels: BTreeMap<String, String>,
}

impl ImageConfig {
    pub fn parse(json: &[u8]) -> anyhow::Result<ImageConfig> {
        let file: File = serde_json::from_slice(json).context("read the image's config")?;
        let config = file.config;
        Ok(ImageConfig {
            entrypoint: config.entrypoint,
            cmd: config.cmd,
            env: config.env,
            working_dir: config.working_dir,
            user: config.user,
            stop_signal: config.stop_signal,
            exposed_ports: tcp_ports(config.exposed_ports.keys()),
            labels: config.labels,
        })
    }
}

#[derive(Deserialize)]
struct File {
    #[serde(default, deserialize_with = "null_is_default")]
    config: Config,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    #[serde(deserialize_with = "null_is_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    working_dir: String,
    #[serde(deserialize_with = "null_is_default")]
    user: String,
    #[serde(deserialize_with = "null_is_default")]
    stop_signal: String,
    #[serde(deserialize_with = "null_is_default")]
    exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(deserialize_with = "null_is_default")]
    labels: BTreeMap<String, String>,
}

/// `80/tcp` or `80`; what is no port is left out.
fn tcp_ports<'a>(exposed: impl Iterator<Item = &'a String>) -> Vec<u16> {
    let number = |port: &String| port.strip_suffix("/tcp").unwrap_or(port).parse().ok();
    let mut ports: Vec<u16> = exposed.filter_map(number).collect();
    ports.sort_unstable();
    ports
}

fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_full_empty_and_null_configs() {
        let full =
            br#"{"architecture":"amd64","config":{"Entrypoint":["/bin/app"],"Cmd":["-x"],"Env":["A=b"],
            "WorkingDir":"/srv","User":"www","StopSignal":"SIGQUIT","ExposedPorts":{"443/tcp":{},"53/udp":{},"80":{}},"Labels":{"k":"v"},"ArgsEscaped":true}}"#;
        let config = ImageConfig::parse(full).unwrap();
        assert_eq!((config.entrypoint[0].as_str(), config.cmd[0].as_str()), ("/bin/app", "-x"));
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("www", "/srv"));
        assert_eq!(config.exposed_ports, [80, 443]);
        assert_eq!(config.labels["k"], "v");
        let nulls = br#"{"config":{"Entrypoint":null,"Cmd":null,"Labels":null}}"#;
        for empty in [&b"{}"[..], br#"{"config":null}"#, br#"{"config":{}}"#, nulls] {
            assert_eq!(ImageConfig::parse(empty).unwrap(), ImageConfig::default());
        }
        assert!(ImageConfig::parse(b"not json").is_err());
    }
}
