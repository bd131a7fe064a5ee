//! Brings the events of a process to the mesh: into its stream where there is one, to those who listen in any case.
//!
//! ```text
//! queued --> published --> stored (acknowledged): done
//!     ^          |  \--> no stream keeps it: told to those who listen, done; the next minute none is waited for
//!     '----------'  no answer: again, under the same id
//! ```
//!
//! What waits is bounded in bytes, those under way included; what comes beyond that is lost, and counted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use prost::Message as _;
use proto::Event;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior};

use super::{FLUSH_EVERY, Shared, cloud};
use crate::nats::Nats;
use crate::nats::stream::NotStored;

/// Bytes of events that wait to be published, or for the answer: some thousand ordinary ones, two hundred of the largest.
const WAITING_MAX: usize = 4 * 1024 * 1024;
/// What an event counts beside its content.
const EVENT_COST: usize = 512;
/// Events that are published at the same time. Enough for thousands a second where an answer takes ten milliseconds.
const IN_FLIGHT_MAX: usize = 64;
/// Answers that may fail to come, while there is a connection, before an event counts as told to those who listen alone: where a
/// stream has kept events, and where none was seen so far.
const TRIES_MAX: u32 = 5;
const TRIES_UNSEEN_MAX: u32 = 2;
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Between two looks whether there is a connection again.
const CONNECTION_LOOK: Duration = Duration::from_millis(100);
/// How long no stream is waited for after one was not there.
const WITHOUT_STREAM: Duration = Duration::from_secs(60);

/// Events that were published without the answer of a stream.
const EVENTS_UNKEPT: &str = "sluice_events_unkept_total";

/// Events on their way.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: mpsc::UnboundedSender<Waiting>,
    room: Arc<Semaphore>,
}

#[derive(Debug)]
struct Waiting {
    event: Event,
    _room: OwnedSemaphorePermit,
}

/// Whether there is a stream for events.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Keeping {
    NotKnown,
    Kept,
    NotBefore(Instant),
}

#[derive(Debug)]
struct Publisher {
    nats: Nats,
    keeping: Mutex<Keeping>,
}

impl Queue {
    /// Nothing is published before [`Queue::run`].
    pub(super) fn begin(nats: Nats) -> (Queue, impl FnOnce(Weak<Shared>)) {
        // Bounded by the room that each event takes.
        let (waiting, next) = mpsc::unbounded_channel();
        let queue = Queue { waiting, room: Arc::new(Semaphore::new(WAITING_MAX)) };
        let publisher = Arc::new(Publisher { nats, keeping: Mutex::new(Keeping::NotKnown) });
        let run = move |shared| drop(tokio::spawn(publish_all(publisher, next, shared)));
        (queue, run)
    }

    /// False: there is no room, the event is lost.
    pub(super) fn push(&self, event: Event) -> bool {
        let needed = u32::try_from(event.encoded_len() + EVENT_COST).unwrap_or(u32::MAX);
        let Ok(room) = self.room.clone().try_acquire_many_owned(needed) else { return false };
        self.waiting.send(Waiting { event, _room: room }).is_ok()
    }

    /// Waits until nothing is on its way any more.
    pub(super) async fn settled(&self) {
        let all = u32::try_from(WAITING_MAX).unwrap_or(u32::MAX);
        // It is never closed.
        drop(self.room.acquire_many(all).await);
    }
}

async fn publish_all(
    publisher: Arc<Publisher>,
    mut next: mpsc::UnboundedReceiver<Waiting>,
    shared: Weak<Shared>,
) {
    let in_flight = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let mut ticks = tokio::time::interval(FLUSH_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            waiting = next.recv() => {
                let Some(waiting) = waiting else { return };
                let Ok(turn) = in_flight.clone().acquire_owned().await else { return };
                let publisher = publisher.clone();
                tokio::spawn(async move {
                    publisher.bring(&waiting.event).await;
                    drop((waiting, turn));
                });
            }
            _ = ticks.tick() => if let Some(shared) = shared.upgrade() {
                shared.flush();
            },
        }
    }
}

impl Publisher {
    async fn bring(&self, event: &Event) {
        let mut message = cloud::outgoing(event);
        // In its first project a node may always speak.
        if let Ok(subject) = self.nats.own_subject(&message.subject, None) {
            message.subject = subject;
        }
        let (mut tries, mut pause) = (0, PAUSE_MIN);
        loop {
            self.connected().await;
            if tries == 0 && self.has_no_stream() {
                metrics::counter!(EVENTS_UNKEPT).increment(1);
                return self.nats.tell(message).await;
            }
            let error = match self.nats.publish_kept(message.clone()).await {
                Ok(_) => return self.kept(),
                // Who listens would have answered in a stream's place: there is nobody.
                Err(NotStored::NoStream) => return self.not_kept("no stream keeps them"),
                Err(NotStored::NoAnswer(error) | NotStored::Refused(error)) => error,
            };
            if self.nats.connected().is_ok() {
                tries += 1;
            }
            if tries >= self.tries_max() {
                return self.not_kept(&error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Nothing is written while there is no connection: it would only be written again.
    async fn connected(&self) {
        while self.nats.connected().is_err() {
            tokio::time::sleep(CONNECTION_LOOK).await;
        }
    }

    /// There was none a moment ago. Now and again one event is to find out; the others do not wait for it.
    fn has_no_stream(&self) -> bool {
        let mut keeping = self.keeping();
        match *keeping {
            Keeping::NotBefore(then) if Instant::now() >= then => {
                *keeping = Keeping::NotBefore(Instant::now() + WITHOUT_STREAM);
                false
            }
            Keeping::NotBefore(_) => true,
            Keeping::NotKnown | Keeping::Kept => false,
        }
    }

    fn tries_max(&self) -> u32 {
        if *self.keeping() == Keeping::Kept { TRIES_MAX } else { TRIES_UNSEEN_MAX }
    }

    fn kept(&self) {
        let before = std::mem::replace(&mut *self.keeping(), Keeping::Kept);
        if before != Keeping::Kept {
            tracing::info!("events are kept in the mesh's stream");
        }
    }

    fn not_kept(&self, reason: &str) {
        metrics::counter!(EVENTS_UNKEPT).increment(1);
        let then = Keeping::NotBefore(Instant::now() + WITHOUT_STREAM);
        let before = std::mem::replace(&mut *self.keeping(), then);
        match before {
            Keeping::NotBefore(_) => {}
            Keeping::NotKnown => tracing::info!(
                reason,
                "events are told to those who listen, and not kept: an events service makes a stream for them"
            ),
            Keeping::Kept => tracing::warn!(reason, "events are no longer kept in the mesh's stream"),
        }
    }

    fn keeping(&self) -> MutexGuard<'_, Keeping> {
        // One value.
        self.keeping.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
