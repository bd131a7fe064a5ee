//! What a user may change about a container on the command line.

use std::path::{Component, PathBuf};
use std::str::FromStr;

use super::Init;

#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Replaces the image's `Cmd`; empty: the image's own.
    pub command: Vec<String>,
    /// Replaces the image's `Entrypoint`, and its `Cmd` with it.
    pub entrypoint: Option<String>,
    /// `NAME=value`: added to the image's, or in its place.
    pub env: Vec<String>,
    pub working_dir: Option<String>,
    pub user: Option<String>,
    pub terminal: bool,
    pub read_only: bool,
    pub volumes: Vec<Volume>,
    pub network: Network,
    /// What the command runs below; none: it is the first process itself.
    pub init: Option<Init>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Network {
    /// A network of its own, with nothing in it but loopback
    #[default]
    None,
    /// The machine's own network
    Host,
}

/// A folder or file of the host, seen in the container: `SRC:DST[:ro]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    pub source: PathBuf,
    pub destination: PathBuf,
    pub read_only: bool,
}

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Volume, String> {
        let refuse = || format!("not a volume: {text:?} (SRC:DST[:ro] expected, DST absolute)");
        let parts: Vec<&str> = text.split(':').collect();
        let (source, destination, read_only) = match parts[..] {
            [source, destination] | [source, destination, "rw"] => (source, destination, false),
            [source, destination, "ro"] => (source, destination, true),
            _ => return Err(refuse()),
        };
        let destination = PathBuf::from(destination);
        let climbs = destination.components().any(|part| part == Component::ParentDir);
        if source.is_empty() || !destination.is_absolute() || climbs {
            return Err(refuse());
        }
        let source = std::path::absolute(source).map_err(|error| format!("{source}: {error}"))?;
        Ok(Volume { source, destination, read_only })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_volumes() {
        let volume: Volume = "/data:/srv:ro".parse().unwrap();
        assert_eq!((volume.source, volume.destination), ("/data".into(), "/srv".into()));
        assert!(volume.read_only);
        assert!(!"data:/srv".parse::<Volume>().unwrap().read_only);
        for wrong in ["", "/data", ":/srv", "/data:srv", "/data:/a/../b", "/data:/srv:rx", "a:/b:ro:c"] {
            assert!(wrong.parse::<Volume>().is_err(), "{wrong}");
        }
    }
}
