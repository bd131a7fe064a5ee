//! The policy service: runs the plugins that decide what streams and what is fetched first.
//!
//! ```text
//! bus --> service --> set       one generation of policies, replaced as a whole
//!            |          `-- plugin --> host    a fresh WebAssembly instance per call, within limits
//!          watch                   `---> source   builtin, a file, or `remote`: a registry, with signatures
//!                                verdict, plan, settings, breaker    pure: what answers mean, and what failures lead to
//!                                record    what was decided, for `sluice policy record` and `replay`
//! trial --> set                  the same without a bus, for who writes policies
//! ```
//!
//! It keeps nothing but copies of what it pulled: any number of policy services answer side by side. The contract that plugins
//! are written against is `plugins/wit`; this is the only crate that links an engine for WebAssembly.

mod breaker;
mod config;
mod facts;
mod foreign;
mod host;
mod meters;
mod outline;
mod plan;
mod plugin;
pub mod record;
mod remote;
mod service;
mod set;
mod settings;
mod source;
mod trial;
mod verdict;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bus::{Answering, Bus};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use host::Host;
use record::Records;
use service::Service;
use set::Set;
use source::Sources;
use watch::SetFile;

pub use config::{
    Combine, Config, Limits, Mode, OnFailure, PolicyConfig, Required, SetConfig, Settings, TrustConfig,
};
pub use outline::{Outline, outline};
pub use registry::{Access, Credential};
pub use remote::{PulledPlugin, Registries, RemoteName, SigningKey};
pub use source::{read_plugin, sign_file, signature_file};
pub use trial::{Cost, Examined, Trial};

/// Policies that answer. Dropped, they take no more questions.
#[derive(Debug)]
pub struct Policies {
    _answering: Vec<Answering>,
}

impl Policies {
    /// Loads the policy set and answers from when this returns. A set that cannot be used is an error: what was never
    /// loaded has no generation before it.
    pub async fn start(
        config: Config,
        bus: Bus,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Policies> {
        let sources = Sources::new(&config, shutdown.clone())?;
        let Config { file, set, limits, record, .. } = config;
        let total_time = limits.total_time;
        let records = Records::new(record, &bus)?;
        let file = file.map(|path| SetFile { path });
        let load = move || -> anyhow::Result<_> {
            let text = file.as_ref().map(SetFile::read).transpose()?;
            let (set, folder) = match (&file, &text) {
                (Some(file), Some(text)) => (file.parse(text)?, file.folder()),
                _ => (set, PathBuf::new()),
            };
            let host = Host::new(limits)?;
            let set = Set::load(&host, &set, &sources, &folder, None)?;
            Ok((host, sources, set, file.zip(text)))
        };
        let (host, sources, set, file) =
            tokio::task::spawn_blocking(load).await.context("loading the policies")??;
        tracing::info!(policies = set.shown().len(), pooled = host.is_pooled(), "loaded the policies");
        let service = Arc::new(Service::new(host, sources, total_time, set, bus.events().clone(), records));
        let answering = service.answer_all(&bus).await?;
        if let Some((file, loaded)) = file {
            tasks.spawn(watch::watch(service, file, loaded, shutdown));
        }
        Ok(Policies { _answering: answering })
    }
}

/// No deadline but what a call has by itself.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(3_600)
}
