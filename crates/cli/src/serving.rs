//! Which services one process runs, and as whom each of them speaks.
//!
//! A node alone has no server between its services. One that belongs to a mesh speaks with one user for all of them, or, with keys of
//! `sluice keys`, with one for each: then NATS refuses each service what is not its own, as it would in a process of its own.

use std::collections::BTreeMap;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bus::{Answering, Bus, Introduction, NatsConfig};
use lifecycle::Service;
use proto::Role;
use proto::conversation::is_service;
use serde::{Deserialize, Serialize};

use crate::settings::Settings;

/// Services that one process can run.
const SERVICES: [Role; 6] =
    [Role::Fetcher, Role::Policy, Role::Quota, Role::Events, Role::Cache, Role::Frontend];

/// The `serve` section, which `sluice keys init` writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Serve {
    /// By service, as whom it speaks over NATS; those that are named are run, and no other. Nothing: one user for all.
    pub nats: BTreeMap<String, NatsConfig>,
    /// Gives nodes their identities, too.
    pub identity: Option<IdentityService>,
}

/// The identity service beside the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IdentityService {
    /// Default: as of the service in a process of its own.
    pub listen: Option<SocketAddr>,
    pub authority: PathBuf,
    pub tls: tls::Config,
    /// Lets in pods by their projected tokens; absent: none.
    pub kubernetes: Option<identity_service::KubernetesConfig>,
}

impl Serve {
    pub fn check(&self, mesh: Option<&NatsConfig>) -> anyhow::Result<()> {
        let known = |name: &str| SERVICES.iter().any(|role| role.name() == name);
        if let Some(name) = self.nats.keys().find(|name| !known(name)) {
            bail!("serve.nats.{name}: {} expected", SERVICES.map(Role::name).join(", "));
        }
        ensure!(
            self.nats.is_empty() || mesh.is_some(),
            "serve.nats needs nats.url, by which commands reach the services"
        );
        Ok(())
    }

    /// Whether services have users of their own.
    pub fn is_apart(&self) -> bool {
        !self.nats.is_empty()
    }

    pub fn names(&self, role: Role) -> bool {
        self.nats.contains_key(role.name())
    }
}

impl IdentityService {
    pub fn config(&self) -> identity_service::Config {
        let IdentityService { listen, authority, kubernetes, .. } = self.clone();
        let default = identity_service::Config::default();
        identity_service::Config { listen: listen.unwrap_or(default.listen), authority, kubernetes }
    }
}

/// The ways to the mesh of one process.
#[derive(Clone, Debug)]
pub struct Buses {
    shared: Bus,
    own: BTreeMap<Role, Bus>,
}

impl Buses {
    pub fn one(bus: Bus) -> Buses {
        Buses { shared: bus, own: BTreeMap::new() }
    }

    /// As the settings say: in this process, with one user, or with one for each service.
    pub async fn connect(settings: &Settings) -> anyhow::Result<Buses> {
        settings.serve.check(settings.nats.as_ref())?;
        let node = &settings.frontend.node;
        let mut own = BTreeMap::new();
        for (name, config) in &settings.serve.nats {
            let role = Role::from_name(name).context("it was checked")?;
            let bus = Bus::connect(config).await.with_context(|| format!("connect to NATS as {name}"))?;
            bus.events().told_by(name, if role == Role::Frontend { node } else { "" });
            own.insert(role, bus);
        }
        let shared = match (&settings.nats, own.first_key_value()) {
            // Nobody speaks for all.
            (_, Some((_, first))) => first.clone(),
            (Some(nats), None) => Bus::connect(nats).await.context("connect to NATS")?,
            (None, None) => Bus::in_process(),
        };
        if own.is_empty() {
            shared.events().told_by("sluice", node);
        }
        Ok(Buses { shared, own })
    }

    pub fn of(&self, role: Role) -> &Bus {
        self.own.get(&role).unwrap_or(&self.shared)
    }

    /// Whether all of them are connected, as whoever watches it asks.
    pub fn probe(&self) -> impl Fn() -> Ready<Result<(), String>> + Send + Sync + 'static {
        let buses = self.clone();
        move || {
            let of_one = |(role, bus): (&Role, &Bus)| {
                bus.connected().map_err(|error| format!("{}: {error}", role.name()))
            };
            ready(match buses.own.is_empty() {
                true => buses.shared.connected(),
                false => buses.own.iter().try_for_each(of_one),
            })
        }
    }

    /// Publishes what happened and was not told so far, at the end of a process.
    pub async fn settle(&self, within: Duration) {
        let all: Vec<&Bus> =
            if self.own.is_empty() { vec![&self.shared] } else { self.own.values().collect() };
        futures::future::join_all(all.into_iter().map(|bus| bus.events().settle(within))).await;
    }

    /// Each service that runs here says that it is there, and so does the node.
    pub async fn introduce(&self, settings: &Settings, service: &Service) -> anyhow::Result<Vec<Answering>> {
        let mut there = Vec::new();
        if settings.nats.is_none() {
            return Ok(there);
        }
        let insecure = settings.nats.as_ref().is_some_and(|nats| nats.insecure)
            || settings.serve.nats.values().any(|nats| nats.insecure);
        let insecure = [
            ("nats.insecure", insecure),
            ("tls.insecure", settings.tls.insecure),
            ("fetcher.push.tls.insecure", settings.fetcher.push.tls.insecure),
        ];
        let about = || {
            let ready = service.ready.clone();
            Introduction::of(lifecycle::VERSION, move || ready.check(), &insecure)
        };
        for role in SERVICES.into_iter().filter(|role| is_service(*role) && settings.runs(*role)) {
            there.push(self.of(role).introduce(role, about()).await?);
        }
        if settings.runs(Role::Frontend) {
            let (bus, about) = (self.of(Role::Frontend).clone(), about());
            let (node, stop) = (settings.frontend.node.clone(), service.shutdown.clone());
            service.tasks.spawn(async move { stop.run_until_cancelled(bus.be_present(&node, about)).await });
        }
        Ok(there)
    }
}
