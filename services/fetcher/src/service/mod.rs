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
mod recompressing;
mod resolve;
mod seeding;
mod starts;
mod unjudged;

use std::sync::Arc;
use std::time::Duration;

use bus::{Answer, Answering, Bus};
use names::ImageName;
use proto::Call;
use store::{ProjectStore, Store};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use crate::config::STARTS_ZSTD_LEVEL;
use crate::import::Importer;
use crate::key::Keys;
use crate::records::Records;
use crate::source::Sources;
use crate::{Config, Judging};

use grants::Grants;
use jobs::Jobs;
use recompressing::Recompressing;
use unjudged::Unjudged;

/// Requests of one kind that are handled at the same time; most of them wait for a registry.
const REQUESTS_IN_FLIGHT: usize = 64;
/// Followers wait inside their request, and many nodes may follow one import.
const FOLLOWERS_IN_FLIGHT: usize = 1024;
/// A collection walks the whole store: one is enough.
const COLLECTIONS_IN_FLIGHT: usize = 1;

/// A running fetcher. Dropped, it takes no more requests; its imports end with the `shutdown` it got.
#[derive(Debug)]
pub struct Fetcher {
    instance: Arc<str>,
    _answering: Vec<Answering>,
}

/// What all handlers share.
#[derive(Debug)]
struct Service {
    instance: Arc<str>,
    grants: Grants,
    local_sources: bool,
    refused_after_deaths: Duration,
    judging: Judging,
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
        let service = Service::new(config, keys, store, &bus, tasks, shutdown)?;
        let answering = vec![
            service.answer(&bus, REQUESTS_IN_FLIGHT, Service::resolve).await?,
            service.answer(&bus, FOLLOWERS_IN_FLIGHT, Service::follow).await?,
            service.answer(&bus, REQUESTS_IN_FLIGHT, Service::renew).await?,
            service.answer(&bus, REQUESTS_IN_FLIGHT, Service::inspect).await?,
            service.answer(&bus, REQUESTS_IN_FLIGHT, Service::list).await?,
            service.answer(&bus, REQUESTS_IN_FLIGHT, Service::remove).await?,
            service.answer(&bus, COLLECTIONS_IN_FLIGHT, Service::collect).await?,
            service.answer(&bus, REQUESTS_IN_FLIGHT, Service::report).await?,
            service.answer(&bus, REQUESTS_IN_FLIGHT, Service::repair).await?,
        ];
        Ok(Fetcher { instance: service.instance.clone(), _answering: answering })
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
        let service = Service::new(config, keys, store, &bus, tasks, shutdown)?;
        let answering = vec![
            service.answer(&bus, REQUESTS_IN_FLIGHT, Service::list).await?,
            service.answer(&bus, REQUESTS_IN_FLIGHT, Service::remove).await?,
            service.answer(&bus, COLLECTIONS_IN_FLIGHT, Service::collect).await?,
        ];
        Ok(Fetcher { instance: service.instance.clone(), _answering: answering })
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
        store: Store,
        bus: &Bus,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Arc<Service>> {
        let records = Records::new(keys.clone());
        let instance: Arc<str> = format!("fetcher-{:08x}", rand::random::<u32>()).into();
        Ok(Arc::new(Service {
            instance: instance.clone(),
            grants: Grants::new(keys, config.grant_ttl, config.grant_renewal),
            local_sources: config.local_sources,
            refused_after_deaths: config.limits.refused_after_deaths,
            judging: config.judging.clone(),
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
        bus.serve(self, Answer { in_flight, instance: Some(self.instance.to_string()) }, handler).await
    }

    fn project(&self, name: &str) -> Result<ProjectStore, Status> {
        Ok(self.store.project(name)?)
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
