//! Import on push: registries tell what was pushed, and it is imported before anybody pulls it.
//!
//! ```text
//! POST /push/NAME --> server   who asks: one of the secrets of NAME's registry
//!                       `-> told      what a body says: repositories, digests, tags; of many formats, pure
//!                             `-> queue     each image once, so many wait, so many at a time
//!                                   `-> service/pushed     asks the registry, the policies, the quota; imports
//! ```
//!
//! A body names a repository and a digest, and nothing else of it is used: the registry's address comes from the configuration,
//! as does the project that pays, so whoever has a secret can have imported what the registry holds in allowed repositories,
//! and can make the fetcher ask nobody else. What is told is no proof of anything: who pulls the image is judged as ever.

mod config;
mod queue;
mod secrets;
mod server;
mod told;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use glob::Pattern;
use names::{ManifestDigest, Project, Reference};
use proto::Platform;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{Config, RegistryConfig};

use crate::service::Service;
use config::MATCH;
use queue::Queue;

/// A registry that tells, as it is used.
#[derive(Debug)]
pub(crate) struct Registry {
    /// In addresses, metrics and logs.
    pub(crate) name: String,
    /// `HOST[:PORT]`, as images of it are named.
    pub(crate) host: String,
    pub(crate) project: Project,
    /// None: this machine's.
    pub(crate) platforms: Vec<Platform>,
    config: RegistryConfig,
    repositories: Vec<Pattern>,
}

/// An image that was pushed to a registry of ours.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pushed {
    pub(crate) repository: String,
    pub(crate) digest: ManifestDigest,
    pub(crate) tag: Option<String>,
}

impl Registry {
    pub(crate) fn allows(&self, repository: &str) -> bool {
        self.repositories.iter().any(|pattern| pattern.matches_with(repository, MATCH))
    }

    /// Its name as people say it, and with the digest behind it, by which it is asked for. None: no image is called so.
    pub(crate) fn reference(&self, pushed: &Pushed) -> Option<(Reference, Reference)> {
        let Pushed { repository, digest, tag } = pushed;
        let name = match tag {
            Some(tag) => format!("{}/{repository}:{tag}", self.host),
            None => format!("{}/{repository}@{digest}", self.host),
        };
        let reference = Reference::parse(&name)?;
        let ours = reference.registry() == self.host && reference.repository() == *repository;
        ours.then(|| (reference.clone(), reference.pinned(digest)))
    }
}

/// Listens, where the configuration says so; returns where.
pub(crate) async fn start(
    config: &Config,
    service: Arc<Service>,
    imports_at_once: usize,
    tasks: &TaskTracker,
    shutdown: CancellationToken,
) -> anyhow::Result<Option<SocketAddr>> {
    let Some(address) = config.listen else { return Ok(None) };
    let registries = config.open()?;
    let queue = Queue::new(service, config.at_once(imports_at_once), config.queue, tasks, shutdown.clone());
    let tls = config.tls.open().context("fetcher.push.tls")?;
    server::start(address, tls, registries, queue, tasks, shutdown).await.map(Some)
}
