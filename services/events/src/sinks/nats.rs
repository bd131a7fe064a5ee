//! A subject of the user's own: one JSON object a message, a CloudEvent in structured mode.

use bus::{Bus, Outgoing};
use futures::future::{BoxFuture, join_all};
use proto::Event;
use tonic::Code;

use super::{Outcome, Sink, json};
use crate::config::NatsSinkConfig;

const BATCH_MAX: usize = 64;

pub(super) struct Nats {
    bus: Bus,
    config: NatsSinkConfig,
}

impl Nats {
    pub(super) fn new(config: &NatsSinkConfig, bus: Bus) -> Nats {
        Nats { bus, config: config.clone() }
    }

    async fn publish(&self, event: &Event) -> Outcome {
        let message = Outgoing {
            subject: self.config.subject.clone(),
            id: event.id.clone(),
            headers: vec![("Content-Type", "application/cloudevents+json; charset=utf-8".to_owned())],
            payload: json(event).into(),
        };
        match self.bus.publish(message, self.config.kept).await {
            Ok(()) => Outcome::Done,
            Err(status) if status.code() == Code::InvalidArgument => {
                Outcome::Never { why: status.message().to_owned() }
            }
            Err(status) => Outcome::again(status.message()),
        }
    }
}

impl Sink for Nats {
    fn batch_max(&self) -> usize {
        BATCH_MAX
    }

    fn write<'a>(&'a mut self, events: &'a [Event]) -> BoxFuture<'a, Vec<Outcome>> {
        let this = &*self;
        Box::pin(join_all(events.iter().map(move |event| this.publish(event))))
    }
}
