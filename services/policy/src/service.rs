//! The service's side of the conversation: judge, plan, policies.
//!
//! A question is answered by the set that was in use when it began, whatever is loaded meanwhile. Guests run on threads
//! of their own, as many at a time as the host has room for; a question that finds no room within a bound is told so.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bus::{Answer, Answering, Bus, Events};
use proto::subjects::SET_LOADED;
use proto::{
    Event, EventKind, JudgeReply, JudgeRequest, PlanReply, PlanRequest, PoliciesReply, PoliciesRequest,
    RecordReply, RecordRequest, Refusal,
};
use tokio::sync::Semaphore;
use tokio::sync::oneshot::{self, Sender};
use tonic::Status;

use crate::config::SetConfig;
use crate::host::{Facts, Host, Threads, plan};
use crate::plugin::Failure;
use crate::record::Records;
use crate::set::{Planned, Set};
use crate::source::Sources;
use crate::{facts, meters};

/// Questions that are being answered or wait for room.
const REQUESTS_IN_FLIGHT: usize = 1024;
/// As events name it.
const SERVICE: &str = "policy";
/// How long a question waits for room.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Service {
    host: Host,
    sources: Sources,
    total_time: Duration,
    room: Arc<Semaphore>,
    threads: Threads,
    current: RwLock<Arc<Set>>,
    events: Events,
    /// Why the newest configuration is not in use.
    last_error: Mutex<Option<String>>,
    records: Records,
}

impl Service {
    pub(crate) fn new(
        host: Host,
        sources: Sources,
        total_time: Duration,
        set: Set,
        events: Events,
        records: Records,
    ) -> Service {
        meters::loaded(set.generation());
        Service {
            room: Arc::new(Semaphore::new(host.calls_at_once())),
            threads: Threads::default(),
            host,
            sources,
            total_time,
            current: RwLock::new(Arc::new(set)),
            events,
            last_error: Mutex::default(),
            records,
        }
    }

    pub(crate) async fn answer_all(self: &Arc<Self>, bus: &Bus) -> anyhow::Result<Vec<Answering>> {
        let answer = || Answer { in_flight: REQUESTS_IN_FLIGHT, instance: None };
        Ok(vec![
            bus.serve(self, answer(), Service::judge).await?,
            bus.serve(self, answer(), Service::plan).await?,
            bus.serve(self, answer(), Service::policies).await?,
            bus.serve(self, answer(), Service::record).await?,
        ])
    }

    async fn judge(self: Arc<Self>, request: JudgeRequest) -> Result<JudgeReply, Status> {
        let asked = request.facts.ok_or_else(|| no_facts("judge"))?;
        let record = self.records.begin(&asked);
        let facts = facts::from_proto(asked);
        let (set, total_time) = (self.current(), self.total_time);
        let image = asked_about(&facts);
        let judge = move |answer: Sender<JudgeReply>| {
            let reply = set.judge(&facts, Instant::now() + total_time);
            if let Some(record) = record {
                record.judged(&reply);
            }
            // Who asked may have given up.
            let _ = answer.send(reply);
        };
        let reply = self.with_room(judge).await?;
        for verdict in reply.verdicts.iter().filter(|verdict| !verdict.failure.is_empty()) {
            self.events.tell(failed(&image, &verdict.policy, &verdict.failure, &verdict.message));
        }
        Ok(reply)
    }

    async fn plan(self: Arc<Self>, request: PlanRequest) -> Result<PlanReply, Status> {
        let asked = request.facts.ok_or_else(|| no_facts("plan"))?;
        let profile = plan::Profile { starts: request.starts, chunks: request.chunks };
        let record = self.records.begin(&asked);
        let facts = facts::from_proto(asked);
        let (set, total_time) = (self.current(), self.total_time);
        let (image, events) = (asked_about(&facts), self.events.clone());
        let plan = move |answer: Sender<Option<PlanReply>>| {
            let deadline = Instant::now() + total_time;
            let tell = |failure: &Failure| {
                events.tell(failed(&image, &failure.policy, failure.kind, &failure.message));
            };
            let Planned { plan, failures } = set.plan(&facts, profile, deadline);
            failures.iter().for_each(tell);
            let _ = answer.send(plan.clone());
            // A node waits for a fraction of a second: those without a say plan when it has its answer.
            let mut monitored = Vec::new();
            for planned in set.plans_without_a_say(&facts, profile, deadline) {
                planned.map_or_else(|failure| tell(&failure), |plan| monitored.push(plan));
            }
            if let Some(record) = record {
                record.planned(profile, plan, monitored);
            }
        };
        let planned = self.with_room(plan).await?;
        planned.ok_or_else(|| Status::failed_precondition("no prefetch policy has a plan"))
    }

    async fn policies(self: Arc<Self>, _request: PoliciesRequest) -> Result<PoliciesReply, Status> {
        let set = self.current();
        Ok(PoliciesReply {
            generation: set.generation(),
            policies: set.shown(),
            last_error: self.last_error().clone().unwrap_or_default(),
            pooled: self.host.is_pooled(),
        })
    }

    async fn record(self: Arc<Self>, request: RecordRequest) -> Result<RecordReply, Status> {
        Ok(self.records.tell(request))
    }

    /// Replaces the set by the one that `config` describes, or keeps it and says why. Blocks.
    pub(crate) fn reload(&self, config: anyhow::Result<SetConfig>, folder: &Path) -> bool {
        let before = self.current();
        match config.and_then(|config| Set::load(&self.host, &config, &self.sources, folder, Some(&before))) {
            Ok(set) => {
                let generation = set.generation();
                set.show_gauges(&before);
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(set);
                self.last_error().take();
                meters::loaded(generation);
                tracing::info!(generation, "a new policy set is in use");
                let message = format!("policy set {generation} is in use");
                self.tell_set(SET_LOADED, message, generation);
                true
            }
            Err(error) => {
                let error = format!("{error:#}");
                let generation = before.generation();
                meters::not_loaded();
                if self.last_error().replace(error.clone()).as_ref() != Some(&error) {
                    tracing::error!(
                        generation,
                        error,
                        "the new policy set cannot be used: the one before stays"
                    );
                    let message = format!("the new policy set cannot be used, {generation} stays: {error}");
                    self.tell_set("unusable", message, generation);
                }
                false
            }
        }
    }

    fn tell_set(&self, reason: &str, message: String, generation: u64) {
        let event = Event::new(EventKind::PolicySet, reason, message).with("generation", generation);
        self.events.tell(Event { service: SERVICE.to_owned(), ..event });
    }

    /// What `work` answers; it may go on after that.
    async fn with_room<T: Send + 'static>(
        &self,
        work: impl FnOnce(Sender<T>) + Send + 'static,
    ) -> Result<T, Status> {
        let full = || Refusal::Busy.status("all policy instances are in use");
        let room = tokio::time::timeout(ROOM_WAIT_MAX, self.room.clone().acquire_owned());
        let room = room.await.map_err(|_| full())?.map_err(|_| full())?;
        let (answer, answered) = oneshot::channel();
        let work = move || {
            let _room = room;
            work(answer);
        };
        self.threads
            .run(work)
            .map_err(|error| Status::internal(format!("no thread for policies: {error}")))?;
        answered.await.map_err(|_| Status::internal("running policies ended without an answer"))
    }

    fn current(&self) -> Arc<Set> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn last_error(&self) -> MutexGuard<'_, Option<String>> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reference and manifest digest of the image, and the node that asks.
fn asked_about(facts: &Facts) -> Event {
    Event {
        image: facts.image.reference.clone(),
        manifest_digest: facts.image.manifest_digest.clone(),
        node: facts.asker.node.clone(),
        service: SERVICE.to_owned(),
        ..Event::default()
    }
}

/// `kind`: of failure, as in docs/policies.md. What it leads to is the policy's failure rule.
fn failed(about: &Event, policy: &str, kind: &str, message: &str) -> Event {
    let message = format!("policy {policy} failed: {message}");
    let Event { kind, reason, message, count, details, .. } =
        Event::new(EventKind::PolicyFailed, kind, message).with("policy", policy);
    Event { kind, reason, message, count, details, ..about.clone() }
}

fn no_facts(call: &str) -> Status {
    Status::invalid_argument(format!("{call}: the request has no facts"))
}
