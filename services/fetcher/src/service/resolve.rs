//! resolve, follow, repair: an image becomes streamable.
//!
//! The registry is asked with the caller's own credential each time, also for an image that is here:
//! its answer is the permission that the grant passes on. It is an answer for one repository: what another one gave before is
//! known for this one only as far as its registry vouches for it ([`crate::import::proofs`]).

use std::sync::Arc;
use std::time::Duration;

use allowance::Class;
use names::ImageName;
use prost::Message;
use proto::resolve_reply::Answer;
use proto::{
    FollowRequest, ImportTicket, Platform, QuotaMetric, Refusal, RepairReply, RepairRequest, Resolution,
    ResolveReply, ResolveRequest, Resolved, refusal,
};
use store::ProjectStore;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::grants::{Holder, Shown, checked_key};
use super::jobs::{ImageKey, Job, JobKey, Outcome};
use super::judging::Asker;
use super::{Service, part};
use crate::attempts::Attempts;
use crate::import::error::{ImportError, source_status};
use crate::import::{Imported, Order, add_reference, unix_now};
use crate::records::SignedImage;
use crate::source::{Access, BlobPlace, Credential, Found, Source};

/// A follower is answered after this long, whatever it asked for: buses forget slow requests.
const FOLLOW_MAX: Duration = Duration::from_secs(30);
/// After a fetcher dies, its imports can be taken over by another.
const LEASE_TTL: Duration = Duration::from_secs(15);
/// Between two looks at an import that another fetcher runs.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// How long another fetcher may take: 256 GiB at 75 MB/s.
const OTHERS_IMPORT_MAX: Duration = Duration::from_secs(3600);
/// A repair is waited for inside its request.
const REPAIR_MAX: Duration = Duration::from_secs(900);

impl Service {
    pub(super) async fn resolve(self: Arc<Self>, request: ResolveRequest) -> Result<ResolveReply, Status> {
        let project = self.project(&request.project)?;
        let (node, key) = (request.node.clone(), checked_key(request.node_key.clone())?);
        let mut holder = Holder { node, key, ..Holder::default() };
        self.grants.revocations().admit_node(project.name(), &holder.node)?;
        // A part is asked for by who has the whole: what streams goes on, for as long as it may.
        let switched = self.projects.check(project.name());
        if request.layers == 0 {
            switched.clone()?;
        }
        let name = self.image_name(&request.reference)?;
        let platform = request.platform.clone().unwrap_or_default();
        let access = Access {
            credential: self.credential(&request)?.and_then(Credential::from_proto),
            plain_http: request.plain_http,
            own: false,
        };
        let place = self.place(&name);
        let granted = self.granted(&project, &place, &request).await?;
        let proven = granted.is_some();
        let (source, found) = match granted {
            Some((found, shown, until_unix)) => {
                // The registry was not asked now, so nothing begins anew.
                holder.shown = shown;
                holder.until_unix = switched.is_err().then_some(until_unix);
                (self.sources.open(&name, access).await.map_err(source_status)?, found)
            }
            None => {
                switched?;
                let (source, found) = self.find(&name, access, &platform).await?;
                holder.shown = Shown { repository: place.repository.clone(), at_unix: unix_now() };
                let asker =
                    Asker { project: project.name(), node: &request.node, said: request.asker.as_ref() };
                let judged = self.judge(&name, &found, asker).await?;
                judged.permit(&name)?;
                if judged.unasked {
                    let (image, manifest) = (name.to_string(), &found.manifest_digest);
                    self.unjudged.tell(self.bus.events(), &image, manifest, &request.node);
                }
                (source, found)
            }
        };
        let found = part::lowest(found, request.layers)?;
        let question = question(project.name(), &request);
        let repair = request.verify || self.jobs.is_broken(&image_key(&project, &found));
        let image = self.records.image(&project, &found.manifest_digest).await?;
        if let Some(image) = image.filter(|_| !repair)
            && (proven || self.is_readable(&source, &place, &image, &found).await?)
        {
            let image = self.also_named(&project, image, &name.to_string()).await?;
            return self.resolved(&project, (question, &holder), image, None).await;
        }
        let origin = ResolveRequest {
            project: project.name().to_owned(),
            reference: request.reference,
            platform: request.platform,
            plain_http: request.plain_http,
            layers: request.layers,
            ..ResolveRequest::default()
        };
        let image = name.to_string();
        let order = Order { image, project, source, place, proven, found, origin, repair };
        let job = self.begin(order, Class::Demand);
        let ticket = self.jobs.issue(job.clone(), question, holder)?;
        Ok(self.importing(ticket, &job, job.wait_for_news(0, Duration::ZERO).await))
    }

    pub(super) async fn follow(self: Arc<Self>, request: FollowRequest) -> Result<ResolveReply, Status> {
        let ticket = self
            .jobs
            .ticket(&request.ticket)
            // Also said after a restart: asking again is the way on.
            .ok_or_else(|| Status::unavailable("this fetcher knows no such ticket; resolve again"))?;
        let question = &ticket.question;
        if refusal::project(&request.project)?.as_str() != question.project || request.node != question.node {
            return Err(Refusal::Denied.status("the ticket is of another node's question"));
        }
        let patience = Duration::from_millis(request.wait_ms.into()).min(FOLLOW_MAX);
        let progress = ticket.job.wait_for_news(request.seen_revision, patience).await;
        match ticket.job.outcome() {
            None => Ok(self.importing(request.ticket, &ticket.job, progress)),
            Some(Err(status)) => Err(status),
            Some(Ok(Outcome { image, summary, .. })) => {
                let project = self.project(&ticket.question.project)?;
                // Of a part of what streamed when the project was switched off the end is known.
                if ticket.holder.until_unix.is_none() {
                    self.projects.check(project.name())?;
                }
                self.resolved(&project, (ticket.question, &ticket.holder), image, summary).await
            }
        }
    }

    /// Repairs an image from where it came from, as far as that needs no caller's credential.
    pub(super) async fn repair(self: Arc<Self>, request: RepairRequest) -> Result<RepairReply, Status> {
        let project = self.project(&request.project)?;
        let manifest = request.manifest_digest;
        self.jobs.mark_broken(&(project.name().to_owned(), manifest.clone()));
        let source = project.source(&manifest).await?;
        let origin = ResolveRequest::decode(source).map_err(|error| {
            Status::data_loss(format!("{manifest}: where it came from is not known: {error}"))
        })?;
        let name = self.image_name(&origin.reference)?;
        let access = Access { plain_http: origin.plain_http, ..Access::own() };
        let platform = origin.platform.clone().unwrap_or_default();
        let (source, found) = self.find(&name, access, &platform).await?;
        let found = part::lowest(found, origin.layers)?;
        if found.manifest_digest != manifest {
            let reason =
                format!("{name}: it names {} now; only {manifest} can repair", found.manifest_digest);
            return Err(Status::failed_precondition(reason));
        }
        let (image, place, of) = (name.to_string(), self.place(&name), project.clone());
        let order = Order { image, project: of, source, place, proven: false, found, origin, repair: true };
        let job = self.begin(order, Class::Background);
        let outcome = tokio::time::timeout(REPAIR_MAX, job.wait()).await;
        let outcome =
            outcome.map_err(|_| Status::deadline_exceeded(format!("{name}: the repair goes on")))??;
        if outcome.restored > 0 {
            self.recompress_repaired(&project, &manifest).await;
        }
        Ok(RepairReply { restored: outcome.restored })
    }

    pub(super) async fn find(
        &self,
        name: &ImageName,
        access: Access,
        platform: &Platform,
    ) -> Result<(Source, Found), Status> {
        let source = self.sources.open(name, access).await.map_err(source_status)?;
        let found = source.manifest(platform).await.map_err(source_status)?;
        Ok((source, found))
    }

    /// Spends an import: by who is about to run it, so that of several who asked for it one pays. What restores the store is free: nobody
    /// asked for more.
    async fn pay(&self, order: &Order, class: Class) -> Result<(), Status> {
        if order.repair {
            return Ok(());
        }
        self.allowances.of(order.project.name(), QuotaMetric::Imports).take(1, class).await
    }

    /// Whether an image that is here already may be read by a caller whom the registry let read its manifest in `place`. If not, it
    /// is imported once more, from there.
    pub(super) async fn is_readable(
        &self,
        source: &Source,
        place: &BlobPlace,
        image: &SignedImage,
        found: &Found,
    ) -> Result<bool, Status> {
        let references = &image.record.references;
        if place.is_on_disk() || references.iter().any(|reference| place.holds(reference)) {
            return Ok(true);
        }
        // A part of an image is named by what its layers unpack to, which says nothing of the blobs that another image claims it of.
        let stored = image.record.layers.iter().map(|layer| &layer.digest);
        let same = stored.eq(found.layers.iter().map(|layer| &layer.digest));
        if !same || !references.iter().any(|reference| place.is_registry_of(reference)) {
            return Ok(false);
        }
        self.importer.proofs.are_shown(source, place, &found.layers).await.map_err(source_status)
    }

    /// The job that imports `order`; begins it when there is none, and pays for it in `class`.
    pub(super) fn begin(self: &Arc<Self>, order: Order, class: Class) -> Arc<Job> {
        let key = job_key(&order);
        let (job, new) = self.jobs.join(&key, order.repair);
        if new {
            let (service, job) = (self.clone(), job.clone());
            self.tasks.spawn(async move {
                let outcome = service.run(&order, &job, class).await;
                if let Err(status) = &outcome {
                    tracing::warn!(
                        image = order.image,
                        manifest = job.manifest,
                        error = status.message(),
                        "import failed"
                    );
                    metrics::counter!("sluice_fetcher_import_failures_total").increment(1);
                }
                service.jobs.finish(&key, &job, outcome);
            });
        }
        job
    }

    /// Imports, unless another fetcher of the mesh does; then waits for it, and takes over if it dies.
    async fn run(&self, order: &Order, job: &Job, class: Class) -> Result<Outcome, Status> {
        let name = format!("import.{}.{}", order.project.name(), job.manifest);
        let begun = tokio::time::Instant::now();
        loop {
            if let Some(lease) = self.bus.lease(&name, LEASE_TTL).await? {
                // Whoever had it until now may have ended well.
                if let Some(outcome) = self.brought_by_another(order, job).await? {
                    lease.release().await;
                    return Ok(outcome);
                }
                let attempt = async {
                    self.pay(order, class).await?;
                    self.attempt(order, job, lease.lost()).await
                };
                let outcome = attempt.await;
                lease.release().await;
                let outcome = outcome?;
                if !order.repair {
                    let seeding = self.seed_profile(&order.project, &outcome.image.record);
                    let _ = self.shutdown.run_until_cancelled(seeding).await;
                }
                return Ok(Outcome {
                    image: outcome.image,
                    summary: Some(outcome.summary),
                    restored: outcome.restored,
                });
            }
            let pause = tokio::time::sleep(LOOK_PAUSE);
            if self.shutdown.run_until_cancelled(pause).await.is_none() {
                return Err(ImportError::Stopped { image: order.image.clone() }.into());
            }
            if let Some(outcome) = self.brought_by_another(order, job).await? {
                return Ok(outcome);
            }
            if begun.elapsed() > OTHERS_IMPORT_MAX {
                let reason = format!("{}: another fetcher imports it for too long", order.image);
                return Err(Status::deadline_exceeded(reason));
            }
        }
    }

    /// What another fetcher imported meanwhile; from elsewhere, it says nothing of what this one may read.
    async fn brought_by_another(&self, order: &Order, job: &Job) -> Result<Option<Outcome>, Status> {
        let of_here = |image: &SignedImage| {
            order.proven || image.record.references.iter().any(|reference| order.place.holds(reference))
        };
        if order.repair {
            return Ok(None);
        }
        let Some(image) = self.records.image(&order.project, &job.manifest).await?.filter(of_here) else {
            return Ok(None);
        };
        let image = self.also_named(&order.project, image, &order.image).await?;
        Ok(Some(Outcome { image, summary: None, restored: 0 }))
    }

    /// Imports, and says so where all fetchers see it: of what ends without an answer they die no more than twice.
    async fn attempt(&self, order: &Order, job: &Job, lost: CancellationToken) -> Result<Imported, Status> {
        let refused_for = self.refused_after_deaths;
        let store_error = |cause| ImportError::Store { image: order.image.clone(), cause };
        let attempts =
            Attempts::read(&order.project, &job.manifest, refused_for).await.map_err(store_error)?;
        attempts
            .check(refused_for)
            .map_err(|refused| Status::failed_precondition(format!("{}: {refused}", order.image)))?;
        let stopped = async {
            tokio::select! {
                () = lost.cancelled() => Status::unavailable(format!("{}: the import's lease was lost", order.image)),
                () = self.shutdown.cancelled() => ImportError::Stopped { image: order.image.clone() }.into(),
            }
        };
        tokio::pin!(stopped);
        // Who waits for a turn is not to blame for what happens meanwhile.
        let turn = tokio::select! {
            turn = self.importer.turn(order, attempts.are_suspicious(), &job.progress) => turn?,
            status = &mut stopped => return Err(status),
        };
        let attempt = attempts.begin(&self.instance).await.map_err(store_error)?;
        tokio::select! {
            imported = self.importer.import(order, &job.progress, turn) => {
                attempt.answered().await;
                Ok(imported?)
            }
            status = stopped => {
                attempt.withdrawn().await;
                Err(status)
            }
        }
    }

    /// Notes that an image has one more name.
    pub(super) async fn also_named(
        &self,
        project: &ProjectStore,
        image: SignedImage,
        name: &str,
    ) -> Result<SignedImage, Status> {
        let mut record = image.record.clone();
        match add_reference(&mut record.references, name) {
            true => Ok(self.records.put_image(project, record).await?),
            false => Ok(image),
        }
    }

    async fn resolved(
        self: &Arc<Self>,
        project: &ProjectStore,
        (question, holder): (Resolution, &Holder),
        image: SignedImage,
        imported: Option<proto::ImportSummary>,
    ) -> Result<ResolveReply, Status> {
        let SignedImage { record, signed } = image;
        let resolved = Resolved {
            record: Some(signed),
            grant: Some(self.grants.give(holder, &record)?),
            profile: self.profile(project, &record.manifest_digest).await,
            imported,
            resolution: Some(self.grants.vouch(question, &record)),
        };
        Ok(ResolveReply { answer: Some(Answer::Resolved(resolved)) })
    }

    fn importing(&self, ticket: String, job: &Job, progress: proto::ImportProgress) -> ResolveReply {
        let ticket = ImportTicket {
            ticket,
            instance: self.instance.to_string(),
            manifest_digest: job.manifest.clone(),
            progress: Some(progress),
        };
        ResolveReply { answer: Some(Answer::Importing(ticket)) }
    }
}

fn image_key(project: &ProjectStore, found: &Found) -> ImageKey {
    (project.name().to_owned(), found.manifest_digest.clone())
}

fn job_key(order: &Order) -> JobKey {
    let image = image_key(&order.project, &order.found);
    JobKey { image, place: order.place.clone(), proven: order.proven }
}

/// What an answer has to repeat, so that it is one to this question.
fn question(project: &str, request: &ResolveRequest) -> Resolution {
    Resolution {
        project: project.to_owned(),
        reference: request.reference.clone(),
        platform: request.platform.clone(),
        layers: request.layers,
        node: request.node.clone(),
        nonce: request.nonce.clone(),
        manifest_digest: String::new(),
    }
}
