//! A way to the services: over NATS when it is named, else embedded in this process.

use std::time::Duration;

use anyhow::Context as _;
use bus::{Bus, NatsConfig, Step};
use proto::{Call, ResolveRequest, Resolved};
use tonic::Status;

use crate::embedded::Embedded;
use crate::progress::Progress;
use crate::settings::Settings;

/// A question that is answered from records: long enough for a store that is slow today.
pub const ASK: Duration = Duration::from_secs(60);
/// How long a NATS server may take to answer.
const CONNECT: Duration = Duration::from_secs(5);
/// A resolve speaks to a registry, with its retries.
const RESOLVE: Duration = Duration::from_secs(180);
/// A collection lists the whole store.
pub const COLLECT: Duration = Duration::from_secs(3_600);
#[derive(Debug)]
pub struct Session {
    bus: Bus,
    embedded: Option<Embedded>,
}

impl Session {
    /// For questions about images, which policies judge; loading them takes a moment.
    pub async fn open(settings: &Settings) -> anyhow::Result<Session> {
        if let Some(nats) = &settings.nats {
            let bus = connect(nats).await?;
            return Ok(Session { bus, embedded: None });
        }
        let embedded = Embedded::fetcher_only(settings).await?;
        Ok(Session { bus: embedded.bus().clone(), embedded: Some(embedded) })
    }

    /// For questions about what the store holds. They leave nothing behind, neither a folder nor a key; none where there is no store.
    pub async fn open_existing(settings: &Settings) -> anyhow::Result<Option<Session>> {
        if let Some(nats) = &settings.nats {
            let bus = connect(nats).await?;
            return Ok(Some(Session { bus, embedded: None }));
        }
        let Some(embedded) = Embedded::questions(settings).await? else { return Ok(None) };
        Ok(Some(Session { bus: embedded.bus().clone(), embedded: Some(embedded) }))
    }

    /// A session over services that somebody else runs.
    pub fn over(bus: Bus) -> Session {
        Session { bus, embedded: None }
    }

    pub async fn call<C: Call>(&self, request: C, deadline: Duration) -> Result<C::Reply, Status> {
        self.bus.call(request, deadline).await
    }

    /// Makes an image streamable and shows how far it is.
    pub async fn import(&self, request: ResolveRequest, progress: &mut Progress) -> Result<Resolved, Status> {
        let on = |step: Step<'_>| {
            match step {
                Step::Importing(ticket) => progress.importing(ticket.progress.as_ref()),
                Step::Resuming(status) => {
                    progress.note(&format!("the fetcher went away ({}); asking again", status.message()));
                }
            }
            Ok(())
        };
        self.bus.resolve(&request, RESOLVE, on).await
    }

    pub async fn close(self) {
        if let Some(embedded) = self.embedded {
            embedded.stop().await;
        }
    }
}

/// Services wait for NATS; who typed a command is told.
pub async fn connect(nats: &NatsConfig) -> anyhow::Result<Bus> {
    let bus = Bus::connect_within(nats, CONNECT).await;
    bus.context("connect to NATS: is --nats, or nats.url of the settings, its address?")
}
