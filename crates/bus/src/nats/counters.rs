//! Sums as messages of a JetStream stream that counts: the header `Nats-Incr` adds, and the acknowledgement carries the
//! sum after it (ADR-49, NATS 2.12).
//!
//! One stream per name and one message per key, which stands for the sum. Nothing is sent twice: an addition whose
//! acknowledgement was lost may have been made.

use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{self, LastRawMessageErrorKind, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{self, Context};
use proto::subjects::COUNTERS;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::Status;

use super::Nats;

const INCREMENT: &str = "Nats-Incr";
/// How long the server may take to acknowledge.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(2);
/// How long a connection is waited for that is being made.
const CONNECTED_WITHIN: Duration = Duration::from_secs(1);
/// What the server uses when nothing is said; no longer than what is kept.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// The sums of one name.
pub(crate) struct NatsCounters {
    nats: Nats,
    context: Context,
    name: Arc<str>,
    kept: Duration,
    /// Opened when it is first needed: the server may be away before.
    stream: Mutex<Option<Stream>>,
}

impl NatsCounters {
    pub(crate) fn new(nats: Nats, name: &str, kept: Duration) -> NatsCounters {
        let mut context = jetstream::new(nats.client.clone());
        context.set_timeout(ACKNOWLEDGE_WITHIN);
        NatsCounters { nats, context, name: name.into(), kept, stream: Mutex::default() }
    }

    pub(crate) async fn add(&self, token: &str, amount: u64) -> Result<u64, Status> {
        self.opened().await?;
        let message = PublishMessage::build().header(INCREMENT, format!("+{amount}").as_str());
        let sent = async { self.context.send_publish(self.subject(token), message).await?.await };
        let acknowledged = match sent.await {
            Ok(acknowledged) => acknowledged,
            Err(error) => {
                if error.kind() == PublishErrorKind::StreamNotFound {
                    *self.stream.lock().await = None;
                }
                return Err(self.failed(token, &error));
            }
        };
        let sum = acknowledged.value.as_deref().map(str::parse);
        sum.and_then(Result::ok).ok_or_else(|| {
            Status::failed_precondition(format!(
                "adding to {}: the server answered without a sum; counters need nats-server 2.12 or newer",
                self.subject(token)
            ))
        })
    }

    pub(crate) async fn get(&self, token: &str) -> Result<u64, Status> {
        /// What the server writes for a sum.
        #[derive(serde::Deserialize)]
        struct Stored {
            val: String,
        }
        let stream = self.opened().await?;
        let subject = self.subject(token);
        let stored = match stream.get_last_raw_message_by_subject(&subject).await {
            Ok(message) => message.payload,
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => return Ok(0),
            Err(error) => return Err(Status::unavailable(format!("reading {subject}: {error}"))),
        };
        let stored: Option<Stored> = serde_json::from_slice(&stored).ok();
        let sum = stored.and_then(|stored| stored.val.parse().ok());
        sum.ok_or_else(|| Status::data_loss(format!("reading {subject}: what is stored is not a sum")))
    }

    fn subject(&self, token: &str) -> String {
        format!("{COUNTERS}.{}.{token}", self.name)
    }

    fn failed(&self, token: &str, error: &PublishError) -> Status {
        let message = format!("adding to {}: {error}", self.subject(token));
        match error.kind() {
            PublishErrorKind::TimedOut => Status::deadline_exceeded(message),
            _ => Status::unavailable(message),
        }
    }

    async fn opened(&self) -> Result<Stream, Status> {
        // What is published without a connection would be sent, and added, when nobody waits for it any more.
        if self.nats.client.connection_state() != State::Connected {
            let connected = timeout(CONNECTED_WITHIN, self.nats.client.flush()).await;
            if !matches!(connected, Ok(Ok(()))) {
                return Err(Status::unavailable("no connection to NATS"));
            }
        }
        let mut opened = self.stream.lock().await;
        if let Some(stream) = &*opened {
            return Ok(stream.clone());
        }
        let name = format!("sluice-counters-{}", self.name);
        let failed = |error: &dyn std::fmt::Display| {
            Status::unavailable(format!("opening the counter stream {name}: {error}"))
        };
        let config = stream::Config {
            name: name.clone(),
            description: Some("sums that are drawn from".to_owned()),
            subjects: vec![format!("{COUNTERS}.{}.*", self.name)],
            retention: RetentionPolicy::Limits,
            storage: StorageType::File,
            max_messages_per_subject: 1,
            max_age: self.kept,
            duplicate_window: DUPLICATE_WINDOW.min(self.kept),
            num_replicas: self.nats.replicas,
            allow_message_counter: true,
            ..stream::Config::default()
        };
        self.context.create_or_update_stream(config).await.map_err(|error| failed(&error))?;
        let stream = self.context.get_stream(&name).await.map_err(|error| failed(&error))?;
        Ok(opened.insert(stream).clone())
    }
}

impl std::fmt::Debug for NatsCounters {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("NatsCounters").field("name", &self.name).finish_non_exhaustive()
    }
}
