//! Messages that are kept: published into a named stream, acknowledged once they are stored, and taken by consumers that
//! go on where they were.
//!
//! ```text
//! publish --> stored (or known by its id already) --> delivered --> acked: gone for this consumer
//!                                                         \--> no word for `ack_wait`, or retried --> delivered again
//! ```
//!
//! Over NATS it is a JetStream stream on disk. In one process it is memory: what is there ends with the process, all other
//! promises are the same.

mod memory;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tonic::Status;

use crate::Transport;
use crate::nats::stream::{NatsConsumer, NatsDelivery, NatsStream};

pub(crate) use memory::{Memory, Streams};

/// What a stream keeps. The oldest messages go first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamConfig {
    /// Letters, digits, `-` and `_`.
    pub name: String,
    /// Whatever is published on these is kept; `*` and `>` as in NATS.
    pub subjects: Vec<String>,
    pub max_age: Duration,
    pub max_bytes: u64,
    /// A message whose id was published within this time is stored once.
    pub duplicate_window: Duration,
}

/// One place in a stream that survives whoever takes from it. Several may take under one name: each message goes to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerConfig {
    /// Letters, digits, `-` and `_`.
    pub name: String,
    /// Only these; empty: all.
    pub subjects: Vec<String>,
    /// How long a message may go without a word until it is delivered again.
    pub ack_wait: Duration,
    /// Pauses before a message that was given back is delivered again, by attempt; the last one holds for all further ones.
    pub backoff: Vec<Duration>,
    /// Messages that are delivered and not acknowledged, of all who take together.
    pub max_in_flight: usize,
}

/// A message to be kept.
#[derive(Clone, Debug, Default)]
pub struct Outgoing {
    pub subject: String,
    /// Two messages of one id are one.
    pub id: String,
    pub headers: Vec<(&'static str, String)>,
    pub payload: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    pub sequence: u64,
    /// It was there already.
    pub duplicate: bool,
}

/// A stream that is open. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Stream {
    way: Way,
}

#[derive(Clone, Debug)]
enum Way {
    Memory(Memory),
    Nats(Arc<NatsStream>),
}

/// Takes messages from a stream, one batch after the other.
#[derive(Debug)]
pub struct Consumer {
    way: ConsumerWay,
}

#[derive(Debug)]
enum ConsumerWay {
    Memory(memory::MemoryConsumer),
    Nats(Box<NatsConsumer>),
}

/// One message. Dropped without a word it is delivered again after [`ConsumerConfig::ack_wait`].
#[derive(Debug)]
pub struct Delivery {
    pub subject: String,
    pub headers: Vec<(String, String)>,
    pub payload: Bytes,
    pub sequence: u64,
    /// How often it was delivered, this time included.
    pub attempt: u64,
    backoff: Duration,
    way: DeliveryWay,
}

#[derive(Debug)]
enum DeliveryWay {
    Memory(memory::MemoryDelivery),
    Nats(NatsDelivery),
}

impl Transport {
    pub(crate) async fn open_stream(&self, config: StreamConfig) -> Result<Stream, Status> {
        check_name("stream", &config.name)?;
        let way = match self {
            Transport::InProcess(bus) => Way::Memory(bus.streams().open(config)),
            Transport::Nats(nats) => Way::Nats(Arc::new(nats.open_stream(config).await?)),
        };
        Ok(Stream { way })
    }
}

impl Stream {
    /// Returns when the message is stored.
    pub async fn publish(&self, message: Outgoing) -> Result<Published, Status> {
        match &self.way {
            Way::Memory(stream) => stream.publish(message),
            Way::Nats(stream) => stream.publish(message).await,
        }
    }

    /// The consumer of this name, from the oldest message on when it is new; else from where it was.
    pub async fn consume(&self, config: ConsumerConfig) -> Result<Consumer, Status> {
        check_name("consumer", &config.name)?;
        let way = match &self.way {
            Way::Memory(stream) => ConsumerWay::Memory(stream.consume(config)),
            Way::Nats(stream) => ConsumerWay::Nats(Box::new(stream.consume(config).await?)),
        };
        Ok(Consumer { way })
    }
}

impl Consumer {
    /// Waits for a message; then also what else is there, up to `max`. An error: the stream cannot be asked now; ask again.
    pub async fn next(&mut self, max: usize) -> Result<Vec<Delivery>, Status> {
        match &mut self.way {
            ConsumerWay::Memory(consumer) => Ok(consumer.next(max).await),
            ConsumerWay::Nats(consumer) => consumer.next(max).await,
        }
    }
}

impl Delivery {
    /// It is done with: returns when the server has noted it. On an error it may be delivered again; and after a server was killed,
    /// what it had noted last may be.
    pub async fn ack(self) -> Result<(), Status> {
        match self.way {
            DeliveryWay::Memory(delivery) => delivery.finish(),
            DeliveryWay::Nats(delivery) => return delivery.finish().await,
        }
        Ok(())
    }

    /// It is to be delivered again, after the consumer's pause for this attempt.
    pub async fn retry(self) -> Result<(), Status> {
        match self.way {
            DeliveryWay::Memory(delivery) => delivery.again_in(self.backoff),
            DeliveryWay::Nats(delivery) => return delivery.again_in(self.backoff).await,
        }
        Ok(())
    }

    /// It is still being worked on: the time of [`ConsumerConfig::ack_wait`] begins anew.
    pub async fn in_progress(&self) -> Result<(), Status> {
        match &self.way {
            DeliveryWay::Memory(delivery) => delivery.in_progress(),
            DeliveryWay::Nats(delivery) => return delivery.in_progress().await,
        }
        Ok(())
    }

    /// Nothing can be done with it: it is not delivered again.
    pub async fn give_up(self) -> Result<(), Status> {
        match self.way {
            DeliveryWay::Memory(delivery) => delivery.finish(),
            DeliveryWay::Nats(delivery) => return delivery.give_up().await,
        }
        Ok(())
    }

    /// The event that it is; none: it is something else, or names another node than the one that told it.
    pub fn event(&self) -> Option<proto::Event> {
        crate::told::event(&self.subject, &self.payload)
    }

    /// The value of a header, in exactly this spelling.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn new(
        message: (String, Vec<(String, String)>, Bytes),
        sequence: u64,
        attempt: u64,
        config: &ConsumerConfig,
        nats: NatsDelivery,
    ) -> Delivery {
        let way = DeliveryWay::Nats(nats);
        Delivery::of(message, sequence, attempt, config, way)
    }

    fn of(
        (subject, headers, payload): (String, Vec<(String, String)>, Bytes),
        sequence: u64,
        attempt: u64,
        config: &ConsumerConfig,
        way: DeliveryWay,
    ) -> Delivery {
        let last = config.backoff.len().saturating_sub(1);
        let nth = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX).min(last);
        let backoff = config.backoff.get(nth).copied().unwrap_or_default();
        Delivery { subject, headers, payload, sequence, attempt, backoff, way }
    }
}

/// Names are parts of subjects.
fn check_name(what: &str, name: &str) -> Result<(), Status> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    match !name.is_empty() && name.bytes().all(good) {
        true => Ok(()),
        false => Err(Status::invalid_argument(format!(
            "{name:?} cannot be the name of a {what}: letters, digits, `-` and `_` expected"
        ))),
    }
}
