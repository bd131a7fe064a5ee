//! What the command works with: defaults, files, environment and flags, in one value.
//!
//! Each service's section is its own `Config`; what all of them share (where state stands, the project, trusted
//! keys) is said once here and carried into the sections that leave it out.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bytesize::ByteSize;
use names::Project;
use proto::Role;
use proto::signed::TrustedKeys;
use serde::{Deserialize, Serialize};

use crate::args::Global;
use crate::layers;
use crate::serving::Serve;

pub const SYSTEM_FILE: &str = "/etc/sluice/sluice.toml";
const SYSTEM_STATE: &str = "/var/lib/sluice";

/// Memory of the cache beside a node: the one node keeps what it read, so nobody asks twice.
const EMBEDDED_CACHE: ByteSize = ByteSize::mib(32);
/// Memory for events that sinks of this process have not taken yet, where there is no NATS to keep them.
const EMBEDDED_EVENTS: ByteSize = ByteSize::mib(8);

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where this machine keeps content, sockets and logs.
    pub state: PathBuf,
    /// The frontend's socket; default: `node.sock` in `state`, with services on NATS the frontend's own default.
    pub node: Option<PathBuf>,
    /// The project that content belongs to.
    pub project: Project,
    /// Default: `store` in `state`.
    pub store: store::Config,
    /// Services on NATS; without it they run in this process.
    pub nats: Option<bus::NatsConfig>,
    /// Public keys of fetchers, in hex, whose records and grants are believed; with embedded services their own is added.
    pub trusted_keys: Vec<String>,
    /// Certificates for what this process serves to other machines, and with which it shows itself there.
    pub tls: tls::Config,
    pub lifecycle: lifecycle::Config,
    pub fetcher: fetcher::Config,
    pub cache: cache::Config,
    pub frontend: frontend::Config,
    pub policy: policy::Config,
    pub quota: quota::Config,
    /// Where this process writes events; without a sink it writes them nowhere, and a node keeps its newest ones.
    pub events: events::Config,
    /// Of a node that enrolled: where its identity is renewed, and in which folder it stands.
    pub identity: identity::client::Config,
    /// What `sluice serve` runs with keys of a mesh.
    pub serve: Serve,
    /// A Docker engine that uses this node.
    pub docker: layers::Config,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            state: PathBuf::from(SYSTEM_STATE),
            node: None,
            project: Project::default(),
            store: store::Config::default(),
            nats: None,
            trusted_keys: Vec::new(),
            tls: tls::Config::default(),
            lifecycle: lifecycle::Config::default(),
            fetcher: fetcher::Config::default(),
            cache: cache::Config::default(),
            frontend: frontend::Config::default(),
            policy: policy::Config::default(),
            quota: quota::Config::default(),
            events: events::Config::default(),
            identity: identity::client::Config::default(),
            serve: Serve::default(),
            docker: layers::Config::default(),
        }
    }
}

impl Settings {
    pub fn load(global: &Global) -> anyhow::Result<Settings> {
        Settings::load_files(&files(global), global)
    }

    /// With the files to read given.
    pub fn load_files(files: &[PathBuf], global: &Global) -> anyhow::Result<Settings> {
        let mut settings: Settings = lifecycle::config::load(files, overrides(global))?;
        settings.state = std::path::absolute(&settings.state).context("find the state folder")?;
        settings.fill();
        Ok(settings)
    }

    /// Carries what is said once into the sections that leave it out.
    pub fn fill(&mut self) {
        let (fetcher, frontend, policy) =
            (fetcher::Config::default(), frontend::Config::default(), policy::Config::default());
        let state = &self.state;
        if self.fetcher.signing_key_file == fetcher.signing_key_file {
            self.fetcher.signing_key_file = state.join("fetcher.key");
        }
        if self.frontend.state == frontend.state {
            self.frontend.state.clone_from(state);
        }
        for tls in [&mut self.cache.tls, &mut self.frontend.tls] {
            if *tls == tls::Config::default() {
                tls.clone_from(&self.tls);
            }
        }
        if self.nats.is_none() {
            // Where there is a mesh, it keeps what `sluice project` says.
            self.fetcher.projects.kept.get_or_insert_with(|| state.join("projects.toml"));
        }
        if self.policy.kept == policy.kept {
            self.policy.kept = state.join("plugins");
        }
        // Plugins come from the registries that images come from.
        if self.policy.registry == policy.registry {
            self.policy.registry.clone_from(&self.fetcher.source);
        }
        if self.frontend.project == Project::default() {
            self.frontend.project.clone_from(&self.project);
        }
        if let Some(socket) = &self.node {
            self.frontend.socket.clone_from(socket);
        } else if self.frontend.socket == frontend.socket && self.nats.is_none() {
            self.frontend.socket = state.join("node.sock");
        }
        if self.store.url == store::Config::default().url {
            self.store.url = state.join("store").display().to_string();
            if self.nats.is_none() {
                // What is read from this machine's own disk need not be as small as it gets.
                self.fetcher.starts_zstd_level.get_or_insert(0);
            }
        }
        // Alone, the fetcher serves its own user, who may name any file of this machine.
        self.fetcher.local_sources |= self.nats.is_none();
        // And may say how his registries are spoken to.
        self.fetcher.source.plain_http_on_request |= self.nats.is_none();
        if self.nats.is_none() && self.cache.memory == cache::Config::default().memory {
            self.cache.memory = EMBEDDED_CACHE;
        }
        if self.nats.is_none() && self.events.max_bytes == events::Config::default().max_bytes {
            self.events.max_bytes = EMBEDDED_EVENTS;
        }
        if self.docker.wants_layers() && self.fetcher.layer_copies.is_none() {
            self.fetcher.layer_copies = Some(state.join("layers"));
        }
        self.fetcher.trusted_keys.extend_from_slice(&self.trusted_keys);
    }

    /// Finds what cannot work before anything is started.
    pub fn check(&self) -> anyhow::Result<()> {
        TrustedKeys::parse(&self.trusted_keys)?;
        self.cache.check()?;
        self.fetcher.judging.check()?;
        self.policy.limits.check()?;
        self.quota.check()?;
        self.events.check()?;
        self.serve.check(self.nats.as_ref())?;
        if let Some(reason) = self.impatient() {
            bail!(reason);
        }
        Ok(())
    }

    /// Whether this process runs a service, when it serves.
    pub fn runs(&self, role: Role) -> bool {
        match role {
            _ if self.serve.is_apart() => self.serve.names(role),
            Role::Policy => self.runs_policies(),
            Role::Quota => self.runs_quota(),
            Role::Events => !self.events.sinks.is_empty(),
            Role::Fetcher | Role::Cache | Role::Frontend => true,
            Role::Operator => false,
        }
    }

    /// Whether a node runs policies. In a mesh all who answer share the questions, so there it leaves them to the mesh's own, unless it is
    /// told which ones it has.
    fn runs_policies(&self) -> bool {
        let told = self.policy.file.is_some() || self.policy.set != policy::SetConfig::default();
        self.nats.is_none() || told
    }

    /// Whether a node runs a quota service. In a mesh all who answer draw from the same counters, so there it leaves that to the mesh's own,
    /// unless it is told the limits.
    fn runs_quota(&self) -> bool {
        self.nats.is_none() || self.quota != quota::Config::default()
    }

    /// Where fetcher and policies run in one process: that the fetcher would not wait for the policies' own answer, by which they say
    /// which of them took the time.
    pub fn impatient(&self) -> Option<String> {
        let (total, wait) = (self.policy.limits.total_time, self.fetcher.judging.wait);
        (self.runs(Role::Policy) && total >= wait).then(|| {
            format!(
                "policy.limits.total_time is {total:?}, and fetcher.judging.wait {wait:?}: what policies say after that comes too late, so \
                 the wait must be longer"
            )
        })
    }

    /// Whose records and grants the services of this process believe: their own fetcher's among them.
    pub fn trusted(&self) -> anyhow::Result<TrustedKeys> {
        let trusted = TrustedKeys::parse(&self.trusted_keys)?;
        match self.runs(Role::Fetcher) {
            true => Ok(trusted.and(fetcher::verifying_key(&self.fetcher)?)),
            false => Ok(trusted),
        }
    }

    /// The socket that a frontend of this machine listens on.
    pub fn node_socket(&self) -> &Path {
        &self.frontend.socket
    }

    /// A folder of another's choice stays as open as it is: more than one machine or user may need it.
    pub fn open_store(&self) -> anyhow::Result<store::Store> {
        let store = self.store.open().with_context(|| format!("open the store {}", self.store.url))?;
        let own = self.state.join("store");
        if Path::new(&self.store.url) == own {
            lifecycle::private::close(&own);
        }
        Ok(store)
    }
}

/// The files to read: the one that was named, or the system's if there is one.
pub fn files(global: &Global) -> Vec<PathBuf> {
    match &global.config {
        Some(file) => vec![file.clone()],
        None => Some(PathBuf::from(SYSTEM_FILE)).filter(|file| file.exists()).into_iter().collect(),
    }
}

/// What flags say, in the settings' own names; `--set` first, so that a flag of its own wins.
pub fn overrides(global: &Global) -> Vec<(String, String)> {
    let path = |path: &Option<PathBuf>| path.as_deref().map(|path: &Path| path.display().to_string());
    let flags = [
        ("state", path(&global.state)),
        ("store.url", global.store.clone()),
        ("nats.url", global.nats.clone()),
        ("node", path(&global.node)),
        ("project", global.project.clone()),
    ];
    let flags = flags.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    global.set.iter().cloned().chain(flags).collect()
}

/// The flags that make a process of ours read the same settings: for the node that `mount` starts, and a unit.
pub fn flags(global: &Global) -> anyhow::Result<Vec<String>> {
    let absolute =
        |path: &Path| -> anyhow::Result<String> { Ok(std::path::absolute(path)?.display().to_string()) };
    let mut flags = Vec::new();
    let mut flag = |name: &str, value: String| flags.extend([name.to_owned(), value]);
    if let Some(file) = &global.config {
        flag("--config", absolute(file)?);
    }
    for (key, value) in &global.set {
        flag("--set", format!("{key}={value}"));
    }
    if let Some(state) = &global.state {
        flag("--state", absolute(state)?);
    }
    if let Some(node) = &global.node {
        flag("--node", absolute(node)?);
    }
    if let Some(store) = &global.store {
        let folder = !store.contains("://");
        flag("--store", if folder { absolute(Path::new(store))? } else { store.clone() });
    }
    if let Some(nats) = &global.nats {
        flag("--nats", nats.clone());
    }
    if let Some(project) = &global.project {
        flag("--project", project.clone());
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_node_of_a_mesh_has_policies_only_when_it_is_told_which() {
        let mut settings = Settings::default();
        assert!(settings.runs(Role::Policy));
        settings.nats = Some(bus::NatsConfig::default());
        assert!(!settings.runs(Role::Policy));
        settings.policy.set.prefetch.clear();
        assert!(settings.runs(Role::Policy));
        settings.policy = policy::Config { file: Some("policies.toml".into()), ..policy::Config::default() };
        assert!(settings.runs(Role::Policy));
    }

    #[test]
    fn a_node_of_a_mesh_hands_out_quotas_only_when_it_is_told_the_limits() {
        let mut settings = Settings::default();
        assert!(settings.runs(Role::Quota));
        settings.nats = Some(bus::NatsConfig::default());
        assert!(!settings.runs(Role::Quota));
        settings.quota.limits.imports.day = Some(quota::Amount::Limit(1));
        assert!(settings.runs(Role::Quota));
        settings.quota.spenders = 0;
        assert!(settings.check().unwrap_err().to_string().contains("quota.spenders"));
    }

    #[test]
    fn with_keys_the_services_that_have_some_are_run() {
        let mut settings = Settings { nats: Some(bus::NatsConfig::default()), ..Settings::default() };
        settings.serve.nats.insert("quota".to_owned(), bus::NatsConfig::default());
        settings.check().unwrap();
        assert!(settings.runs(Role::Quota) && !settings.runs(Role::Fetcher) && !settings.runs(Role::Policy));
        settings.nats = None;
        assert!(settings.check().unwrap_err().to_string().contains("needs nats.url"));
        settings.serve.nats.insert("operator".to_owned(), bus::NatsConfig::default());
        assert!(settings.check().unwrap_err().to_string().contains("serve.nats.operator"));
    }

    #[test]
    fn policies_that_are_not_waited_for_are_found_where_both_run_in_one_process() {
        let mut settings = Settings::default();
        settings.check().unwrap();
        settings.policy.limits.total_time = Duration::from_secs(3);
        let error = settings.check().unwrap_err().to_string();
        assert!(error.contains("policy.limits.total_time is 3s, and fetcher.judging.wait 3s"), "{error}");
        settings.fetcher.judging.wait = Duration::from_secs(4);
        settings.check().unwrap();
        settings.policy.limits.time = Duration::ZERO;
        assert!(settings.check().unwrap_err().to_string().contains("policy.limits.time is 0ns"));
        settings.policy.limits = policy::Limits::default();
        settings.fetcher.judging.wait = Duration::ZERO;
        assert!(settings.check().unwrap_err().to_string().contains("fetcher.judging.wait is 0ns"));
    }
}
