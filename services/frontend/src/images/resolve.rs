//! Asks the mesh what an image is, and believes only what a trusted fetcher signed.

use std::time::Duration;

use bus::{Bus, Sealer, Step};
use image::{ImageRecord, Profile};
use names::{ManifestDigest, NotAManifestDigest};
use prost::Message as _;
use proto::refusal;
use proto::signed::{Domain, TrustedKeys};
use proto::{
    Grant, ImportProgress, ImportSummary, ImportTicket, Refusal, RenewRequest, Resolution, ResolveRequest,
    Resolved, Signed,
};
use tls::Tls;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::events::NodeEvents;

/// When to ask again for an image that is being imported.
const IMPORT_RETRY: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Resolver {
    bus: Bus,
    trusted: TrustedKeys,
    /// With which this node shows its grants.
    tls: Tls,
    sealer: Sealer,
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
    pub(super) fn new(bus: Bus, trusted: TrustedKeys, tls: Tls, events: NodeEvents) -> Resolver {
        let sealer = Sealer::new(bus.clone(), trusted.clone());
        Resolver { bus, trusted, tls, sealer, events }
    }

    /// The key that grants are to be for; empty without TLS.
    fn node_key(&self) -> Vec<u8> {
        self.tls.own().map(|own| own.thumbprint.to_vec()).unwrap_or_default()
    }

    /// Asks until the image is imported; `importing` hears how that goes.
    pub(super) async fn resolve(
        &self,
        request: &ResolveRequest,
        patience: Patience,
        mut importing: impl FnMut(ImportTicket),
    ) -> Result<Answered, Status> {
        // What was once answered to somebody is no answer to this.
        let nonce = rand::random::<[u8; 16]>().to_vec();
        let request = ResolveRequest { node_key: self.node_key(), nonce, ..request.clone() };
        let request = &self.sealer.resolve(request).await?;
        let (asked, mut queued) = (Instant::now(), None);
        let resolved = self.bus.resolve(request, patience.answer, |step| {
            let ticket = match step {
                Step::Importing(ticket) => ticket,
                Step::Resuming(error) => {
                    let image = &request.reference;
                    tracing::warn!(image, %error, "the import's fetcher is gone: asking for it anew");
                    return Ok(());
                }
            };
            queued = if is_queued(ticket) { queued.or(Some(Instant::now())) } else { None };
            let queued_for = queued.map_or(Duration::ZERO, |since| since.elapsed());
            if queued_for > patience.queue || asked.elapsed() > patience.import {
                return Err(not_imported_yet(&request.reference, ticket.progress.as_ref()));
            }
            importing(ticket.clone());
            Ok(())
        });
        self.believe(request, resolved.await?)
    }

    /// A record as this node kept it: believed only as long as its key is trusted.
    pub(super) fn believe_kept(&self, signed: &[u8]) -> Result<ImageRecord, Status> {
        let signed = Signed::decode(signed)
            .map_err(|error| Status::data_loss(format!("cannot read the kept record: {error}")))?;
        self.record(&signed)
    }

    fn believe(&self, request: &ResolveRequest, resolved: Resolved) -> Result<Answered, Status> {
        let signed = resolved.record.ok_or_else(|| Status::internal("the fetcher sent no record"))?;
        let record = self.record(&signed)?;
        if record.project != refusal::project(&request.project)?.as_str() {
            return Err(Status::data_loss(format!("the image record is of project {:?}", record.project)));
        }
        self.check_resolution(request, &record, resolved.resolution.as_ref())?;
        let grant = resolved.grant.ok_or_else(|| Status::internal("the fetcher sent no grant"))?;
        self.check_grant(&record, &request.node, &grant)?;
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

    /// Whether the record is the answer to this question. A record and a grant alone are good, whatever was asked: who answers in a
    /// fetcher's place could give an image that the node may read for one that it asked for.
    fn check_resolution(
        &self,
        request: &ResolveRequest,
        record: &ImageRecord,
        signed: Option<&Signed>,
    ) -> Result<(), Status> {
        let refuse = |reason: String| {
            let message = format!("{}: the answer is not to be trusted: {reason}", request.reference);
            Err(Status::data_loss(message))
        };
        let Some(signed) = signed else {
            // From a fetcher of an earlier version: what is asked for by digest needs nobody's word.
            let digest = request.reference.rsplit_once('@').map(|(_, digest)| digest);
            return match digest {
                Some(digest) if digest == record.manifest_digest && request.layers == 0 => Ok(()),
                _ => refuse(
                    "no fetcher says that it is one to this question; fetchers are upgraded before nodes"
                        .into(),
                ),
            };
        };
        let resolution = match self.trusted.verify(Domain::Resolution, signed) {
            Ok(payload) => Resolution::decode(payload),
            Err(error) => return refuse(error.to_string()),
        };
        let expected = Resolution {
            project: record.project.clone(),
            reference: request.reference.clone(),
            platform: request.platform.clone(),
            layers: request.layers,
            node: request.node.clone(),
            nonce: request.nonce.clone(),
            manifest_digest: record.manifest_digest.clone(),
        };
        match resolution {
            Ok(resolution) if resolution == expected => Ok(()),
            Ok(_) => refuse("it is one to another question".into()),
            Err(error) => refuse(error.to_string()),
        }
    }

    fn record(&self, signed: &Signed) -> Result<ImageRecord, Status> {
        let payload = self
            .trusted
            .verify(Domain::ImageRecord, signed)
            .inspect_err(|error| self.events.untrusted("an image record", error))
            .map_err(|error| Status::data_loss(format!("the image record is not to be trusted: {error}")))?;
        let record = ImageRecord::decode(payload)
            .map_err(|error| Status::data_loss(format!("the image record cannot be read: {error}")))?;
        manifest_digest(&record.manifest_digest)?;
        Ok(record)
    }

    /// Asks for a newer grant in place of one that this node has for the image. `image`: how its registry is reached now, should the fetcher
    /// ask there.
    pub(super) async fn renew(
        &self,
        record: &ImageRecord,
        node: &str,
        grant: Signed,
        image: ResolveRequest,
        timeout: Duration,
    ) -> Result<Signed, Status> {
        let image = Some(self.sealer.resolve(image).await?);
        let request = RenewRequest { grant: Some(grant), node_key: self.node_key(), image };
        let reply = self.bus.call(request, timeout).await?;
        let renewed = reply.grant.ok_or_else(|| Status::internal("the fetcher sent no grant"))?;
        self.check_grant(record, node, &renewed)?;
        Ok(renewed)
    }

    /// Whether it is one for this image. Not whether it still counts: the clock of who gave it may be another, the answer may have taken
    /// long, and what has expired is renewed before it is used.
    fn check_grant(&self, record: &ImageRecord, node: &str, signed: &Signed) -> Result<(), Status> {
        let refuse =
            |reason: String| Status::permission_denied(format!("the grant is not to be trusted: {reason}"));
        let payload = self
            .trusted
            .verify(Domain::Grant, signed)
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
    let message = format!(
        "{reference}: it is not imported yet: {done} of {total} bytes are done; ask again in {IMPORT_RETRY:?}"
    );
    Refusal::NotImported.with(message, metadata.into(), Some(IMPORT_RETRY))
}

/// As somebody names it, who is to be told when it is none.
pub(super) fn manifest_digest(text: &str) -> Result<ManifestDigest, Status> {
    text.parse().map_err(|error: NotAManifestDigest| Refusal::Invalid.status(error.to_string()))
}

/// Whether the mesh did not answer, or had no time to, as opposed to having refused.
pub(super) fn away(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
        || Refusal::of(status) == Some(Refusal::Busy)
}
