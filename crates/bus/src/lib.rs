//! Requests between services: typed, always answered, with a deadline.
//!
//! [`Bus`] has two transports that keep the same promises (`tests/conformance.rs` runs against
//! both): one inside the process, for `sluice` alone, and NATS, for a mesh. Several who answer the
//! same call share it: each request goes to one of them. Bulk bytes never cross the bus; a message
//! is bounded by [`MESSAGE_MAX`]. Events, and what a [`Teller`] tells, are for whoever listens, and wait
//! for nobody.
//!
//! A [`Bus`] is cheap to clone and may be used from any task. Handlers run as tasks of their own,
//! at most [`Answer::in_flight`] at a time; one more is told "busy" at once, and waits nowhere.

mod call;
mod counters;
mod endpoint;
mod events;
mod in_process;
mod key;
mod lease;
mod nats;
pub mod presence;
mod resolve;
mod sealing;
mod stream;
mod table;
mod told;
mod wire;

use std::future::{Future, Ready, ready};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::StreamExt;
use prost::Message;
use proto::subjects::{CONVERSATION, EVENTS};
use proto::{Call, Event, HelloReply, HelloRequest, Role};
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::Status;

use endpoint::Endpoint;
use in_process::InProcess;
use nats::{Nats, NatsCounters, NatsTable};

pub use counters::Counters;
pub use events::{EventStream, Events, SETTLE, cloud, go_duration};
pub use lease::Lease;
pub use nats::{NatsConfig, update_account};
pub use resolve::Step;
pub use sealing::Sealer;
pub use stream::{Consumer, ConsumerConfig, Delivery, Outgoing, Published, Stream, StreamConfig};
pub use table::{Change, Entry, Table, TableChanges, VALUE_MAX};
pub use told::{Teller, ToldStream};
pub use wire::MESSAGE_MAX;

/// The way to all other services.
#[derive(Clone, Debug)]
pub struct Bus {
    transport: Transport,
    events: Events,
}

#[derive(Clone, Debug)]
enum Transport {
    InProcess(Arc<InProcess>),
    Nats(Nats),
}

/// What a service says of itself when it is asked who is there.
pub struct Introduction {
    pub version: &'static str,
    /// Whether it can take work, or why not.
    pub ready: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// Settings by which it speaks to other machines without TLS.
    pub insecure: Vec<String>,
}

impl Introduction {
    /// `insecure`: settings that allow speaking without TLS, and whether they are set.
    pub fn of(
        version: &'static str,
        ready: impl Fn() -> Result<(), String> + Send + Sync + 'static,
        insecure: &[(&str, bool)],
    ) -> Introduction {
        let set = insecure.iter().filter(|(_, set)| *set).map(|(name, _)| (*name).to_owned());
        Introduction { version, ready: Box::new(ready), insecure: set.collect() }
    }
}

/// Answers to "who is there" at a time: operators ask.
const HELLOS_MAX: usize = 8;

impl std::fmt::Debug for Introduction {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Introduction").field("version", &self.version).finish_non_exhaustive()
    }
}

/// How a call is answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Requests that are handled at the same time; one more is refused as busy.
    pub in_flight: usize,
    /// Also answer `<subject>.<instance>`, for requests that only this instance can serve.
    pub instance: Option<String>,
}

/// Answers a call for as long as it exists. Dropped, it takes no more requests, and those that are
/// being handled are still replied to.
#[derive(Debug)]
pub struct Answering {
    tasks: TaskTracker,
    stop: DropGuard,
}

impl Bus {
    /// A bus that reaches whoever holds a clone of it.
    pub fn in_process() -> Bus {
        let bus: Arc<InProcess> = Arc::default();
        Bus { transport: Transport::InProcess(bus.clone()), events: Events::local(bus) }
    }

    /// A bus over NATS. Succeeds while the server is away: the connection is retried for ever.
    pub async fn connect(config: &NatsConfig) -> anyhow::Result<Bus> {
        let nats = Nats::connect(config).await?;
        let events = Events::published(nats.clone());
        Ok(Bus { transport: Transport::Nats(nats), events })
    }

    /// Like [`Bus::connect`] for whoever cannot wait: an error when no server answers within `wait`.
    pub async fn connect_within(config: &NatsConfig, wait: Duration) -> anyhow::Result<Bus> {
        let bus = Bus::connect(config).await?;
        if let Transport::Nats(nats) = &bus.transport {
            nats.answers_within(wait).await?;
        }
        Ok(bus)
    }

    /// Whether there is a connection, or why there is none. One to a server that hangs is noticed after half a minute.
    pub fn connected(&self) -> Result<(), String> {
        match &self.transport {
            Transport::InProcess(_) => Ok(()),
            Transport::Nats(nats) => nats.connected(),
        }
    }

    /// [`Bus::connected`] as whoever watches it asks.
    pub fn probe(&self) -> impl Fn() -> Ready<Result<(), String>> + Send + Sync + 'static {
        let bus = self.clone();
        move || ready(bus.connected())
    }

    /// Asks whoever answers `C`. While nobody does, or all are busy, asks again until `deadline` has passed: services
    /// restart. The last answer is then `UNAVAILABLE`, or that they are busy ([`proto::Refusal`]).
    pub async fn call<C: Call>(&self, request: C, deadline: Duration) -> Result<C::Reply, Status> {
        let subject = self.asking(C::SUBJECT, &request)?;
        call::until_answered(&self.transport, &subject, &request, deadline).await
    }

    /// Like [`Bus::call`], but `UNAVAILABLE` at once when nobody answers.
    pub async fn call_once<C: Call>(&self, request: C, deadline: Duration) -> Result<C::Reply, Status> {
        let subject = self.asking(C::SUBJECT, &request)?;
        call::once(&self.transport, &subject, &request, deadline).await
    }

    /// Asks one instance. `UNAVAILABLE` at once when it is gone: what it knew went with it.
    pub async fn call_instance<C: Call>(
        &self,
        instance: &str,
        request: C,
        deadline: Duration,
    ) -> Result<C::Reply, Status> {
        let subject = self.asking(&wire::instance_subject(C::SUBJECT, instance)?, &request)?;
        call::once(&self.transport, &subject, &request, deadline).await
    }

    /// Asks everyone who answers `C`: the replies that come within `wait`, errors left out. None are
    /// a valid outcome.
    pub async fn gather<C: Call>(&self, request: C, wait: Duration) -> Result<Vec<C::Reply>, Status> {
        let payload = wire::encode_request(C::SUBJECT, &request)?;
        let subject = self.asking(&wire::all_subject(C::SUBJECT), &request)?;
        let replies = match &self.transport {
            Transport::InProcess(bus) => bus.gather(&subject, payload, wait).await,
            Transport::Nats(bus) => bus.gather(&subject, payload, wait).await?,
        };
        Ok(replies.into_iter().filter_map(|reply| wire::decode_reply(C::SUBJECT, reply).ok()).collect())
    }

    /// The subject on which this process asks: a node's ends with its name, which its user in NATS proves.
    fn asking<C: Call>(&self, subject: &str, request: &C) -> Result<String, Status> {
        match &self.transport {
            Transport::InProcess(_) => Ok(subject.to_owned()),
            Transport::Nats(nats) => nats.own_subject(subject, request.says().project.as_deref()),
        }
    }

    /// Has `handler` answer `C`; requests are taken from when this returns.
    pub async fn answer<C, H, F>(&self, answer: Answer, handler: H) -> anyhow::Result<Answering>
    where
        C: Call,
        H: Fn(C) -> F + Send + Sync + 'static,
        F: Future<Output = Result<C::Reply, Status>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let all = wire::all_subject(C::SUBJECT);
        let endpoint = Arc::new(Endpoint::new::<C, H, F>(answer.in_flight, handler));
        let mut subjects = vec![(C::SUBJECT.to_owned(), Share::Queue), (all, Share::All)];
        if let Some(instance) = &answer.instance {
            subjects.push((wire::instance_subject(C::SUBJECT, instance)?, Share::Queue));
        }
        // Nodes ask with their names.
        if matches!(self.transport, Transport::Nats(_)) && is_asked_by_nodes(C::SUBJECT) {
            let named = |subject: &String| (proto::speaker::subject(subject, "*", "*"), Share::Queue);
            let queued = subjects.iter().filter(|(_, share)| *share == Share::Queue);
            let named: Vec<_> = queued.map(|(subject, _)| named(subject)).collect();
            subjects.extend(named);
        }
        let answering = Answering { tasks: endpoint.tasks(), stop: stop.clone().drop_guard() };
        for (subject, share) in subjects {
            match &self.transport {
                Transport::InProcess(bus) => bus.listen(subject, endpoint.clone(), stop.clone()),
                Transport::Nats(bus) => bus.listen(subject, share, endpoint.clone(), stop.clone()).await?,
            }
        }
        Ok(answering)
    }

    /// Has a service answer `C` by one of its methods.
    pub async fn serve<S, C, F>(
        &self,
        service: &Arc<S>,
        answer: Answer,
        handler: fn(Arc<S>, C) -> F,
    ) -> anyhow::Result<Answering>
    where
        S: Send + Sync + 'static,
        C: Call,
        F: Future<Output = Result<C::Reply, Status>> + Send + 'static,
    {
        let service = service.clone();
        self.answer::<C, _, _>(answer, move |request| handler(service.clone(), request)).await
    }

    /// Takes the lease `name`, unless somebody in the mesh holds it. It is renewed until it is
    /// dropped; when its holder dies it is free again after `ttl` (whole seconds, at least one).
    pub async fn lease(&self, name: &str, ttl: Duration) -> Result<Option<Lease>, Status> {
        match &self.transport {
            Transport::InProcess(bus) => Ok(bus.lease(name)),
            Transport::Nats(bus) => bus.lease(name, ttl).await,
        }
    }

    /// The counters of this name, which is one token. A sum is forgotten when nothing was added to it for as long as it is `kept`.
    pub fn counters(&self, name: &str, kept: Duration) -> Counters {
        match &self.transport {
            Transport::InProcess(bus) => Counters::in_process(bus.sums(name, kept)),
            Transport::Nats(bus) => Counters::nats(NatsCounters::new(bus.clone(), name, kept)),
        }
    }

    /// The table of this name, which is one token.
    pub fn table(&self, name: &str) -> Table {
        match &self.transport {
            Transport::InProcess(bus) => Table::in_process(bus.rows(name)),
            Transport::Nats(bus) => Table::nats(NatsTable::new(bus.clone(), name)),
        }
    }

    /// The same, for who may not make or change it: until somebody has, nothing is read.
    pub fn table_to_read(&self, name: &str) -> Table {
        match &self.transport {
            Transport::InProcess(bus) => Table::in_process(bus.rows(name)),
            Transport::Nats(bus) => Table::nats(NatsTable::to_read(bus.clone(), name)),
        }
    }
}

impl Bus {
    /// Says on request that this process is there, which version it is and whether it can take work.
    pub async fn introduce(&self, role: Role, about: Introduction) -> anyhow::Result<Answering> {
        let instance = format!("{}-{:08x}", role.name(), rand::random::<u32>());
        let about = Arc::new(about);
        self.answer(Answer { in_flight: HELLOS_MAX, instance: None }, move |_: HelloRequest| {
            ready(Ok(HelloReply {
                role: role.name().to_owned(),
                instance: instance.clone(),
                version: about.version.to_owned(),
                now_ms: unix_ms(),
                unready: (about.ready)().err().unwrap_or_default(),
                insecure: about.insecure.clone(),
            }))
        })
        .await
    }

    /// The events of this process: all clones of a bus share them.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// The events of everyone on this bus, as far as they are told from when this returns. A listener that does not keep up
    /// misses some.
    pub async fn listen_to_events(&self) -> anyhow::Result<EventStream> {
        match &self.transport {
            Transport::InProcess(_) => Ok(self.events.next()),
            Transport::Nats(bus) => {
                let told = bus.subscribe(format!("{EVENTS}.*")).await?;
                let of_nodes =
                    bus.subscribe(proto::speaker::subject(&format!("{EVENTS}.*"), "*", "*")).await?;
                let mut once = told::Once::default();
                Ok(Box::pin(futures::stream::select(told, of_nodes).filter_map(move |message| {
                    let event = told::event(&message.subject, &message.payload);
                    std::future::ready(event.filter(|event: &Event| once.is_new(&event.id)))
                })))
            }
        }
    }

    /// A stream that keeps messages: makes it, or gives it this configuration. An error: the server has no streams, does not let us
    /// make one, or is away.
    pub async fn open_stream(&self, config: StreamConfig) -> Result<Stream, Status> {
        self.transport.open_stream(config).await
    }

    /// Publishes a message for others than this mesh. `kept`: returns when a stream has it; else when the server has.
    pub async fn publish(&self, message: Outgoing, kept: bool) -> Result<(), Status> {
        match &self.transport {
            Transport::InProcess(_) => Err(Status::failed_precondition("there is no NATS: set nats.url")),
            Transport::Nats(nats) => nats.publish_for_others(message, kept).await,
        }
    }

    /// A way to tell messages on `subject`.
    pub fn teller(&self, subject: &'static str) -> Teller {
        match &self.transport {
            Transport::InProcess(bus) => Teller::in_process(bus.clone(), subject),
            Transport::Nats(bus) => Teller::over_nats(bus.clone(), subject),
        }
    }

    /// What everyone on this bus tells on `subject`, from when this returns. A listener that does not keep up misses some.
    pub async fn listen_to<M>(&self, subject: &'static str) -> anyhow::Result<ToldStream<M>>
    where
        M: Message + Default + 'static,
    {
        match &self.transport {
            Transport::InProcess(bus) => {
                let told = BroadcastStream::new(bus.hear(subject));
                let decoded = |payload: Result<Bytes, _>| payload.ok().and_then(|it| told::decoded(&it));
                Ok(Box::pin(told.filter_map(move |payload| std::future::ready(decoded(payload)))))
            }
            Transport::Nats(bus) => {
                let told = bus.subscribe(subject.to_owned()).await?;
                Ok(Box::pin(told.filter_map(|message| std::future::ready(told::decoded(&message.payload)))))
            }
        }
    }
}

impl Answering {
    /// Takes no more requests, and waits until those being handled are replied to.
    pub async fn stop(self) {
        drop(self.stop);
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// This machine's clock, in milliseconds since 1970.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn is_asked_by_nodes(subject: &str) -> bool {
    let asked = CONVERSATION.iter().find(|asked| asked.subject == subject);
    asked.is_some_and(|asked| asked.by.contains(&Role::Frontend))
}

/// Who of those who listen on a subject gets a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    Queue,
    All,
}

/// How many replies are gathered at most: more replicas than any service has.
const GATHERED_MAX: usize = 1024;

/// Why a transport has no reply.
enum Undelivered {
    /// Nobody listens on the subject.
    NoResponder,
    Status(Status),
}

impl Transport {
    async fn request(&self, subject: &str, payload: Bytes, deadline: Duration) -> Result<Bytes, Undelivered> {
        match self {
            Transport::InProcess(bus) => bus.request(subject, payload, deadline).await,
            Transport::Nats(bus) => bus.request(subject, payload, deadline).await,
        }
    }
}
