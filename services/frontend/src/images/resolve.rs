//! Asks the mesh what an image is, and believes only what a trusted fetcher signed.
//!
//! ```text
//! resolve --> resolved
//!        \--> importing --follow--> importing … resolved
//!                          \--> the fetcher is gone: resolve again, bounded
//! ```

use std::time::Duration;

use bus::Bus;
use ed25519_dalek::VerifyingKey;
use image::{ImageRecord, Profile};
use prost::Message as _;
use proto::resolve_reply::Answer;
use proto::signed::{self, Domain};
use proto::{
    FollowRequest, Grant, ImportProgress, ImportSummary, ImportTicket, RenewRequest, ResolveReply,
    ResolveRequest, Resolved, Signed,
};
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::events::NodeEvents;

/// How long one question about an import stays open when nothing changes. Short enough that a lost answer is soon asked again.
const FOLLOW_WAIT: Duration = Duration::from_secs(5);
/// What the answer itself may take beyond that.
const FOLLOW_SLACK: Duration = Duration::from_secs(10);
/// How often an import is asked for anew when the fetcher that ran it went away.
const RESTARTS_MAX: u32 = 5;

/// When to ask again for an image that is being imported.
const IMPORT_RETRY: Duration = Duration::from_secs(10);
/// The error's reason and domain, in its details.
pub(crate) const NOT_IMPORTED: &str = "not-imported-yet";
const ERROR_DOMAIN: &str = "images.sluice";

/// The project that an empty name means.
const DEFAULT_PROJECT: &str = "default";

#[derive(Debug)]
pub(super) struct Resolver {
    bus: Bus,
    trusted: Vec<VerifyingKey>,
    events: NodeEvents,
}

impl Patience {
    /// The same for every step.
    pub(super) fn of(each: Duration) -> Patience {
        Patience { answer: each, queue: each, import: each }
    }
}

/// What was said about an image, verified.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) record: ImageRecord,
    /// The record as signed, encoded: what the node keeps.
    pub(super) signed: Vec<u8>,
    /// From the node's own memory it may have expired, or be empty.
    pub(super) grant: Signed,
    pub(super) profile: Profile,
    pub(super) imported: Option<ImportSummary>,
    /// This node's own memory says so, from the disk.
    pub(super) remembered: bool,
}

/// How long each step may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Until the fetcher answers at all.
    pub(super) answer: Duration,
    /// Of an import that is queued, as the fetcher has others to do first, until it begins.
    pub(super) queue: Duration,
    /// Until it has ended.
    pub(super) import: Duration,
}

impl Resolver {
    pub(super) fn new(bus: Bus, trusted: Vec<VerifyingKey>, events: NodeEvents) -> Resolver {
        Resolver { bus, trusted, events }
    }

    /// Asks until the image is imported; `importing` hears how that goes.
    pub(super) async fn resolve(
        &self,
        request: &ResolveRequest,
        patience: Patience,
        mut importing: impl FnMut(ImportTicket),
    ) -> Result<Answered, Status> {
        let (asked, mut queued) = (Instant::now(), None);
        let mut restarts = 0;
        let mut reply = self.bus.call(request.clone(), patience.answer).await?;
        loop {
            let ticket = match reply.answer {
                Some(Answer::Resolved(resolved)) => {
                    return self.believe(&request.project, &request.node, resolved);
                }
                Some(Answer::Importing(ticket)) => ticket,
                None => return Err(Status::internal("the fetcher answered resolve with nothing")),
            };
            queued = if is_queued(&ticket) { queued.or(Some(Instant::now())) } else { None };
            let queued_for = queued.map_or(Duration::ZERO, |since| since.elapsed());
            if queued_for > patience.queue || asked.elapsed() > patience.import {
                return Err(not_imported_yet(&request.reference, ticket.progress.as_ref()));
            }
            importing(ticket.clone());
            reply = match self.follow(&ticket).await {
                Err(status) if gone(&status) && restarts < RESTARTS_MAX => {
                    restarts += 1;
                    tracing::warn!(ticket = ticket.ticket, error = %status, "the import's fetcher is gone: asking for it anew");
                    self.bus.call(request.clone(), patience.answer).await?
                }
                other => other?,
            };
        }
    }

    /// A record as this node kept it: believed only as long as its key is trusted.
    pub(super) fn believe_kept(&self, signed: &[u8]) -> Result<ImageRecord, Status> {
        let signed = Signed::decode(signed)
            .map_err(|error| Status::data_loss(format!("cannot read the kept record: {error}")))?;
        self.record(&signed)
    }

    async fn follow(&self, ticket: &ImportTicket) -> Result<ResolveReply, Status> {
        let request = FollowRequest {
            ticket: ticket.ticket.clone(),
            wait_ms: FOLLOW_WAIT.as_millis() as u32,
            seen_revision: ticket.progress.as_ref().map_or(0, |progress| progress.revision),
        };
        self.bus.call_instance(&ticket.instance, request, FOLLOW_WAIT + FOLLOW_SLACK).await
    }

    fn believe(&self, project: &str, node: &str, resolved: Resolved) -> Result<Answered, Status> {
        let signed = resolved.record.ok_or_else(|| Status::internal("the fetcher sent no record"))?;
        let record = self.record(&signed)?;
        if record.project != project_name(project) {
            return Err(Status::data_loss(format!("the image record is of project {:?}", record.project)));
        }
        let grant = resolved.grant.ok_or_else(|| Status::internal("the fetcher sent no grant"))?;
        self.check_grant(&record, node, &grant)?;
        // A profile only makes a start faster: a broken one is no reason not to start.
        let profile = Profile::decode(&resolved.profile).unwrap_or_else(|error| {
            if !resolved.profile.is_empty() {
                tracing::warn!(image = record.manifest_digest, %error, "the profile cannot be read: starting without one");
            }
            Profile::default()
        });
        let imported = resolved.imported;
        let signed = signed.encode_to_vec();
        Ok(Answered { record, signed, grant, profile, imported, remembered: false })
    }

    fn record(&self, signed: &Signed) -> Result<ImageRecord, Status> {
        let payload = signed::verify(&self.trusted, Domain::ImageRecord, signed)
            .inspect_err(|error| self.events.untrusted("an image record", error))
            .map_err(|error| Status::data_loss(format!("the image record is not to be trusted: {error}")))?;
        let record = ImageRecord::decode(payload)
            .map_err(|error| Status::data_loss(format!("the image record cannot be read: {error}")))?;
        manifest_hex(&record.manifest_digest)?;
        Ok(record)
    }

    /// Asks for a newer grant in place of one that this node has for the image.
    pub(super) async fn renew(
        &self,
        record: &ImageRecord,
        node: &str,
        grant: Signed,
        timeout: Duration,
    ) -> Result<Signed, Status> {
        let reply = self.bus.call(RenewRequest { grant: Some(grant) }, timeout).await?;
        let renewed = reply.grant.ok_or_else(|| Status::internal("the fetcher sent no grant"))?;
        self.check_grant(record, node, &renewed)?;
        Ok(renewed)
    }

    /// Whether it is one for this image. Not whether it still counts: the clock of who gave it may be another, the answer may have taken
    /// long, and what has expired is renewed before it is used.
    fn check_grant(&self, record: &ImageRecord, node: &str, signed: &Signed) -> Result<(), Status> {
        let refuse =
            |reason: String| Status::permission_denied(format!("the grant is not to be trusted: {reason}"));
        let payload = signed::verify(&self.trusted, Domain::Grant, signed)
            .inspect_err(|error| self.events.untrusted("a grant", error))
            .map_err(|error| refuse(error.to_string()))?;
        let grant = Grant::decode(payload).map_err(|error| refuse(error.to_string()))?;
        if grant.project != record.project || grant.manifest_digest != record.manifest_digest {
            return Err(refuse(format!(
                "it is for {} of project {:?}",
                grant.manifest_digest, grant.project
            )));
        }
        if grant.node != node {
            return Err(refuse(format!("it is for node {:?}", grant.node)));
        }
        Ok(())
    }
}

fn is_queued(ticket: &ImportTicket) -> bool {
    ticket.progress.as_ref().is_some_and(|progress| progress.queued)
}

/// An import that goes on: `FAILED_PRECONDITION` as with image streaming of others, with how far it is and when to ask again.
fn not_imported_yet(reference: &str, progress: Option<&ImportProgress>) -> Status {
    let (done, total) =
        progress.map_or((0, 0), |progress| (progress.compressed_done, progress.compressed_total));
    let numbers = [("compressed_done", done), ("compressed_total", total)];
    let metadata = numbers.map(|(name, bytes)| (name.to_owned(), bytes.to_string()));
    let mut details = ErrorDetails::with_error_info(NOT_IMPORTED, ERROR_DOMAIN, metadata);
    details.set_retry_info(Some(IMPORT_RETRY));
    let message = format!(
        "{reference}: it is not imported yet: {done} of {total} bytes are done; ask again in {IMPORT_RETRY:?}"
    );
    Status::with_error_details(Code::FailedPrecondition, message, details)
}

/// The project's full name.
pub(super) fn project_name(project: &str) -> &str {
    if project.is_empty() { DEFAULT_PROJECT } else { project }
}

/// The 64 digits of `sha256:<hex>`: safe as a file's name.
pub(super) fn manifest_hex(digest: &str) -> Result<&str, Status> {
    digest
        .strip_prefix("sha256:")
        .filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
        .ok_or_else(|| Status::invalid_argument(format!("{digest:?} is not a manifest digest")))
}

/// Whether the mesh did not answer, as opposed to having refused.
pub(super) fn away(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
}

/// Whether the fetcher that ran an import forgot it.
fn gone(status: &Status) -> bool {
    away(status) || status.code() == Code::NotFound
}
