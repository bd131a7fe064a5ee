//! The services in this process: sluice alone, with no server.
//!
//! Which of them run depends on the command: those that only import need the fetcher, its policies and the quota service, a node all
//! five, unless the mesh that it belongs to has policies and quotas.
//! They share one shutdown; [`Embedded::stop`] waits for them, a drop only tells them to end.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use bus::Bus;
use cache::Cache;
use events::Sinks;
use fetcher::{Fetcher, Switches};
use frontend::{Early, Frontend};
use lifecycle::Probe;
use policy::Policies;
use proto::{Event, EventKind, Role};
use quota::Quota;
use store::Store;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::layers::Keeper;
use crate::serving::Buses;
use crate::settings::Settings;

/// How long services may take to end what they were doing.
const DRAIN: Duration = Duration::from_secs(20);
/// How often policies that cannot be used are looked at; after how many looks at most they are tried again, changed or not.
const POLICIES_LOOK: Duration = Duration::from_secs(5);
const LOOKS_MAX: u32 = 60;

#[derive(Debug)]
pub struct Embedded {
    buses: Buses,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    fetcher: Option<Fetcher>,
    cache: Option<Cache>,
    frontend: Option<Frontend>,
    policies: Option<Policies>,
    quota: Option<Quota>,
    switches: Option<Switches>,
    sinks: Option<Sinks>,
}

impl Embedded {
    /// No service yet; those that are started speak over `bus`.
    pub fn new(bus: Bus, tasks: TaskTracker, shutdown: CancellationToken) -> Embedded {
        Embedded::on(Buses::one(bus), tasks, shutdown)
    }

    fn on(buses: Buses, tasks: TaskTracker, shutdown: CancellationToken) -> Embedded {
        Embedded {
            buses,
            tasks,
            shutdown,
            fetcher: None,
            cache: None,
            frontend: None,
            policies: None,
            quota: None,
            switches: None,
            sinks: None,
        }
    }

    /// The fetcher, and policies and the quota service for it to ask: for commands that mount nothing.
    pub async fn fetcher_only(settings: &Settings) -> anyhow::Result<Embedded> {
        let mut embedded = Embedded::new(Bus::in_process(), TaskTracker::new(), CancellationToken::new());
        embedded.start_policies(settings).await?;
        embedded.start_quota(settings).await?;
        embedded.start_fetcher(settings).await?;
        Ok(embedded)
    }

    /// The quota service alone: for what is asked of it.
    pub async fn quota_only(settings: &Settings) -> anyhow::Result<Embedded> {
        let mut embedded = Embedded::new(Bus::in_process(), TaskTracker::new(), CancellationToken::new());
        embedded.start_quota(settings).await?;
        Ok(embedded)
    }

    /// The projects' switches alone.
    pub async fn switches_only(settings: &Settings) -> anyhow::Result<Embedded> {
        let mut embedded = Embedded::new(Bus::in_process(), TaskTracker::new(), CancellationToken::new());
        let switches = Switches::start(settings.fetcher.projects.clone(), embedded.bus()).await;
        embedded.switches = Some(switches.context("read the projects' switches")?);
        Ok(embedded)
    }

    /// A fetcher that answers what is asked of the store alone; none where there is no store.
    pub async fn questions(settings: &Settings) -> anyhow::Result<Option<Embedded>> {
        let store = match settings.store.open_existing() {
            Err(error) if error.is_not_found() => return Ok(None),
            store => store.with_context(|| format!("open the store {}", settings.store.url))?,
        };
        let mut embedded = Embedded::new(Bus::in_process(), TaskTracker::new(), CancellationToken::new());
        let (config, bus, shutdown) =
            (settings.fetcher.clone(), embedded.bus_of(Role::Fetcher), embedded.shutdown.clone());
        let fetcher = Fetcher::start_for_questions(config, store, bus, &embedded.tasks, shutdown).await;
        embedded.fetcher = Some(fetcher.context("start the embedded fetcher")?);
        Ok(Some(embedded))
    }

    /// Policies, quotas, fetcher, cache and frontend: a whole node. On NATS when the settings name it, so that others may use its
    /// fetcher and cache too; policies and quotas are the mesh's then, unless the settings say which this node has. With keys of a
    /// mesh, those services that have one ([`crate::serving`]).
    pub async fn node(
        settings: &Settings,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Embedded> {
        let early = match settings.runs(Role::Frontend) {
            true => Some(Early::open(&settings.frontend, &tasks, &shutdown)?),
            false => None,
        };
        let mut embedded = Embedded::on(Buses::connect(settings).await?, tasks, shutdown);
        embedded.start_identities(settings).await?;
        if settings.runs(Role::Events) {
            embedded.start_sinks(settings).await;
        }
        if settings.runs(Role::Policy) {
            embedded.start_policies_sooner_or_later(settings).await;
        }
        if settings.runs(Role::Quota) {
            embedded.start_quota(settings).await?;
        }
        if settings.runs(Role::Fetcher) {
            embedded.start_fetcher(settings).await?;
            embedded.listen_for_pushes(settings).await;
        }
        if settings.runs(Role::Cache) {
            embedded.start_cache(settings).await?;
        }
        if let Some(early) = early {
            embedded.start_frontend(settings, early, Some(settings.open_store()?)).await?;
        }
        Keeper::start(settings, &embedded.tasks, embedded.shutdown.clone())?;
        Ok(embedded)
    }

    /// Gives nodes their identities, and keeps this node's own renewed, where the settings say so.
    async fn start_identities(&self, settings: &Settings) -> anyhow::Result<()> {
        let shutdown = || self.shutdown.clone();
        if let Some(service) = &settings.serve.identity {
            let tls = service.tls.open().context("serve.identity.tls")?;
            let started = identity_service::start(service.config(), tls, &self.tasks, shutdown()).await;
            started.context("start the embedded identity service")?;
        }
        if settings.identity.address.is_some() {
            self.tasks.spawn(identity::client::keep_renewed(settings.identity.clone(), shutdown()));
        }
        Ok(())
    }

    /// Writes events, where the settings say so. A node starts its containers whatever becomes of its events.
    async fn start_sinks(&mut self, settings: &Settings) {
        let (config, bus) = (settings.events.clone(), self.bus_of(Role::Events));
        match Sinks::start(config, bus, &self.tasks, self.shutdown.clone()).await {
            Ok(sinks) => self.sinks = Some(sinks),
            Err(error) => tracing::error!(
                error = format!("{error:#}"),
                "events are written nowhere: a sink cannot be opened"
            ),
        }
    }

    /// Imports what registries tell was pushed, where the settings say so. A node starts its containers whatever becomes of that.
    async fn listen_for_pushes(&self, settings: &Settings) {
        let Some(fetcher) = &self.fetcher else { return };
        if let Err(error) = fetcher.listen_for_pushes(&settings.fetcher).await {
            tracing::error!(error = format!("{error:#}"), "registries cannot tell what is pushed");
        }
    }

    /// Makes a process ready only while what runs in it works.
    pub fn depend(&self, service: &lifecycle::Service, settings: &Settings) {
        service.depend_on(Probe::BUS, self.buses.probe());
        let Some(nats) = &settings.nats else { return };
        let apart = settings.serve.is_apart();
        checks::keep_looking(
            service,
            checks::Needs {
                nats: if apart {
                    settings.serve.nats.values().cloned().collect()
                } else {
                    vec![nats.clone()]
                },
                tls: vec![settings.cache.tls.clone(), settings.frontend.tls.clone()],
                private: Vec::new(),
            },
        );
        if let Some(fetcher) = &self.fetcher {
            service.depend_on(fetcher::REVOCATIONS, fetcher.revocations().probe());
            service.depend_on(fetcher::SWITCHES, fetcher.switches());
        }
        if let Some(quota) = &self.quota {
            service.depend_on(quota::LIVE_LIMITS, quota.probe());
        }
        if self.frontend.is_some() {
            service.depend_on(checks::CLOCK, checks::clock_probe(self.bus_of(Role::Frontend)));
        }
        if let Some(sinks) = &self.sinks {
            service.depend_on(Sinks::STREAM, sinks.probe());
        }
    }

    pub fn buses(&self) -> &Buses {
        &self.buses
    }

    fn bus_of(&self, role: Role) -> Bus {
        self.buses.of(role).clone()
    }

    /// By which whoever runs this asks the services.
    pub fn bus(&self) -> &Bus {
        self.buses.of(Role::Operator)
    }

    /// The cache that was started; bulk content is served on its address.
    pub fn cache(&self) -> Option<&Cache> {
        self.cache.as_ref()
    }

    pub async fn start_policies(&mut self, settings: &Settings) -> anyhow::Result<()> {
        if let Some(reason) = settings.impatient() {
            tracing::warn!("{reason}");
        }
        let config = settings.policy.clone();
        let policies = Policies::start(config, self.bus_of(Role::Policy), &self.tasks, self.shutdown.clone());
        self.policies = Some(Box::pin(policies).await.context("start the embedded policies")?);
        Ok(())
    }

    /// A node starts its containers whatever its policies are like. As long as they cannot be used nobody answers for them, and what
    /// holds then is `fetcher.judging.unanswered`.
    async fn start_policies_sooner_or_later(&mut self, settings: &Settings) {
        let Err(error) = self.start_policies(settings).await else { return };
        let error = format!("{error:#}");
        tracing::error!(error, "the policies cannot be used: nobody answers for them");
        let event = Event::new(EventKind::PolicySet, "unusable", format!("no policy set is in use: {error}"));
        let bus = self.bus_of(Role::Policy);
        bus.events().tell(Event { service: "policy".to_owned(), ..event });
        let config = settings.policy.clone();
        let (tasks, shutdown) = (self.tasks.clone(), self.shutdown.clone());
        self.tasks.spawn(async move {
            let (mut seen, mut looks, mut wait) = (changed(&config), 0, 1);
            while shutdown.run_until_cancelled(sleep(POLICIES_LOOK)).await.is_some() {
                looks += 1;
                let now = changed(&config);
                if looks < wait && now == seen {
                    continue;
                }
                // Compiling costs some seconds: what is wrong for longer is tried more and more seldom.
                (looks, wait) = if now == seen { (0, LOOKS_MAX.min(wait * 2)) } else { (0, 1) };
                seen = now;
                match Policies::start(config.clone(), bus.clone(), &tasks, shutdown.clone()).await {
                    Ok(policies) => {
                        tracing::info!("the policies can be used now");
                        shutdown.cancelled().await;
                        return drop(policies);
                    }
                    Err(error) => {
                        let error = format!("{error:#}");
                        tracing::error!(error, "the policies cannot be used: nobody answers for them");
                    }
                }
            }
        });
    }

    /// Before those who spend: they ask it first.
    pub async fn start_quota(&mut self, settings: &Settings) -> anyhow::Result<()> {
        let config = settings.quota.clone();
        let quota = Quota::start(config, self.bus_of(Role::Quota), &self.tasks, self.shutdown.clone());
        self.quota = Some(quota.await.context("start the embedded quota service")?);
        Ok(())
    }

    pub async fn start_fetcher(&mut self, settings: &Settings) -> anyhow::Result<()> {
        let (config, store) = (settings.fetcher.clone(), settings.open_store()?);
        let fetcher =
            Fetcher::start(config, store, self.bus_of(Role::Fetcher), &self.tasks, self.shutdown.clone());
        self.fetcher = Some(fetcher.await.context("start the embedded fetcher")?);
        Ok(())
    }

    pub async fn start_cache(&mut self, settings: &Settings) -> anyhow::Result<()> {
        let (config, store, trusted) = (settings.cache.clone(), settings.open_store()?, settings.trusted()?);
        let cache = Cache::start(
            config,
            store,
            self.bus_of(Role::Cache),
            trusted,
            &self.tasks,
            self.shutdown.clone(),
        );
        self.cache = Some(cache.await.context("start the embedded cache")?);
        Ok(())
    }

    /// `store`: where the frontend may read directly when no cache answers.
    pub async fn start_frontend(
        &mut self,
        settings: &Settings,
        early: Early,
        store: Option<Store>,
    ) -> anyhow::Result<()> {
        let (config, trusted) = (settings.frontend.clone(), settings.trusted()?);
        let frontend = Frontend::start(
            config,
            early,
            store,
            self.bus_of(Role::Frontend),
            trusted,
            &self.tasks,
            self.shutdown.clone(),
        );
        self.frontend = Some(Box::pin(frontend).await.context("start the embedded frontend")?);
        Ok(())
    }

    /// Tells all services to end, and waits until they have.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!(tasks = self.tasks.len(), "embedded services did not end in time");
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// When the file of the policy set was last changed, if there is one.
fn changed(config: &policy::Config) -> Option<SystemTime> {
    std::fs::metadata(config.file.as_ref()?).and_then(|file| file.modified()).ok()
}
