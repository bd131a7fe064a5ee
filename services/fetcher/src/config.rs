//! What a fetcher can be told.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::push;
use crate::source::SourceConfig;

/// Saves a fifth of the bytes that level 1 makes, and costs a processor a second for each 6 MB of plain bytes.
pub const STARTS_ZSTD_LEVEL: i32 = 18;

/// The longest that policies may be waited for: no request crosses the bus for longer.
const WAIT_MAX: Duration = Duration::from_secs(3_600);

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
    /// A renewal asks the image's registry again when it last showed the image so long ago; 0s: never.
    #[serde(with = "humantime_serde")]
    pub grant_recheck: Duration,
    /// How much longer grants are renewed while the registry says neither yes nor no: it does not answer, has no such image any more, or
    /// wants a credential of a node that has none.
    #[serde(with = "humantime_serde")]
    pub grant_recheck_grace: Duration,
    /// Of chunks. Level 1 keeps up with gunzip on the other core; level 3 saves some 5 % of the bytes.
    pub zstd_level: i32,
    /// Of chunks that starts read, which are compressed again in the background: they cross the network again and again while
    /// somebody waits. 0 leaves them; absent: [`STARTS_ZSTD_LEVEL`].
    pub starts_zstd_level: Option<i32>,
    pub limits: Limits,
    pub source: SourceConfig,
    /// Names of registries that are one and the same, each list of one: a layer that was read under one of them need not be read again
    /// under another.
    pub same_registries: Vec<Vec<String>>,
    pub judging: Judging,
    /// How allowances are spent: imports. Its region is that of `judging` where it has none of its own.
    pub quota: allowance::Config,
    pub projects: Projects,
    /// Which registries tell what was pushed.
    pub push: push::Config,
    /// Where copies of the layers that an import read stay, for somebody of this machine to take away. Unset: nowhere.
    pub layer_copies: Option<PathBuf>,
}

/// For which projects images stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Projects {
    /// For those that are not named below, nor in the file.
    pub streaming: bool,
    /// By project: `switches.NAME = false`.
    pub switches: BTreeMap<String, bool>,
    /// A file that says the same two, read again when it changed. Its word on a project counts before the one here, and that of
    /// `sluice project` before both.
    pub file: Option<PathBuf>,
    /// Where what is switched live is kept, as a file of the same form that sluice writes; absent: in a table of the mesh.
    pub kept: Option<PathBuf>,
}

/// How policies are asked, and what they are told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Judging {
    pub unanswered: Unanswered,
    /// How long policies may take to answer.
    #[serde(with = "humantime_serde")]
    pub wait: Duration,
    /// Where the nodes are, for those that do not say so themselves.
    pub region: Option<String>,
    /// Regions or areas, and the registries that are there, by host. Registries of clouds whose host names their region are known.
    pub registry_regions: BTreeMap<String, Vec<String>>,
}

/// What holds when nobody answers for the policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unanswered {
    /// Every image whose layers can be read streams: a mesh needs no policy service.
    #[default]
    Accept,
    /// Nothing streams: images are pulled the ordinary way until a policy service answers.
    Refuse,
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
    /// Memory for what is remembered of one image's members while it is imported: names, attributes, tables, tree.
    pub image_records: ByteSize,
    /// How long an image is refused of which two fetchers died; 0s: never.
    #[serde(with = "humantime_serde")]
    pub refused_after_deaths: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            signing_key_file: PathBuf::from("/var/lib/sluice/fetcher.key"),
            trusted_keys: Vec::new(),
            local_sources: false,
            grant_ttl: Duration::from_secs(12 * 60 * 60),
            grant_renewal: Duration::from_secs(90 * 24 * 60 * 60),
            grant_recheck: Duration::from_secs(24 * 60 * 60),
            grant_recheck_grace: Duration::from_secs(7 * 24 * 60 * 60),
            zstd_level: 1,
            starts_zstd_level: None,
            limits: Limits::default(),
            source: SourceConfig::default(),
            same_registries: Vec::new(),
            judging: Judging::default(),
            quota: allowance::Config::default(),
            projects: Projects::default(),
            push: push::Config::default(),
            layer_copies: None,
        }
    }
}

impl Config {
    /// How imports are paid for, and where.
    pub(crate) fn spending(&self) -> allowance::Config {
        let mut quota = self.quota.clone();
        if quota.region.is_empty() {
            quota.region = self.judging.region.clone().unwrap_or_default();
        }
        quota
    }
}

impl Default for Projects {
    fn default() -> Projects {
        Projects { streaming: true, switches: BTreeMap::new(), file: None, kept: None }
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
            image_records: ByteSize::gib(1),
            refused_after_deaths: Duration::from_secs(6 * 60 * 60),
        }
    }
}

impl Default for Judging {
    fn default() -> Judging {
        Judging {
            unanswered: Unanswered::Accept,
            wait: Duration::from_secs(3),
            region: None,
            registry_regions: BTreeMap::new(),
        }
    }
}

impl Judging {
    /// A time within which nobody could ever answer would refuse everything.
    pub fn check(&self) -> anyhow::Result<()> {
        let wait = self.wait;
        ensure!(
            !wait.is_zero() && wait <= WAIT_MAX,
            "fetcher.judging.wait is {wait:?}: more than 0s and at most {WAIT_MAX:?} expected"
        );
        Ok(())
    }

    /// The region or area that a registry is in, as far as anybody knows.
    pub(crate) fn region_of(&self, registry: &str) -> Option<String> {
        let told = self.registry_regions.iter().find(|(_, hosts)| hosts.iter().any(|host| host == registry));
        told.map(|(region, _)| region.clone()).or_else(|| region_in(registry).map(str::to_owned))
    }
}

/// The region in a registry's own name: `ACCOUNT.dkr.ecr.REGION.amazonaws.com`, `REGION-docker.pkg.dev`.
fn region_in(registry: &str) -> Option<&str> {
    if let Some(region) = registry.strip_suffix("-docker.pkg.dev") {
        return Some(region).filter(|region| !region.is_empty());
    }
    let host = registry.strip_suffix(".cn").unwrap_or(registry).strip_suffix(".amazonaws.com")?;
    let (account, region) = host.split_once(".dkr.ecr.")?;
    let plain = !account.is_empty() && !region.is_empty() && !region.contains('.');
    plain.then_some(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_within_which_nobody_could_answer_is_refused() {
        let wait = |seconds| Judging { wait: Duration::from_secs(seconds), ..Judging::default() }.check();
        wait(3_600).unwrap();
        for wrong in [0, 3_601] {
            assert!(wait(wrong).unwrap_err().to_string().contains("fetcher.judging.wait is"), "{wrong}");
        }
    }

    #[test]
    fn regions_are_told_or_stand_in_the_name() {
        let mut judging = Judging::default();
        judging.registry_regions.insert("europe".into(), vec!["registry.example:5000".into()]);
        for (registry, region) in [
            ("registry.example:5000", Some("europe")),
            ("registry.example", None),
            ("europe-west1-docker.pkg.dev", Some("europe-west1")),
            ("us-docker.pkg.dev", Some("us")),
            ("docker.pkg.dev", None),
            ("123.dkr.ecr.eu-west-1.amazonaws.com", Some("eu-west-1")),
            ("123.dkr.ecr.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
            ("evil.dkr.ecr.eu-west-1.amazonaws.com.example", None),
            ("", None),
        ] {
            assert_eq!(judging.region_of(registry).as_deref(), region, "{registry}");
        }
    }
}
