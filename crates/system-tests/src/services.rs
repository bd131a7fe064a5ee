//! Services as processes of their own, on a real NATS server: each can be killed, and comes back as it was.

use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::{Nats, Server};

use crate::{Scratch, binaries};

/// A service, and how it was started.
#[derive(Debug)]
pub struct Service {
    pub server: Server,
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
}

impl Service {
    /// SIGKILL.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.server.kill()
    }

    /// Starts it again, after it ended.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.server = spawn(&self.program, &self.arguments, &self.log)?;
        Ok(())
    }
}

/// What stands behind a node: NATS, a fetcher and a cache, with a store that outlives all three.
#[derive(Debug)]
pub struct Backend {
    pub nats: Nats,
    pub fetcher: Service,
    pub cache: Service,
    /// The fetcher's public key.
    pub key: String,
}

impl Backend {
    pub fn start(
        scratch: &Scratch,
        cache_port: u16,
        fetcher: &[String],
        cache: &[String],
    ) -> anyhow::Result<Backend> {
        let nats = Nats::start()?;
        let key = scratch.succeed(["config", "key"])?.trim().to_owned();
        let store = format!("store.url={}", scratch.path("mesh-store").display());
        let key_file = scratch.state().join("fetcher.key");
        let settings = [format!("fetcher.signing_key_file={}", key_file.display()), store.clone()];
        let fetcher = service(&nats, scratch, "fetcher", &[&settings, fetcher].concat())?;
        let listen = format!("cache.listen=127.0.0.1:{cache_port}");
        let settings = [listen, format!("cache.trusted_keys=[\"{key}\"]"), store];
        let mut cache = service(&nats, scratch, "cache", &[&settings, cache].concat())?;
        cache.server.wait_for_port("cache", cache_port)?;
        Ok(Backend { nats, fetcher, cache, key })
    }

    /// Another service on the same NATS.
    pub fn service(&self, scratch: &Scratch, name: &str, settings: &[String]) -> anyhow::Result<Service> {
        service(&self.nats, scratch, name, settings)
    }

    /// SIGKILL to all of it.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.nats.kill()?;
        self.fetcher.kill()?;
        self.cache.kill()
    }

    /// Starts all of it again.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.nats.restart()?;
        self.fetcher.restart()?;
        self.cache.restart()
    }
}

/// A service on a NATS server without keys.
pub(crate) fn service(
    nats: &Nats,
    scratch: &Scratch,
    name: &str,
    settings: &[String],
) -> anyhow::Result<Service> {
    let nats = format!("nats.url={}", nats.url());
    let settings: Vec<String> = [nats].into_iter().chain(settings.iter().cloned()).collect();
    start(scratch, name, set(&settings))
}

/// A service with a file of settings, and more of them.
pub(crate) fn configured(
    scratch: &Scratch,
    name: &str,
    config: &Path,
    settings: &[String],
) -> anyhow::Result<Service> {
    let config = ["--config".to_owned(), config.display().to_string()];
    start(scratch, name, [&config[..], &set(settings)].concat())
}

fn set(settings: &[String]) -> Vec<String> {
    settings.iter().flat_map(|setting| ["--set".to_owned(), setting.clone()]).collect()
}

fn start(scratch: &Scratch, name: &str, arguments: Vec<String>) -> anyhow::Result<Service> {
    let (program, log) = (binaries::path(name)?, scratch.path(&format!("{name}.log")));
    Ok(Service { server: spawn(&program, &arguments, &log)?, program, arguments, log })
}

fn spawn(program: &Path, arguments: &[String], log: &Path) -> anyhow::Result<Server> {
    let mut command = Command::new(program);
    command.args(arguments);
    Server::spawn(command, log, "a binary of this workspace")
}
