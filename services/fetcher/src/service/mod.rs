//! The fetcher's side of the conversation: one handler per call.
//!
//! Handlers are short: they ask a registry or the store and answer. An import is a task of its own
//! (`jobs`), which callers follow; it ends with the process, and the next one goes on from there.

mod collect;
mod grants;
mod images;
mod inspect;
mod jobs;
mod judging;
mod part;
mod pushed;
mod rechecks;
mod recompressing;
mod resolve;
mod revoke;
mod sealing;
mod seeding;
mod starts;
mod unjudged;

use std::future::Ready;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use allowance::Allowances;
use bus::{Answer, Answering, Bus};
use names::ImageName;
use proto::{Call, Role};
use revocations::Revocations;
use store::{ProjectStore, Store};
use tls::sealing::SealingKey;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::config::STARTS_ZSTD_LEVEL;
use crate::import::Importer;
use crate::key::Keys;
use crate::nodes::Nodes;
use crate::projects::Projects;
use crate::push;
use crate::records::Records;
use crate::source::{BlobPlace, Sources};
use crate::{Config, Judging};

use grants::Grants;
use jobs::Jobs;
pub(crate) use pushed::Taken;
use rechecks::Rechecks;
use recompressing::Recompressing;
use unjudged::Unjudged;

/// Requests of one kind that are handled at the same time; most of them wait for a registry.
const REQUESTS_IN_FLIGHT: usize = 64;
/// Followers wait inside their request, and many nodes may follow one import.
const FOLLOWERS_IN_FLIGHT: usize = 1024;
/// A collection walks the whole store: one is enough.
const COLLECTIONS_IN_FLIGHT: usize = 1;

/// Operators revoke; each change waits for the one before.
const REVOCATIONS_IN_FLIGHT: usize = 8;

/// A running fetcher. Dropped, it takes no more requests; its imports end with the `shutdown` it got.
#[derive(Debug)]
pub struct Fetcher {
    instance: Arc<str>,
    service: Arc<Service>,
    _answering: Vec<Answering>,
}

/// What all handlers share.
#[derive(Debug)]
pub(crate) struct Service {
    instance: Arc<str>,
    grants: Grants,
    rechecks: Rechecks,
    recheck_turns: Semaphore,
    sealing: SealingKey,
    local_sources: bool,
    refused_after_deaths: Duration,
    judging: Judging,
    allowances: Allowances,
    same_registries: Vec<Vec<String>>,
    projects: Arc<Projects>,
    unjudged: Unjudged,
    records: Records,
    store: Store,
    sources: Sources,
    importer: Importer,
    jobs: Jobs,
    recompressing: Recompressing,
    bus: Bus,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Fetcher {
    /// Starts to answer. Imports run on `tasks` and stop with `shutdown`.
    pub async fn start(
        config: Config,
        store: Store,
        bus: Bus,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Fetcher> {
        config.judging.check()?;
        let keys = Keys::load(&config)?;
        let (known, end) = ((store.clone(), keys.trusted()), shutdown.clone());
        let revocations = Revocations::follow(known, bus.clone(), Role::Fetcher, tasks, end).await;
        let projects = Projects::follow(config.projects.clone(), &bus, tasks, shutdown.clone()).await;
        let mut answering = projects.answer(&bus).await?;
        answering.extend(Nodes::follow(&bus, tasks, shutdown.clone()).answer(&bus).await?);
        let service = Service::new(config, keys, (revocations, projects), store, &bus, tasks, shutdown)?;
        answering.extend([
            service.answer(&bus, REQUESTS_IN_FLIGHT, Service::resolve).await?,
            service.answer(&bus, FOLLOWERS_IN_FLIGHT, Service::follow).await?,
            service.answer(&bus, REQUESTS_IN_FLIGHT, Service::sealing).await?,
            service.answer(&bus, REQUESTS_IN_FLIGHT, Service::renew).await?,
            service.answer(&bus, REQUESTS_IN_FLIGHT, Service::inspect).await?,
            service.answer(&bus, REQUESTS_IN_FLIGHT, Service::list).await?,
            service.answer(&bus, REQUESTS_IN_FLIGHT, Service::remove).await?,
            service.answer(&bus, COLLECTIONS_IN_FLIGHT, Service::collect).await?,
            service.answer(&bus, REQUESTS_IN_FLIGHT, Service::report).await?,
            service.answer(&bus, REQUESTS_IN_FLIGHT, Service::repair).await?,
            service.answer(&bus, REVOCATIONS_IN_FLIGHT, Service::revoke).await?,
        ]);
        Ok(Fetcher::of(service, answering))
    }

    /// Starts to answer what is asked of the store alone: list, remove and collect, which sign nothing. So no key is made.
    pub async fn start_for_questions(
        config: Config,
        store: Store,
        bus: Bus,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Fetcher> {
        let keys = Keys::existing(&config)?;
        let revocations = Revocations::unknown(store.clone(), keys.trusted());
        let projects = Arc::new(Projects::new(config.projects.clone(), &bus));
        let service = Service::new(config, keys, (revocations, projects), store, &bus, tasks, shutdown)?;
        let answering = vec![
            service.answer(&bus, REQUESTS_IN_FLIGHT, Service::list).await?,
            service.answer(&bus, REQUESTS_IN_FLIGHT, Service::remove).await?,
            service.answer(&bus, COLLECTIONS_IN_FLIGHT, Service::collect).await?,
        ];
        Ok(Fetcher::of(service, answering))
    }

    fn of(service: Arc<Service>, answering: Vec<Answering>) -> Fetcher {
        Fetcher { instance: service.instance.clone(), service, _answering: answering }
    }

    /// Listens to registries that tell what was pushed, where `config` says so; returns where. Not part of the start, as one process of a
    /// machine can: commands that run a fetcher of their own read the same settings.
    pub async fn listen_for_pushes(&self, config: &Config) -> anyhow::Result<Option<SocketAddr>> {
        let (service, imports) = (self.service.clone(), config.limits.imports_at_once);
        let (tasks, shutdown) = (self.service.tasks.clone(), self.service.shutdown.clone());
        push::start(&config.push, service, imports, &tasks, shutdown).await
    }

    /// What counts no more, as far as it knows: for who asks whether it can work.
    pub fn revocations(&self) -> &Revocations {
        self.service.grants.revocations()
    }

    /// Whether it knows what was switched live: [`crate::SWITCHES`].
    pub fn switches(&self) -> impl Fn() -> Ready<Result<(), String>> + Send + Sync + 'static {
        self.service.projects.probe()
    }

    /// By which this fetcher is asked about its own imports.
    pub fn instance(&self) -> &str {
        &self.instance
    }
}

impl Service {
    fn new(
        config: Config,
        keys: Keys,
        (revocations, projects): (Revocations, Arc<Projects>),
        store: Store,
        bus: &Bus,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Arc<Service>> {
        let records = Records::new(keys.clone());
        let sealing = keys.sealing()?;
        let instance: Arc<str> = format!("fetcher-{:08x}", rand::random::<u32>()).into();
        Ok(Arc::new(Service {
            instance: instance.clone(),
            sealing,
            rechecks: Rechecks { after: config.grant_recheck, grace: config.grant_recheck_grace },
            recheck_turns: Semaphore::new(rechecks::ASKED_AT_ONCE),
            grants: Grants::new(keys, config.grant_ttl, config.grant_renewal, revocations),
            local_sources: config.local_sources,
            refused_after_deaths: config.limits.refused_after_deaths,
            judging: config.judging.clone(),
            allowances: Allowances::new(bus.clone(), config.spending()),
            same_registries: config.same_registries.clone(),
            projects,
            unjudged: Unjudged::default(),
            importer: Importer::new(&config, records.clone(), &instance, tasks.clone()),
            records,
            store,
            sources: Sources::new(config.source)?,
            jobs: Jobs::default(),
            recompressing: Recompressing::new(config.starts_zstd_level.unwrap_or(STARTS_ZSTD_LEVEL)),
            bus: bus.clone(),
            tasks: tasks.clone(),
            shutdown,
        }))
    }

    /// Answers one call with one handler, here and under this instance's own subject.
    async fn answer<C, F>(
        self: &Arc<Self>,
        bus: &Bus,
        in_flight: usize,
        handler: fn(Arc<Service>, C) -> F,
    ) -> anyhow::Result<Answering>
    where
        C: Call,
        F: Future<Output = Result<C::Reply, Status>> + Send + 'static,
    {
        let service = self.clone();
        let answer = Answer { in_flight, instance: Some(self.instance.to_string()) };
        let answering = bus.answer::<C, _, _>(answer, move |request| {
            let handled = handler(service.clone(), request);
            async move { handled.await.inspect_err(|status| count_refusal(C::SUBJECT, status)) }
        });
        answering.await
    }

    fn project(&self, name: &str) -> Result<ProjectStore, Status> {
        Ok(self.store.project(name)?)
    }

    /// Where an image's blobs are.
    fn place(&self, name: &ImageName) -> BlobPlace {
        let mut place = BlobPlace::of(name);
        let names = self.same_registries.iter().find(|names| names.contains(&place.registry));
        place.also = names.into_iter().flatten().filter(|name| **name != place.registry).cloned().collect();
        place
    }

    /// The image that a request names, if this fetcher may read it.
    fn image_name(&self, reference: &str) -> Result<ImageName, Status> {
        let name: ImageName =
            reference.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
        if name.is_local() && !self.local_sources {
            let reason = format!("{name}: this fetcher reads no images from its disk");
            return Err(Status::permission_denied(reason));
        }
        Ok(name)
    }
}

/// Counts who was not let in, by verb and reason.
fn count_refusal(subject: &'static str, status: &Status) {
    let refused = matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied);
    if !refused {
        return;
    }
    let reason = match status.code() {
        Code::Unauthenticated => "no-credential",
        _ if status.get_details_error_info().is_some_and(|info| info.metadata.contains_key("streaming")) => {
            "switched-off"
        }
        _ => "denied",
    };
    let verb = subject.rsplit('.').next().unwrap_or(subject);
    metrics::counter!("sluice_fetcher_refused_total", "verb" => verb, "reason" => reason).increment(1);
}
