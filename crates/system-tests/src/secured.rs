//! A mesh with the keys of `sluice keys`: a NATS server with the configuration that they come with, and services that show who they are.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bus::NatsConfig;
use identity::{Options, Set};
use testkit::{Nats, port};

use crate::Scratch;
use crate::services::{self, Service};

#[derive(Debug)]
pub struct Secured {
    pub set: Set,
    pub nats: Nats,
    pub nats_port: u16,
}

impl Secured {
    /// In a folder of `scratch`.
    pub fn start(scratch: &Scratch) -> anyhow::Result<Secured> {
        let nats_port = port::free()?;
        let options = Options {
            name: "test".to_owned(),
            hosts: Vec::new(),
            nats_url: format!("tls://127.0.0.1:{nats_port}"),
            listen: format!("127.0.0.1:{nats_port}"),
            at: None,
        };
        let set = Set::init(&scratch.path("mesh"), &options)?;
        let nats = Nats::configured(&set.folder().join("nats/nats-server.conf"), nats_port)?;
        Ok(Secured { set, nats, nats_port })
    }

    /// The service with its own keys, and these settings besides.
    pub fn service(&self, scratch: &Scratch, name: &str, settings: &[String]) -> anyhow::Result<Service> {
        services::configured(scratch, name, &self.folder(name).join(format!("{name}.toml")), settings)
    }

    /// The files of a service.
    pub fn folder(&self, service: &str) -> PathBuf {
        self.set.folder().join("services").join(service)
    }

    /// The files of the first operator.
    pub fn operator(&self) -> PathBuf {
        self.set.folder().join("operators/operator")
    }

    /// Makes the keys of a node here; their folder.
    pub fn node(&mut self, name: &str, project: &str) -> anyhow::Result<PathBuf> {
        self.set.add_node(name, &[project.to_owned()])
    }

    /// What signs records and grants.
    pub fn signing_key(&self) -> PathBuf {
        self.set.folder().join("fetcher.key")
    }
}

/// How who has these files connects to NATS.
pub fn nats_config(folder: &Path) -> anyhow::Result<NatsConfig> {
    let files = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    let mut files = files.flatten().map(|entry| entry.path());
    let settings = files.find(|path| path.extension().is_some_and(|end| end == "toml"));
    let settings = settings.with_context(|| format!("no settings in {}", folder.display()))?;
    let settings: toml::Table = fs::read_to_string(&settings)?.parse()?;
    let nats = settings.get("nats").cloned().with_context(|| format!("{} has no user", folder.display()))?;
    Ok(nats.try_into()?)
}

/// And to services, by gRPC.
pub fn tls_config(folder: &Path) -> tls::Config {
    tls::Config {
        ca_file: Some(folder.join("ca.pem")),
        certificate_file: Some(folder.join("tls.pem")),
        key_file: Some(folder.join("tls.key")),
        insecure: false,
    }
}
