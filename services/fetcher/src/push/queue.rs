//! What was pushed and waits for its import: each image once, so many at most, so many at a time.
//!
//! What cannot be had at this moment is tried again a few times; then it is left to the first pull, as if nobody had told of it. What
//! waits is lost with the process: the registry was answered when it was taken.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::Refusal;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{Pushed, Registry};
use crate::service::{Service, Taken};

/// Between two tries.
const PAUSES: [Duration; 3] = [Duration::from_secs(2), Duration::from_secs(15), Duration::from_secs(60)];
/// A quota that is renewed within this time is waited for.
const QUOTA_WAIT_MAX: Duration = Duration::from_secs(120);
/// What became of pushed images, by registry and outcome.
const IMPORTS: &str = "sluice_fetcher_push_imports_total";
const WAITING: &str = "sluice_fetcher_push_waiting";
const NOT_ELIGIBLE: &str = "not-eligible";

/// What was done with one image that was told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    New,
    /// It waits already, or is being imported.
    Known,
    Full,
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    service: Arc<Service>,
    places: Arc<Semaphore>,
    turns: Semaphore,
    known: Mutex<HashSet<(String, Pushed)>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// One image in the queue; gone when dropped.
struct Entry {
    shared: Arc<Shared>,
    key: (String, Pushed),
    _place: OwnedSemaphorePermit,
}

impl Queue {
    pub(super) fn new(
        service: Arc<Service>,
        at_once: usize,
        length: usize,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> Queue {
        let (places, turns) = (Arc::new(Semaphore::new(length)), Semaphore::new(at_once));
        let (known, tasks) = (Mutex::default(), tasks.clone());
        Queue { shared: Arc::new(Shared { service, places, turns, known, tasks, shutdown }) }
    }

    pub(super) fn enter(&self, registry: &Arc<Registry>, pushed: Pushed) -> Entered {
        let key = (registry.name.clone(), pushed);
        let place = {
            let mut known = self.shared.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.contains(&key) {
                return Entered::Known;
            }
            let Ok(place) = self.shared.places.clone().try_acquire_owned() else { return Entered::Full };
            known.insert(key.clone());
            place
        };
        metrics::gauge!(WAITING).increment(1.0);
        let entry = Entry { shared: self.shared.clone(), key, _place: place };
        let registry = registry.clone();
        self.shared.tasks.spawn(async move {
            let shutdown = entry.shared.shutdown.clone();
            let _ = shutdown.run_until_cancelled(entry.import(&registry)).await;
        });
        Entered::New
    }
}

impl Entry {
    async fn import(&self, registry: &Registry) {
        let (pushed, told) = (&self.key.1, Instant::now());
        for attempt in 0.. {
            let outcome = {
                // Closed never: an error would be one of ours.
                let Ok(_turn) = self.shared.turns.acquire().await else { return };
                self.shared.service.import_pushed(registry, pushed).await
            };
            match outcome {
                Err(status) if let Some(pause) = pause(&status, attempt) => sleep(pause).await,
                outcome => return self.conclude(registry, outcome, told.elapsed()),
            }
        }
    }

    fn conclude(&self, registry: &Registry, outcome: Result<Taken, Status>, after: Duration) {
        let Pushed { repository, digest, tag } = &self.key.1;
        let image = format!("{}/{repository}", registry.host);
        match outcome {
            Ok(taken) => {
                count(&registry.name, taken.code());
                tracing::info!(image, tag, %digest, outcome = taken.code(), ?after, "an image was pushed");
            }
            Err(status) => {
                let (outcome, error) = (outcome_of(&status), status.message());
                count(&registry.name, outcome);
                // With each image come others that are none for here: of other platforms, signatures, charts.
                match outcome {
                    NOT_ELIGIBLE => {
                        tracing::info!(image, tag, %digest, error, "what was pushed cannot stream")
                    }
                    _ => {
                        tracing::warn!(image, tag, %digest, outcome, error, "a pushed image waits for its first pull")
                    }
                }
            }
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.shared.known.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        metrics::gauge!(WAITING).decrement(1.0);
    }
}

/// Until it is tried again; none: it is not.
fn pause(status: &Status, attempt: usize) -> Option<Duration> {
    let pause = PAUSES.get(attempt).copied()?;
    match Refusal::of(status) {
        Some(Refusal::Busy | Refusal::Unreachable | Refusal::NoRoom) => Some(pause),
        Some(Refusal::Quota) => {
            let renewed = status.get_details_retry_info().and_then(|info| info.retry_delay)?;
            (renewed <= QUOTA_WAIT_MAX).then(|| renewed.max(pause))
        }
        // Another replica of the registry may not have it yet.
        None if status.code() == Code::NotFound => Some(pause),
        _ => None,
    }
}

fn outcome_of(status: &Status) -> &'static str {
    match Refusal::of(status) {
        Some(Refusal::Quota) => "quota",
        Some(Refusal::Denied) => "denied",
        Some(Refusal::Invalid) => NOT_ELIGIBLE,
        _ => "failed",
    }
}

fn count(registry: &str, outcome: &'static str) {
    metrics::counter!(IMPORTS, "registry" => registry.to_owned(), "outcome" => outcome).increment(1);
}

impl Taken {
    fn code(self) -> &'static str {
        match self {
            Taken::Imported => "imported",
            Taken::Here => "here",
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::refusal::Exhausted;

    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_and_the_rest_is_not() {
        let quota = |seconds| {
            let retry = Duration::from_secs(seconds);
            Refusal::quota(&Exhausted { project: "p", metric: "imports", limit: "l", value: 1, retry })
        };
        for (status, again) in [
            (Status::unavailable("the registry is away"), true),
            (Refusal::Busy.status("much to do"), true),
            (Status::not_found("not there yet"), true),
            (quota(60), true),
            (quota(3_600), false),
            (Refusal::Denied.status("the project is switched off"), false),
            (Status::unauthenticated("no credential"), false),
            (Refusal::Invalid.status("encrypted"), false),
            (Status::data_loss("another digest"), false),
        ] {
            assert_eq!(pause(&status, 0).is_some(), again, "{status}");
            assert_eq!(pause(&status, PAUSES.len()), None);
        }
        assert_eq!(pause(&quota(60), 0), Some(Duration::from_secs(60)));
    }
}
