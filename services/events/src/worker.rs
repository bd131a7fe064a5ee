//! Takes events from a sink's place in the stream, has them written, acknowledges them.
//!
//! ```text
//! taken --> written --> acknowledged
//!   |          \--> not now: tried again after a pause, as long as the event is young; nothing overtakes it
//!   |          \--> never: given up, counted
//!   '-- the service ends: given back, another one takes it
//! ```

use std::collections::{HashSet, VecDeque};
use std::pin::pin;
use std::time::Duration;

use bus::{Bus, Consumer, ConsumerConfig, Delivery, StreamConfig};
use futures::future::join_all;
use proto::Event;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::backoff::Backoff;
use crate::config::ACK_WAIT;
use crate::{Outcome, Sink, meters};

/// How long telling the server that events are worked on may take.
const KEEPING_MAX: Duration = Duration::from_secs(2);

pub(crate) struct Worker {
    name: String,
    sink: Box<dyn Sink>,
    /// How old an event may get before nobody tries to write it any more.
    max_age: Duration,
    works: Option<bool>,
    written: Written,
}

/// Events that this process wrote lately. A server that was killed may deliver them again.
#[derive(Default)]
struct Written {
    ids: HashSet<String>,
    by_age: VecDeque<String>,
}

/// Some megabytes at most for each sink.
const WRITTEN_MAX: usize = 16_384;

type Batch = Vec<(Delivery, Event)>;

impl Worker {
    pub(crate) fn new(name: String, sink: Box<dyn Sink>, max_age: Duration) -> Worker {
        Worker { name, sink, max_age, works: None, written: Written::default() }
    }

    pub(crate) async fn run(
        mut self,
        bus: Bus,
        stream: StreamConfig,
        consumer: ConsumerConfig,
        shutdown: CancellationToken,
    ) {
        let mut backoff = Backoff::default();
        while !shutdown.is_cancelled() {
            let opened = shutdown.run_until_cancelled(open(&bus, &stream, &consumer)).await;
            let Some(opened) = opened else { return };
            let error = match opened {
                Ok(taken) => {
                    backoff = Backoff::default();
                    self.take(taken, &shutdown).await
                }
                Err(status) => Some(status),
            };
            let Some(status) = error else { return };
            tracing::debug!(sink = self.name, error = status.message(), "no events can be taken now");
            let pause = tokio::time::sleep(backoff.pause(None));
            shutdown.run_until_cancelled(pause).await;
        }
    }

    /// Until the shutdown, or an error of the stream.
    async fn take(&mut self, mut consumer: Consumer, shutdown: &CancellationToken) -> Option<Status> {
        loop {
            let taken = shutdown.run_until_cancelled(consumer.next(self.sink.batch_max())).await?;
            let taken = match taken {
                Ok(taken) => taken,
                Err(status) => return Some(status),
            };
            let batch = self.decoded(taken).await;
            self.deliver(batch, shutdown).await;
        }
    }

    /// What is no event at all is of no use to any sink, nor is what was written already.
    async fn decoded(&self, taken: Vec<Delivery>) -> Batch {
        let mut batch = Vec::with_capacity(taken.len());
        for delivery in taken {
            match delivery.event() {
                Some(event) if self.written.ids.contains(&event.id) => {
                    // Else it comes once more.
                    delivery.ack().await.ok();
                }
                Some(event) => batch.push((delivery, event)),
                None => {
                    let sequence = delivery.sequence;
                    tracing::warn!(sink = self.name, sequence, "what the stream holds is no event: given up");
                    self.give_up(delivery).await;
                }
            }
        }
        batch
    }

    async fn deliver(&mut self, mut batch: Batch, shutdown: &CancellationToken) {
        let mut backoff = Backoff::default();
        while !batch.is_empty() {
            let events: Vec<Event> = batch.iter().map(|(_, event)| event.clone()).collect();
            let written = keeping(&batch, self.sink.write(&events));
            let Some(outcomes) = shutdown.run_until_cancelled(written).await else {
                return give_back(batch).await;
            };
            let before = batch.len();
            let (left, asked) = self.conclude(batch, outcomes).await;
            batch = left;
            // Pauses grow while nothing at all is taken: who fails now and then would be waited for as one that is away.
            if batch.len() < before {
                backoff = Backoff::default();
            }
            if batch.is_empty() {
                return;
            }
            meters::retried(&self.name, batch.len());
            let pause = keeping(&batch, tokio::time::sleep(backoff.pause(asked)));
            if shutdown.run_until_cancelled(pause).await.is_none() {
                return give_back(batch).await;
            }
        }
    }

    /// Acknowledges what is done with; what is left, and how long its receiver wants to be left alone.
    async fn conclude(&mut self, batch: Batch, outcomes: Vec<Outcome>) -> (Batch, Option<Duration>) {
        let (mut done, mut left, mut longest) = (Vec::new(), Vec::new(), None);
        let mut why_not = None;
        for ((delivery, event), outcome) in batch.into_iter().zip(outcomes) {
            match outcome {
                Outcome::Done => {
                    meters::delivered(&self.name, &event);
                    self.written.note(event.id);
                    done.push(delivery.ack());
                }
                Outcome::Again { why, .. } if meters::age(&event) > self.max_age => {
                    let error = format!("older than events.max_age: {why}");
                    self.warn_given_up(&event, &error);
                    self.give_up(delivery).await;
                }
                Outcome::Again { why, after } => {
                    longest = longest.max(after);
                    why_not = Some(why);
                    left.push((delivery, event));
                }
                Outcome::Never { why } => {
                    self.warn_given_up(&event, &why);
                    self.give_up(delivery).await;
                }
            }
        }
        // Not acknowledged, it comes again, and the sink sees that it has it.
        for acked in join_all(done).await {
            if let Err(status) = acked {
                tracing::debug!(sink = self.name, error = status.message(), "an event may come again");
            }
        }
        self.note(why_not.as_deref());
        (left, longest)
    }

    fn warn_given_up(&self, event: &Event, error: &str) {
        let (kind, reason) = (event.kind().code(), &event.reason);
        tracing::warn!(sink = self.name, event = event.id, kind, reason, error, "an event is given up");
    }

    async fn give_up(&self, delivery: Delivery) {
        meters::given_up(&self.name);
        if let Err(status) = delivery.give_up().await {
            tracing::debug!(sink = self.name, error = status.message(), "an event may come again");
        }
    }

    /// Says so once when a sink stops taking events, and when it takes them again.
    fn note(&mut self, why_not: Option<&str>) {
        let (before, now) = (self.works.replace(why_not.is_none()), why_not.is_none());
        meters::works(&self.name, now);
        match (before, why_not) {
            (Some(true) | None, Some(error)) => {
                tracing::warn!(sink = self.name, error, "a sink does not take events: they are kept");
            }
            (Some(false), None) => tracing::info!(sink = self.name, "the sink takes events again"),
            _ => {}
        }
    }
}

impl Written {
    fn note(&mut self, id: String) {
        if self.ids.insert(id.clone()) {
            self.by_age.push_back(id);
        }
        if self.by_age.len() > WRITTEN_MAX
            && let Some(oldest) = self.by_age.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}

async fn open(bus: &Bus, stream: &StreamConfig, consumer: &ConsumerConfig) -> Result<Consumer, Status> {
    bus.open_stream(stream.clone()).await?.consume(consumer.clone()).await
}

/// Runs `work` and keeps the events of the batch from being delivered to somebody else meanwhile.
async fn keeping<T>(batch: &Batch, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let every = ACK_WAIT / 3;
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = ticks.tick() => {
                let told = join_all(batch.iter().map(|(delivery, _)| delivery.in_progress()));
                // While the server is away nobody else gets them either.
                drop(timeout(KEEPING_MAX, told).await);
            }
        }
    }
}

async fn give_back(batch: Batch) {
    let given = join_all(batch.into_iter().map(|(delivery, _)| delivery.retry()));
    // What is not given back in time is delivered again all the same, later.
    drop(timeout(KEEPING_MAX, given).await);
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Worker").field("name", &self.name).finish_non_exhaustive()
    }
}
