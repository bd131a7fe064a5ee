//! Events: what happened that an operator should know of.
//!
//! Telling one never waits and never fails. The process keeps the newest ones for whoever asks later, and publishes them
//! on the bus for whoever listens there; nobody has to. Where a stream keeps them, it gets each of them, once.

pub mod cloud;
mod duration;
mod journal;
mod publishing;

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::{Stream, StreamExt};
use proto::{Event, EventKind};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

use crate::in_process::InProcess;
use crate::nats::Nats;
pub use duration::go_duration;
use journal::Journal;
use publishing::Queue;

/// Events that a slow listener of this process may lag behind; it then misses the oldest.
const LISTENER_LAG_MAX: usize = 256;
/// How often repeats are looked for that nobody was told of yet.
const FLUSH_EVERY: Duration = Duration::from_secs(5);

/// What a process that ends has for bringing out what it told last.
pub const SETTLE: Duration = Duration::from_secs(1);

/// Events by kind and reason.
const EVENTS: &str = "sluice_events_total";
/// Events that were not published, since the mesh was away for long.
const EVENTS_LOST: &str = "sluice_events_lost_total";

/// As they come, for as long as there is a bus.
pub type EventStream = Pin<Box<dyn Stream<Item = Event> + Send>>;

/// The events of a process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    journal: Mutex<Journal>,
    listeners: broadcast::Sender<Event>,
    beyond: Beyond,
    /// Service and node of events that do not say it themselves.
    told_by: OnceLock<(String, String)>,
}

/// To those beyond who asks this process.
#[derive(Debug)]
enum Beyond {
    /// Into a stream of the process itself, when somebody opened one.
    InProcess(Arc<InProcess>),
    Nats(Queue),
}

impl Events {
    /// Events that stay in this process.
    pub(crate) fn local(bus: Arc<InProcess>) -> Events {
        Events::over(Beyond::InProcess(bus))
    }

    /// Events that the mesh gets as well, for as long as somebody may tell some.
    pub(crate) fn published(nats: Nats) -> Events {
        let (queue, run) = Queue::begin(nats.clone());
        let events = Events::over(Beyond::Nats(queue));
        run(Arc::downgrade(&events.shared));
        let shared = Arc::downgrade(&events.shared);
        nats.when_back(Box::new(move |away| {
            if let Some(shared) = shared.upgrade() {
                Events { shared }.tell(nats_was_away(away));
            }
        }));
        events
    }

    fn over(beyond: Beyond) -> Events {
        let (listeners, _) = broadcast::channel(LISTENER_LAG_MAX);
        let shared = Shared { journal: Mutex::default(), listeners, beyond, told_by: OnceLock::new() };
        Events { shared: Arc::new(shared) }
    }

    /// Which service this process is, and on which node (empty: on none), for events that do not say it. The first word holds.
    pub fn told_by(&self, service: &str, node: &str) {
        self.shared.told_by.get_or_init(|| (service.to_owned(), node.to_owned()));
    }

    /// Tells repeats whose time is over. Over NATS it is done every few seconds.
    pub fn flush(&self) {
        self.shared.flush();
    }

    /// Waits until everything that was told is published: for the end of a process. `within`: no longer than this.
    pub async fn settle(&self, within: Duration) {
        self.shared.flush();
        if let Beyond::Nats(queue) = &self.shared.beyond {
            // What is left then is lost with the process, as it would be in a crash.
            let _ = tokio::time::timeout(within, queue.settled()).await;
        }
    }

    /// Never waits. Repeats of one kind, reason and image within some seconds are told once, with their count.
    pub fn tell(&self, mut event: Event) {
        event.id = format!("{:032x}", rand::random::<u128>());
        event.at_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        if event.service.is_empty()
            && let Some((service, node)) = self.shared.told_by.get()
        {
            event.service.clone_from(service);
            event.node = if event.node.is_empty() { node.clone() } else { event.node };
        }
        metrics::counter!(EVENTS, "kind" => event.kind().code(), "reason" => event.reason.clone())
            .increment(1);
        let mut journal = self.shared.journal();
        self.shared.tell_repeats(&mut journal);
        if let Some(event) = journal.note(event, Instant::now()) {
            self.shared.pass_on(event);
        }
    }

    /// The newest events of this process, the oldest first.
    pub fn recent(&self) -> Vec<Event> {
        let mut journal = self.shared.journal();
        self.shared.tell_repeats(&mut journal);
        journal.recent()
    }

    /// The newest events of this process, and all that follow.
    pub fn recent_and_next(&self) -> EventStream {
        // Under the lock, so that none is told in between.
        let mut journal = self.shared.journal();
        self.shared.tell_repeats(&mut journal);
        Box::pin(futures::stream::iter(journal.recent()).chain(self.next()))
    }

    /// The events of this process from now on.
    pub(crate) fn next(&self) -> EventStream {
        let next = BroadcastStream::new(self.shared.listeners.subscribe());
        // A listener that lags is told what comes next.
        Box::pin(next.filter_map(|event| std::future::ready(event.ok())))
    }
}

impl Shared {
    fn flush(&self) {
        self.tell_repeats(&mut self.journal());
    }

    fn tell_repeats(&self, journal: &mut Journal) {
        for event in journal.repeats(Instant::now()) {
            self.pass_on(event);
        }
    }

    fn pass_on(&self, event: Event) {
        let kept = match &self.beyond {
            Beyond::InProcess(bus) => bus.keep(|| cloud::outgoing(&event), &event.subject()),
            Beyond::Nats(queue) => queue.push(event.clone()),
        };
        if !kept {
            metrics::counter!(EVENTS_LOST).increment(1);
        }
        // Nobody may be listening.
        let _ = self.listeners.send(event);
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        // It is whole after each of its methods.
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn nats_was_away(away: Duration) -> Event {
    let took = go_duration(Duration::from_millis(u64::try_from(away.as_millis()).unwrap_or(u64::MAX)));
    let message = format!(
        "the connection to NATS was lost for {took}: what this process told meanwhile is told now, as far as it kept it"
    );
    Event::new(EventKind::Degraded, "nats-was-away", message).with("away", took)
}
