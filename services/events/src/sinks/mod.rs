//! Where events are written.

mod file;
mod kubernetes;
mod lines;
mod nats;
mod signature;
mod stdout;
mod webhook;

use std::time::Duration;

use anyhow::bail;
use bus::Bus;
use bus::cloud::CloudEvent;
use futures::future::BoxFuture;
use proto::Event;

use crate::config::SinkConfig;

/// One destination. It is used by one worker, one batch at a time.
pub(crate) trait Sink: Send + Sync {
    /// How many events it takes at once: as many may be written twice when the process dies.
    fn batch_max(&self) -> usize;

    /// Writes events, each of which it may have got before; the outcome of each, in their order. Returns within a bound of its own.
    fn write<'a>(&'a mut self, events: &'a [Event]) -> BoxFuture<'a, Vec<Outcome>>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is there, for good.
    Done,
    /// It could not be written now. `after`: how long the receiver wants to be left alone.
    Again { why: String, after: Option<Duration> },
    /// The receiver will never take this one.
    Never { why: String },
}

impl Outcome {
    fn again(why: impl Into<String>) -> Outcome {
        Outcome::Again { why: why.into(), after: None }
    }
}

/// Opens the sink that the configuration, which was checked, describes.
pub(crate) async fn open(config: &SinkConfig, bus: &Bus) -> anyhow::Result<Box<dyn Sink>> {
    Ok(match config {
        SinkConfig { file: Some(file), .. } => Box::new(file::File::new(file)),
        SinkConfig { webhook: Some(webhook), .. } => Box::new(webhook::Webhook::new(webhook)?),
        SinkConfig { nats: Some(nats), .. } => Box::new(nats::Nats::new(nats, bus.clone())),
        SinkConfig { kubernetes: Some(kubernetes), .. } => {
            Box::new(kubernetes::Kubernetes::new(kubernetes).await)
        }
        SinkConfig { stdout: true, .. } => Box::new(stdout::Stdout),
        _ => bail!("it has no destination"),
    })
}

/// The event as one JSON object, a CloudEvent in structured mode.
fn json(event: &Event) -> Vec<u8> {
    // Its keys are strings and its numbers whole: nothing of it can fail to be written.
    serde_json::to_vec(&CloudEvent::from(event)).unwrap_or_default()
}
