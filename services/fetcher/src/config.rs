//! What a fetcher can be told.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::source::SourceConfig;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// 32 raw bytes, readable by the owner only; made when absent. All fetchers of a mesh share it.
    pub signing_key_file: PathBuf,
    /// Public keys, in hex, whose records are believed besides our own: for a change of keys.
    pub trusted_keys: Vec<String>,
    /// Take `oci:` and `docker-archive:` images from this machine's disk. Anyone who may ask could
    /// then read any image on it, so only for a fetcher that serves its own user.
    pub local_sources: bool,
    /// How long a node may read an image's content before it must ask again.
    #[serde(with = "humantime_serde")]
    pub grant_ttl: Duration,
    /// How long after it expired a grant is still renewed without asking the registry: as long as a node may have been away.
    #[serde(with = "humantime_serde")]
    pub grant_renewal: Duration,
    /// Of chunks. Level 1 keeps up with gunzip on the other core; level 3 saves some 5 % of the bytes.
    pub zstd_level: i32,
    pub limits: Limits,
    pub source: SourceConfig,
}

/// What one fetcher spends, and what it accepts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Plain bytes of one layer: what a bomb can make us read, never what it can make us hold.
    pub layer_plain_max: ByteSize,
    /// Members of one layer.
    pub layer_entries_max: usize,
    /// Images imported at the same time; others wait.
    pub imports_at_once: usize,
    /// Layers read at the same time, of all imports together. Each takes two threads and 16 MiB.
    pub layers_at_once: usize,
    /// Chunks on their way to the store, in plain bytes, of all imports together.
    pub chunk_memory: ByteSize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            signing_key_file: PathBuf::from("/var/lib/sluice/fetcher.key"),
            trusted_keys: Vec::new(),
            local_sources: false,
            grant_ttl: Duration::from_secs(12 * 60 * 60),
            grant_renewal: Duration::from_secs(90 * 24 * 60 * 60),
            zstd_level: 1,
            limits: Limits::default(),
            source: SourceConfig::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            layer_plain_max: ByteSize::gib(256),
            layer_entries_max: image::limits::ENTRIES_MAX,
            imports_at_once: 2,
            layers_at_once: 3,
            chunk_memory: ByteSize::mib(48),
        }
    }
}
