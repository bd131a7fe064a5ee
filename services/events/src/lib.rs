//! The events service: takes what happened from the mesh's stream of events and writes it to sinks.
//!
//! ```text
//! nodes, fetchers, policies --events--> stream --own place in it--> worker --> sink: file, stdout, webhook, NATS, Kubernetes
//!                                         |                           |
//!                                   kept for a day          acknowledged once it is written
//! ```
//!
//! Each sink has a durable consumer of its own: one that hangs or is away stops no other, and goes on where it was, over a restart
//! of this service as well. An event is acknowledged after it was written, so none is lost; what may be written twice are the
//! events that a sink was writing when the process died, at most [`Sink::batch_max`] of them, and each kind of sink tells these by
//! their id.
//!
//! Any number of these services run side by side: they share each sink's place.

mod backoff;
mod config;
mod keeper;
mod meters;
mod sinks;
mod worker;

use std::future::{Ready, ready};

use anyhow::Context as _;
use bus::Bus;
use lifecycle::Probe;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{Config, FileConfig, KubernetesConfig, NatsSinkConfig, Settings, SinkConfig, WebhookConfig};
use keeper::Keeper;
pub(crate) use sinks::{Outcome, Sink};
use worker::Worker;

/// Sinks that are written to until their shutdown token is cancelled.
#[derive(Debug)]
pub struct Sinks {
    keeper: Keeper,
}

impl Sinks {
    /// Whether the stream of events is there to be taken from.
    pub const STREAM: Probe = Probe {
        what: "stream",
        gauge: "sluice_events_stream_open",
        every: Duration::from_secs(1),
        within: Duration::from_secs(5),
    };

    /// Opens every sink; the stream is opened as soon as there is a server. An error: what the configuration says cannot work.
    pub async fn start(
        config: Config,
        bus: Bus,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Sinks> {
        config.check()?;
        if config.sinks.is_empty() {
            tracing::warn!("events.sinks is empty: events are kept in the stream and written nowhere");
        }
        let stream = config.stream();
        let keeper = Keeper::new(bus.clone(), stream.clone());
        tasks.spawn(keeper.clone().run(shutdown.clone()));
        for (name, config_of_sink) in &config.sinks {
            let sink = sinks::open(config_of_sink, &bus).await;
            let sink = sink.with_context(|| format!("events.sinks.{name}"))?;
            let consumer = config_of_sink.consumer(name);
            let worker = Worker::new(name.clone(), sink, config.max_age);
            tracing::info!(sink = name, to = config_of_sink.place(), "writing events");
            tasks.spawn(worker.run(bus.clone(), stream.clone(), consumer, shutdown.clone()));
        }
        Ok(Sinks { keeper })
    }

    /// Whether the stream is there, as whoever watches it asks.
    pub fn probe(&self) -> impl Fn() -> Ready<Result<(), String>> + Send + Sync + 'static {
        let keeper = self.keeper.clone();
        move || ready(keeper.state())
    }
}
