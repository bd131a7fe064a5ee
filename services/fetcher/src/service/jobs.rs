//! Imports that run here, and the tickets by which callers follow them.
//!
//! One job per project, manifest and place: a caller shares what another one began only where the registry's answer to one is the
//! answer to both. A ticket remembers the question, for the grant at the end is the caller's own. The table is locked only to look up or change an entry.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proto::{ImportProgress, ImportSummary, Refusal, Resolution};
use tokio::sync::watch;
use tonic::Status;

use super::grants::Holder;
use crate::import::Progress;
use crate::records::SignedImage;
use crate::source::BlobPlace;

/// Tickets at the same time; more callers than any mesh has nodes.
const TICKETS_MAX: usize = 10_000;
/// How long an outcome is kept for a caller that went away and comes back.
const OUTCOME_KEPT: Duration = Duration::from_secs(600);
/// Images that wait for a repair; more damage than this has one cause, and an operator.
const BROKEN_MAX: usize = 10_000;
/// Progress is told no more often: a bar needs no more, and each telling is a message.
const TELL_PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
pub(super) struct Jobs {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    running: HashMap<JobKey, Arc<Job>>,
    tickets: HashMap<String, Ticket>,
    broken: HashSet<ImageKey>,
}

/// Project and manifest digest.
pub(super) type ImageKey = (String, String);

/// What runs once. A part of an image that somebody was granted stands apart from what a registry was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct JobKey {
    pub(super) image: ImageKey,
    pub(super) place: BlobPlace,
    pub(super) proven: bool,
}

/// One import, running or finished.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) manifest: String,
    pub(super) repair: bool,
    pub(super) progress: Progress,
    outcome: watch::Sender<Option<Result<Outcome, Status>>>,
}

#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) image: SignedImage,
    /// None when somebody else in the mesh imported it.
    pub(super) summary: Option<ImportSummary>,
    pub(super) restored: u64,
}

/// A caller's claim on a job's outcome.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    pub(super) job: Arc<Job>,
    /// The question, without its answer.
    pub(super) question: Resolution,
    pub(super) holder: Holder,
    issued: Instant,
}

impl Jobs {
    /// The job for `key`: the one that runs, or a new one, which the caller has to run. A repair is
    /// not satisfied by an import that repairs nothing.
    pub(super) fn join(&self, key: &JobKey, repair: bool) -> (Arc<Job>, bool) {
        let mut table = self.table();
        if let Some(job) = table.running.get(key).filter(|job| job.repair || !repair) {
            return (job.clone(), false);
        }
        let job = Arc::new(Job {
            manifest: key.image.1.clone(),
            repair,
            progress: Progress::new(),
            outcome: watch::Sender::new(None),
        });
        table.running.insert(key.clone(), job.clone());
        (job, true)
    }

    /// Tells everyone how `job` ended; a later request begins anew.
    pub(super) fn finish(&self, key: &JobKey, job: &Arc<Job>, outcome: Result<Outcome, Status>) {
        let mut table = self.table();
        if table.running.get(key).is_some_and(|running| Arc::ptr_eq(running, job)) {
            table.running.remove(key);
        }
        if job.repair && outcome.is_ok() {
            table.broken.remove(&key.image);
        }
        job.outcome.send_replace(Some(outcome));
    }

    /// Gives out a ticket for `job`.
    pub(super) fn issue(
        &self,
        job: Arc<Job>,
        question: Resolution,
        holder: Holder,
    ) -> Result<String, Status> {
        let mut table = self.table();
        let stale =
            |ticket: &Ticket| ticket.issued.elapsed() > OUTCOME_KEPT && ticket.job.outcome().is_some();
        table.tickets.retain(|_, ticket| !stale(ticket));
        if table.tickets.len() >= TICKETS_MAX {
            return Err(Refusal::Busy.status(format!("{TICKETS_MAX} imports are being followed")));
        }
        let name = format!("{:032x}", rand::random::<u128>());
        table.tickets.insert(name.clone(), Ticket { job, question, holder, issued: Instant::now() });
        Ok(name)
    }

    pub(super) fn ticket(&self, name: &str) -> Option<Ticket> {
        self.table().tickets.get(name).cloned()
    }

    /// Notes that an image is damaged: until it is repaired, whoever resolves it repairs it.
    pub(super) fn mark_broken(&self, key: &ImageKey) {
        let mut table = self.table();
        if table.broken.len() < BROKEN_MAX {
            table.broken.insert(key.clone());
        }
    }

    pub(super) fn is_broken(&self, key: &ImageKey) -> bool {
        self.table().broken.contains(key)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing can panic while the table is locked, so a poisoned one is whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job {
    pub(super) fn outcome(&self) -> Option<Result<Outcome, Status>> {
        self.outcome.borrow().clone()
    }

    /// Waits for the end.
    pub(super) async fn wait(&self) -> Result<Outcome, Status> {
        let mut outcome = self.outcome.subscribe();
        let ended = outcome.wait_for(Option::is_some).await.map_err(|_| gone())?;
        ended.clone().unwrap_or_else(|| Err(gone()))
    }

    /// Waits for the end, or for progress beyond `seen`, or for `patience` to end.
    pub(super) async fn wait_for_news(&self, seen: u64, patience: Duration) -> ImportProgress {
        let mut progress = self.progress.subscribe();
        let mut outcome = self.outcome.subscribe();
        let news = async {
            // The sender lives in the job, so neither wait can fail.
            let _ = progress.wait_for(|progress| progress.revision > seen).await;
            tokio::time::sleep(TELL_PAUSE).await;
        };
        tokio::select! {
            () = news => {}
            _ = outcome.wait_for(Option::is_some) => {}
            () = tokio::time::sleep(patience) => {}
        }
        self.progress.subscribe().borrow().clone()
    }
}

fn gone() -> Status {
    Status::unavailable("the import went away")
}
