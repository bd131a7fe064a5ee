//! A way to the services: over NATS when it is named, else embedded in this process.

use std::time::Duration;

use anyhow::Context as _;
use bus::{Bus, NatsConfig};
use proto::resolve_reply::Answer;
use proto::{Call, FollowRequest, ImportTicket, ResolveReply, ResolveRequest, Resolved};
use tonic::{Code, Status};

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
/// How long the fetcher holds a follow that has nothing new, and how much longer the answer may take.
const FOLLOW_WAIT: Duration = Duration::from_secs(10);
const FOLLOW_SLACK: Duration = Duration::from_secs(10);
/// Times that an import is asked for again when its fetcher went away; each resumes what is stored.
const RESUMES: usize = 3;

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
        let mut resumes = 0;
        loop {
            let reply = self.bus.call(request.clone(), RESOLVE).await?;
            match self.follow(reply, progress).await {
                Err(status) if fetcher_went_away(&status) && resumes < RESUMES => {
                    resumes += 1;
                    progress.note(&format!("the fetcher went away ({}); asking again", status.message()));
                }
                result => return result,
            }
        }
    }

    async fn follow(&self, mut reply: ResolveReply, progress: &mut Progress) -> Result<Resolved, Status> {
        loop {
            match reply.answer {
                Some(Answer::Resolved(resolved)) => return Ok(resolved),
                Some(Answer::Importing(ticket)) => {
                    progress.importing(ticket.progress.as_ref());
                    reply = self
                        .bus
                        .call_instance(&ticket.instance, next(&ticket), FOLLOW_WAIT + FOLLOW_SLACK)
                        .await?;
                }
                None => return Err(Status::internal("the fetcher answered neither an image nor a ticket")),
            }
        }
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

fn next(ticket: &ImportTicket) -> FollowRequest {
    FollowRequest {
        ticket: ticket.ticket.clone(),
        wait_ms: FOLLOW_WAIT.as_millis() as u32,
        seen_revision: ticket.progress.as_ref().map_or(0, |progress| progress.revision),
    }
}

fn fetcher_went_away(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
}
