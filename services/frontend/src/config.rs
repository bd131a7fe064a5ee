//! What an operator may set, each with its unit.
//!
//! Layered by `lifecycle::config`: these defaults, files, `SLUICE__…` variables, flags.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use names::Project;
use proto::signed::TrustedKeys;
use proto::{AskerFacts, Pair};
use serde::{Deserialize, Serialize};

use crate::reservation;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The node's name in grants, profiles and logs.
    pub node: String,
    /// The project of what containerd pulls, and of requests that name none.
    pub project: Project,
    /// What policies are told of this node beside its name: where it stands, the pool of nodes it is of, its labels.
    pub region: Option<String>,
    pub pool: Option<String>,
    pub labels: BTreeMap<String, String>,
    /// Folder of everything this frontend keeps: local objects, trees, maps, records, its own mounts.
    /// One frontend per folder; on a file system with room for the images.
    pub state: PathBuf,
    /// Unix socket of `node.v1`, mode 0600. Its folder is made when absent.
    pub socket: PathBuf,
    /// Whether images that containerd pulls from now on may stream. Those that stream already go on, whatever this says.
    pub streaming: bool,
    /// Unix socket where containerd finds its snapshotter, mode 0600; absent: none is served.
    pub snapshotter: Option<PathBuf>,
    /// Unix socket of the CRI image service for the kubelet, mode 0600, which hands every call on to `runtime` and learns
    /// the credentials of pulls; absent: none is served.
    pub image_service: Option<PathBuf>,
    /// containerd's own socket.
    pub runtime: PathBuf,
    /// Where the credential for an image is looked for when containerd pulls it.
    pub credentials: credentials::sources::Config,
    /// Ed25519 public keys of the fetchers whose records and grants are believed: 64 hexadecimal digits each.
    pub trusted_keys: Vec<String>,
    /// What this node shows to caches, and what caches must show.
    pub tls: tls::Config,
    /// How much disk the local objects may take. What is mounted stays, even beyond it.
    pub disk_budget: ByteSize,
    /// Memory that this process keeps within; unset: what the reservation for this machine's memory comes to.
    pub memory_budget: Option<ByteSize>,
    /// Fetch the whole image after the start, so that it no longer depends on the network.
    pub background: bool,
    /// Bytes a second that the background may receive; 0: no cap of its own.
    pub background_bandwidth: ByteSize,
    /// How long the answer to "what is this image" may take, until it is here or being imported.
    #[serde(with = "humantime_serde")]
    pub resolve_timeout: Duration,
    /// The same for an image that this node could mount without an answer.
    #[serde(with = "humantime_serde")]
    pub known_resolve_timeout: Duration,
    /// How long an import may take that a mount waits for.
    #[serde(with = "humantime_serde")]
    pub import_timeout: Duration,
    /// How long a pull of containerd's waits for an import to begin, while the fetcher has others to do first.
    #[serde(with = "humantime_serde")]
    pub import_queue_timeout: Duration,
    /// How long a read waits for missing bytes, all retries included, before it fails.
    #[serde(with = "humantime_serde")]
    pub read_timeout: Duration,
    /// How long a read waits for a quota that is used up before the object store is asked, where that is allowed, and a mount before
    /// its image is pulled the ordinary way.
    #[serde(with = "humantime_serde")]
    pub quota_wait: Duration,
    /// How long a read waits for a quota in all, before it fails: longer than a quota lasts.
    #[serde(with = "humantime_serde")]
    pub quota_read_timeout: Duration,
    /// Read from the object store itself, past the caches, what a quota refuses.
    pub quota_bypass_store: bool,
    /// A start is over when nothing new was read for this long; then its profile is reported.
    #[serde(with = "humantime_serde")]
    pub start_settled: Duration,
    /// Tell the fetcher what starts read, so that those after them are faster.
    pub report_starts: bool,
    /// How far the kernel reads ahead in missing data. Every byte of it competes with what a process
    /// really waits for, so it is a fraction of a chunk, not several.
    pub read_ahead: ByteSize,
    /// Keep the connection to the kernel in a process beside this one, so that a killed or upgraded frontend hurts no
    /// container: the next one goes on with it.
    pub hold: bool,
    /// Unix socket of a `frontend hold` that keeps that connection and our sockets instead: in containers, where a process beside
    /// this one ends with its container.
    pub holder: Option<PathBuf>,
    /// Let what is mounted below `state` be seen where that folder is shared with: by a containerd in another container.
    pub share_mounts: bool,
    /// End the process when nothing is mounted and nothing is downloaded for this long.
    #[serde(with = "humantime_serde")]
    pub exit_when_idle: Option<Duration>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            node: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            project: Project::default(),
            region: None,
            pool: None,
            labels: BTreeMap::new(),
            state: PathBuf::from("/var/lib/sluice"),
            socket: PathBuf::from("/run/sluice/node.sock"),
            streaming: true,
            snapshotter: None,
            image_service: None,
            runtime: PathBuf::from("/run/containerd/containerd.sock"),
            credentials: credentials::sources::Config::default(),
            trusted_keys: Vec::new(),
            tls: tls::Config::default(),
            disk_budget: ByteSize::gib(50),
            memory_budget: None,
            background: true,
            background_bandwidth: ByteSize::b(0),
            resolve_timeout: Duration::from_secs(30),
            known_resolve_timeout: Duration::from_secs(5),
            import_timeout: Duration::from_secs(30 * 60),
            import_queue_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(120),
            quota_wait: Duration::from_secs(10),
            quota_read_timeout: Duration::from_secs(25 * 60 * 60),
            quota_bypass_store: false,
            start_settled: Duration::from_secs(5),
            report_starts: true,
            read_ahead: ByteSize::kib(256),
            hold: true,
            holder: None,
            share_mounts: false,
            exit_when_idle: None,
        }
    }
}

impl Config {
    /// In bytes.
    pub(crate) fn memory_budget(&self) -> u64 {
        self.memory_budget
            .map_or_else(|| reservation::budget(reservation::node_memory()), |budget| budget.as_u64())
    }

    /// Bytes a second of the background; none: no cap.
    pub(crate) fn background_cap(&self) -> Option<u64> {
        Some(self.background_bandwidth.as_u64()).filter(|rate| *rate > 0)
    }

    /// The node, as policies are told of it.
    pub fn asker(&self, project: &str) -> AskerFacts {
        AskerFacts {
            project: project.to_owned(),
            node: self.node.clone(),
            region: self.region.clone(),
            pool: self.pool.clone(),
            labels: Pair::bounded(self.labels.clone()),
        }
    }

    /// The keys of `trusted_keys`, decoded.
    pub fn trusted(&self) -> anyhow::Result<TrustedKeys> {
        Ok(TrustedKeys::parse(&self.trusted_keys)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_key_is_named() {
        let config = Config { trusted_keys: vec!["abc".to_owned()], ..Config::default() };
        let error = format!("{:#}", config.trusted().unwrap_err());
        assert!(error.contains("abc") && error.contains("trusted_keys"), "{error}");
    }

    #[test]
    fn reads_human_units_and_refuses_unknown_names() {
        let config: Config =
            serde_json::from_str(r#"{"disk_budget": "2 GiB", "start_settled": "3s"}"#).unwrap();
        assert_eq!((config.disk_budget, config.start_settled), (ByteSize::gib(2), Duration::from_secs(3)));
        assert!(serde_json::from_str::<Config>(r#"{"disk_buget": "2 GiB"}"#).is_err());
    }
}
