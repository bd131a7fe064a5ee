//! One measured start of a container over a root that is there; the same for both sides.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::time::Instant;

use super::ready::{Output, Ready};
use crate::runtime::container::Streams;
use crate::runtime::user::RootDir;
use crate::runtime::{Container, ImageConfig, Network, RunOptions, Runtime, spec, user};

/// How containers are started in this comparison.
#[derive(Clone, Debug)]
pub struct Starter {
    pub runtime: Runtime,
    /// Of the containers' names: comparisons side by side share the machine's control groups.
    pub prefix: String,
    pub options: RunOptions,
    /// None: as the image's config lets one expect.
    pub ready: Option<Ready>,
    pub timeout: Duration,
}

/// A container that is ready. Dropped, it is gone.
#[derive(Debug)]
pub struct Started {
    pub created: Instant,
    pub ready: Instant,
    _container: Container,
}

impl Starter {
    /// Creates a container over `root`, and waits until it is ready. `config` is the image's.
    pub async fn start(
        &self,
        side: &str,
        root: &Path,
        bundle: &Path,
        config: &ImageConfig,
    ) -> anyhow::Result<Started> {
        let name = self.options.user.clone().unwrap_or_else(|| config.user.clone());
        let looked_up = root.to_owned();
        let identity =
            tokio::task::spawn_blocking(move || user::identity(&name, &RootDir(&looked_up))).await??;
        let id = format!("{}-{side}", self.prefix);
        let spec = spec::spec(&id, root, config, &self.options, &identity)?;
        let mut container = Container::create(self.runtime.clone(), &id, bundle.to_owned(), &spec)?;
        let ready_when = self.ready.clone().unwrap_or_else(|| Ready::expected(config));
        if self.options.network == Network::Host {
            ready_when.check_free().await?;
        }
        let ports = container.ports(self.options.network);
        let created = Instant::now();
        let mut process = container.run(Streams::Capture, true)?;
        let output = Output::of(&mut process, &ready_when);
        let became_ready =
            tokio::time::timeout(self.timeout, ready_when.wait(&mut process, &output, &ports)).await;
        let ready = Instant::now();
        match became_ready {
            Ok(Ok(())) => Ok(Started { created, ready, _container: container }),
            Ok(Err(error)) => match container.failure() {
                Some(failure) => Err(failure.into()),
                None => Err(error.context(output.tail())),
            },
            Err(_) => bail!("the container was not ready after {:?}; {}", self.timeout, output.tail()),
        }
    }
}

/// Empties the page cache and the kernel's caches of names and inodes, so that every start is a cold one.
pub async fn drop_caches() -> anyhow::Result<()> {
    let drop = || {
        rustix::fs::sync();
        std::fs::write("/proc/sys/vm/drop_caches", "3").context("drop the machine's caches")
    };
    tokio::task::spawn_blocking(drop).await?
}
