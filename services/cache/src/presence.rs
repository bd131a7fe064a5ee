//! Answers locate(): where content is served, by this replica and by the others.
//!
//! Each replica asks all of them every few seconds who is there, so any one can name all to a node.
//! One that has not been heard of for a while is no longer named.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bus::{Answer, Answering, Bus};
use proto::{LocateReply, LocateRequest, PresentRequest};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// An answer is a copy of a few strings: many can be given at a time.
const ANSWERS_MAX: usize = 256;
/// How often the replicas are asked who is there, and how long they have to answer.
const ROUND: Duration = Duration::from_secs(3);
const ROUND_WAIT: Duration = Duration::from_millis(500);
/// A replica is named until it has missed this many rounds: nodes turn to the next one by themselves.
const MISSED_MAX: u32 = 3;

/// This replica as others see it; they stop seeing it at [`Presence::end`].
#[derive(Debug)]
pub(crate) struct Presence {
    locating: Answering,
    present: Answering,
}

/// The replicas that were heard of, and when.
#[derive(Debug)]
struct Replicas {
    own: String,
    heard: Mutex<BTreeMap<String, Instant>>,
}

impl Presence {
    pub(crate) async fn announce(
        bus: Bus,
        endpoint: String,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Presence> {
        let answer = Answer { in_flight: ANSWERS_MAX, instance: None };
        let present = bus
            .answer(answer.clone(), {
                let endpoints = vec![endpoint.clone()];
                move |_: PresentRequest| std::future::ready(Ok(LocateReply { endpoints: endpoints.clone() }))
            })
            .await?;
        let replicas = Arc::new(Replicas { own: endpoint, heard: Mutex::default() });
        let locating = bus
            .answer(answer, {
                let replicas = replicas.clone();
                move |_: LocateRequest| std::future::ready(Ok(LocateReply { endpoints: replicas.named() }))
            })
            .await?;
        tasks.spawn(async move {
            shutdown.run_until_cancelled(listen(&bus, &replicas)).await;
        });
        Ok(Presence { locating, present })
    }

    pub(crate) async fn end(self) {
        self.present.stop().await;
        self.locating.stop().await;
    }
}

async fn listen(bus: &Bus, replicas: &Replicas) {
    loop {
        match bus.gather(PresentRequest {}, ROUND_WAIT).await {
            Ok(replies) => replicas.hear(replies.into_iter().flat_map(|reply| reply.endpoints)),
            Err(status) => tracing::debug!(error = status.message(), "asking for other replicas failed"),
        }
        tokio::time::sleep(ROUND).await;
    }
}

impl Replicas {
    fn hear(&self, endpoints: impl Iterator<Item = String>) {
        let now = Instant::now();
        let mut heard = self.heard();
        heard.extend(endpoints.map(|endpoint| (endpoint, now)));
        heard.retain(|_, last| now.duration_since(*last) < (ROUND + ROUND_WAIT) * MISSED_MAX);
    }

    /// Sorted, this replica among them.
    fn named(&self) -> Vec<String> {
        let mut endpoints: Vec<String> = self.heard().keys().cloned().collect();
        if let Err(place) = endpoints.binary_search(&self.own) {
            endpoints.insert(place, self.own.clone());
        }
        endpoints
    }

    fn heard(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_replica_is_named_while_it_is_heard_of() {
        let replicas = Replicas { own: "b".to_owned(), heard: Mutex::default() };
        let hear = |names: &[&str]| replicas.hear(names.iter().map(|name| (*name).to_owned()));
        assert_eq!(replicas.named(), ["b"]);
        hear(&["c", "a", "b"]);
        assert_eq!(replicas.named(), ["a", "b", "c"]);
        tokio::time::advance(ROUND * 2).await;
        hear(&["a"]);
        assert_eq!(replicas.named(), ["a", "b", "c"]);
        tokio::time::advance(ROUND * 2).await;
        hear(&[]);
        assert_eq!(replicas.named(), ["a", "b"]);
    }
}
