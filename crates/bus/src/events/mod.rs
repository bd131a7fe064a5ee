//! Events: what happened that an operator should know of.
//!
//! Telling one never waits and never fails. The process keeps the newest ones for whoever asks later, and publishes them
//! on the bus for whoever listens there; nobody has to.

mod journal;

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::{Stream, StreamExt};
use proto::Event;
use tokio::sync::{broadcast, mpsc};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::BroadcastStream;

use journal::Journal;

/// Events that wait to be published while the mesh is away; more are lost there, and counted.
const UNPUBLISHED_MAX: usize = 256;
/// Events that a slow listener of this process may lag behind; it then misses the oldest.
const LISTENER_LAG_MAX: usize = 256;
/// How often repeats are looked for that nobody was told of yet.
const FLUSH_EVERY: Duration = Duration::from_secs(5);

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
    /// To those beyond this process.
    unpublished: Option<mpsc::Sender<Event>>,
}

impl Events {
    /// Events that stay in this process.
    pub(crate) fn local() -> Events {
        Events::over(None)
    }

    /// Events that `publish` brings to others, one after the other, for as long as somebody may tell some.
    pub(crate) fn published<F>(publish: impl Fn(Event) -> F + Send + 'static) -> Events
    where
        F: Future<Output = ()> + Send,
    {
        let (unpublished, mut waiting) = mpsc::channel(UNPUBLISHED_MAX);
        let events = Events::over(Some(unpublished));
        let shared = Arc::downgrade(&events.shared);
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(FLUSH_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    event = waiting.recv() => match event {
                        Some(event) => publish(event).await,
                        None => return,
                    },
                    _ = ticks.tick() => if let Some(shared) = shared.upgrade() {
                        shared.tell_repeats(&mut shared.journal());
                    },
                }
            }
        });
        events
    }

    fn over(unpublished: Option<mpsc::Sender<Event>>) -> Events {
        let (listeners, _) = broadcast::channel(LISTENER_LAG_MAX);
        Events { shared: Arc::new(Shared { journal: Mutex::default(), listeners, unpublished }) }
    }

    /// Never waits. Repeats of one kind, reason and image within some seconds are told once, with their count.
    pub fn tell(&self, mut event: Event) {
        event.id = format!("{:032x}", rand::random::<u128>());
        event.at_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
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
    fn tell_repeats(&self, journal: &mut Journal) {
        for event in journal.repeats(Instant::now()) {
            self.pass_on(event);
        }
    }

    fn pass_on(&self, event: Event) {
        if let Some(unpublished) = &self.unpublished
            && unpublished.try_send(event.clone()).is_err()
        {
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
