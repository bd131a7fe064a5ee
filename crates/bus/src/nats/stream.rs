//! Streams in JetStream: on disk, in as many copies as the connection's settings say.
//!
//! Messages are asked for when somebody has time for them, and never ahead: what waits in a client's memory would be delivered
//! to somebody else once its time is over.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream;
use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::{Acker, PublishMessage};
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use futures::StreamExt as _;
use tonic::Status;

use super::Nats;
use crate::stream::{ConsumerConfig, Delivery, Outgoing, Published, StreamConfig};

/// How long a server may take for one answer.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long a question for the next message stands at the server: short, so that one that got lost is soon asked again.
const ASK_STANDS: Duration = Duration::from_secs(5);
/// As a server calls it that no more may be delivered before something is acknowledged.
const FULL: &str = "MaxAckPending";

#[derive(Clone, Debug)]
pub(crate) struct NatsStream {
    nats: Nats,
    name: String,
}

pub(crate) struct NatsConsumer {
    config: ConsumerConfig,
    stream: NatsStream,
    consumer: PullConsumer,
}

pub(crate) struct NatsDelivery {
    acker: Acker,
}

/// Why a message was not stored.
#[derive(Debug)]
pub(crate) enum NotStored {
    /// No stream keeps its subject, or the server has none at all.
    NoStream,
    /// No answer within [`ANSWER_MAX`], or no connection: it may be stored or not.
    NoAnswer(String),
    Refused(String),
}

impl Nats {
    pub(crate) fn jetstream(&self) -> jetstream::Context {
        let open = || {
            let mut context = jetstream::new(self.client.clone());
            context.set_timeout(ANSWER_MAX);
            context
        };
        self.jetstream.get_or_init(open).clone()
    }

    /// Makes the stream, or gives it this configuration.
    pub(crate) async fn open_stream(&self, config: StreamConfig) -> Result<NatsStream, Status> {
        let StreamConfig { name, subjects, max_age, max_bytes, duplicate_window } = config;
        let config = Config {
            name: name.clone(),
            subjects,
            max_age,
            max_bytes: i64::try_from(max_bytes).unwrap_or(i64::MAX),
            duplicate_window,
            discard: DiscardPolicy::Old,
            storage: StorageType::File,
            num_replicas: self.replicas,
            ..Config::default()
        };
        let opened = self.jetstream().create_or_update_stream(config).await;
        opened.map_err(|error| Status::unavailable(format!("opening the stream {name}: {error}")))?;
        Ok(NatsStream { nats: self.clone(), name })
    }

    /// Publishes to whichever stream keeps the subject; those who only listen get it too.
    pub(crate) async fn publish_kept(&self, message: Outgoing) -> Result<Published, NotStored> {
        let Outgoing { subject, id, headers, payload } = message;
        let mut all = HeaderMap::new();
        headers.into_iter().for_each(|(name, value)| all.insert(name, value));
        let message = PublishMessage::build().payload(payload).headers(all).message_id(id);
        let not_stored = |error: jetstream::context::PublishError| match error.kind() {
            PublishErrorKind::StreamNotFound => NotStored::NoStream,
            PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => {
                NotStored::NoAnswer(error.to_string())
            }
            _ => NotStored::Refused(error.to_string()),
        };
        let sent = self.jetstream().send_publish(subject, message).await.map_err(not_stored)?;
        let stored = sent.await.map_err(not_stored)?;
        Ok(Published { sequence: stored.sequence, duplicate: stored.duplicate })
    }
}

impl Nats {
    pub(crate) async fn publish_for_others(&self, message: Outgoing, kept: bool) -> Result<(), Status> {
        self.connected().map_err(Status::unavailable)?;
        let subject = message.subject.clone();
        if kept {
            return self.publish_kept(message).await.map(drop).map_err(|reason| reason.status(&subject));
        }
        self.tell(message).await;
        let flushed = tokio::time::timeout(ANSWER_MAX, self.client.flush()).await;
        let flushed = flushed.map_err(|_| Status::unavailable(format!("publishing {subject}: no answer")))?;
        flushed.map_err(|error| Status::unavailable(format!("publishing {subject}: {error}")))
    }
}

impl NotStored {
    fn status(self, subject: &str) -> Status {
        match self {
            NotStored::NoStream => Status::failed_precondition(format!("no stream keeps {subject}")),
            NotStored::NoAnswer(error) => Status::unavailable(format!("publishing {subject}: {error}")),
            NotStored::Refused(error) => Status::invalid_argument(format!("publishing {subject}: {error}")),
        }
    }
}

impl NatsStream {
    pub(crate) async fn publish(&self, message: Outgoing) -> Result<Published, Status> {
        let subject = message.subject.clone();
        self.nats.publish_kept(message).await.map_err(|reason| reason.status(&subject))
    }

    pub(crate) async fn consume(&self, config: ConsumerConfig) -> Result<NatsConsumer, Status> {
        let consumer = self.consumer(&config).await?;
        Ok(NatsConsumer { config, stream: self.clone(), consumer })
    }

    async fn consumer(&self, config: &ConsumerConfig) -> Result<PullConsumer, Status> {
        let asked = pull::Config {
            durable_name: Some(config.name.clone()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: config.ack_wait,
            filter_subjects: config.subjects.clone(),
            max_ack_pending: i64::try_from(config.max_in_flight).unwrap_or(i64::MAX),
            ..pull::Config::default()
        };
        self.nats.jetstream().create_consumer_on_stream(asked, &self.name).await.map_err(|error| {
            Status::unavailable(format!("opening the consumer {} of {}: {error}", config.name, self.name))
        })
    }
}

impl NatsConsumer {
    pub(crate) async fn next(&mut self, max: usize) -> Result<Vec<Delivery>, Status> {
        let max = max.max(1);
        loop {
            let mut batch = self.here(max).await?;
            if batch.is_empty() {
                batch = self.first().await?;
                if !batch.is_empty() && max > 1 {
                    batch.extend(self.here(max - 1).await.unwrap_or_default());
                }
            }
            if !batch.is_empty() {
                return Ok(batch);
            }
        }
    }

    /// What can be delivered at once.
    async fn here(&self, max: usize) -> Result<Vec<Delivery>, Status> {
        let asked = self.consumer.fetch().max_messages(max).messages();
        let batch = asked.await.map_err(|error| self.failed(&error))?;
        self.collect(batch, max, ANSWER_MAX).await
    }

    /// Waits for one message; none came: ask again.
    async fn first(&self) -> Result<Vec<Delivery>, Status> {
        let asked = self.consumer.batch().max_messages(1).expires(ASK_STANDS).messages();
        let batch = asked.await.map_err(|error| self.failed(&error))?;
        self.collect(batch, 1, ASK_STANDS + ANSWER_MAX).await
    }

    async fn collect(
        &self,
        mut batch: pull::Batch,
        max: usize,
        within: Duration,
    ) -> Result<Vec<Delivery>, Status> {
        let mut collected = Vec::new();
        let end = tokio::time::Instant::now() + within;
        while collected.len() < max {
            // One that never ends was lost with its server: what came of it counts.
            let Ok(Some(next)) = tokio::time::timeout_at(end, batch.next()).await else { break };
            match next {
                Ok(message) => collected.extend(self.delivery(message)),
                // As many are in flight as may be.
                Err(error) if error.to_string().contains(FULL) => break,
                Err(error) if collected.is_empty() => return Err(self.failed(&error)),
                Err(_) => break,
            }
        }
        Ok(collected)
    }

    fn delivery(&self, message: jetstream::Message) -> Option<Delivery> {
        let (sequence, attempt) = {
            let info = message.info().ok()?;
            (info.stream_sequence, u64::try_from(info.delivered).unwrap_or(1))
        };
        let (message, acker) = message.split();
        let headers = message.headers.iter().flat_map(HeaderMap::iter);
        let headers = headers
            .filter_map(|(name, values)| Some((name.to_string(), values.last()?.as_str().to_owned())))
            .collect();
        let content = (message.subject.to_string(), headers, message.payload);
        Some(Delivery::new(content, sequence, attempt, &self.config, NatsDelivery { acker }))
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> Status {
        Status::unavailable(format!("taking from {} as {}: {error}", self.stream.name, self.config.name))
    }
}

impl NatsDelivery {
    /// Confirmed by the server.
    pub(crate) async fn finish(&self) -> Result<(), Status> {
        self.acker.double_ack().await.map_err(|error| told(&error))
    }

    pub(crate) async fn again_in(&self, pause: Duration) -> Result<(), Status> {
        self.acker.ack_with(AckKind::Nak(Some(pause))).await.map_err(|error| told(&error))
    }

    pub(crate) async fn in_progress(&self) -> Result<(), Status> {
        self.acker.ack_with(AckKind::Progress).await.map_err(|error| told(&error))
    }

    pub(crate) async fn give_up(&self) -> Result<(), Status> {
        self.acker.double_ack_with(AckKind::Term).await.map_err(|error| told(&error))
    }
}

fn told(error: &dyn std::fmt::Display) -> Status {
    Status::unavailable(format!("acknowledging a message: {error}"))
}

impl std::fmt::Debug for NatsConsumer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("NatsConsumer").field("config", &self.config).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for NatsDelivery {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("NatsDelivery")
    }
}
