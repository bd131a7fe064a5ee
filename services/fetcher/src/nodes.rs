//! Which nodes there are, as they say themselves. Each fetcher hears all of them, so any of them can be asked.

use std::collections::BTreeMap;
use std::future::{Ready, ready};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bus::{Answer, Answering, Bus, unix_ms};
use checks::SKEW_MAX;
use futures::StreamExt as _;
use proto::{BrokenNode, ClockReply, ClockRequest, NodesReply, NodesRequest, Presence, VersionCount};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

/// A node that was not heard of for so long has gone without a word.
const SILENT_AFTER: Duration = bus::presence::EVERY.saturating_mul(3);
/// And after so long it is none of the mesh any more.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60 * 60);
/// Nodes that are remembered, some 300 bytes each; those that come later are not listed.
const NODES_MAX: usize = 50_000;
/// What one answer lists.
const BROKEN_MAX: usize = 100;
const VERSIONS_MAX: usize = 32;
/// Of what a node says of itself, in characters.
const REASON_MAX: usize = 300;
const NAME_MAX: usize = 253;
const QUESTIONS_IN_FLIGHT: usize = 64;
/// Before nodes are listened for again.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Nodes {
    since: Instant,
    /// By project and name.
    known: Mutex<BTreeMap<(String, String), Known>>,
}

#[derive(Debug)]
struct Known {
    heard: Instant,
    version: String,
    /// Why it cannot take work.
    unready: Option<String>,
    insecure: bool,
}

impl Nodes {
    pub(crate) fn follow(bus: &Bus, tasks: &TaskTracker, shutdown: CancellationToken) -> Arc<Nodes> {
        let nodes = Arc::new(Nodes { since: Instant::now(), known: Mutex::default() });
        let (listening, bus) = (nodes.clone(), bus.clone());
        tasks.spawn(async move { shutdown.run_until_cancelled(listening.listen(bus)).await });
        nodes
    }

    pub(crate) async fn answer(self: &Arc<Self>, bus: &Bus) -> anyhow::Result<Vec<Answering>> {
        let at_most = || Answer { in_flight: QUESTIONS_IN_FLIGHT, instance: None };
        let clock = |_: ClockRequest| ready(Ok(ClockReply { now_ms: unix_ms() }));
        Ok(vec![bus.serve(self, at_most(), Nodes::list).await?, bus.answer(at_most(), clock).await?])
    }

    async fn listen(self: Arc<Self>, bus: Bus) {
        loop {
            match bus.nodes_present().await {
                Ok(mut told) => {
                    while let Some(presence) = told.next().await {
                        self.note(presence, unix_ms());
                    }
                }
                Err(error) => tracing::debug!(error = format!("{error:#}"), "nodes cannot be listened for"),
            }
            tokio::time::sleep(LISTEN_AGAIN).await;
        }
    }

    fn note(&self, presence: Presence, now_ms: u64) {
        let Presence { node, project, version, now_ms: theirs, unready, insecure } = presence;
        if node.is_empty() || node.len() > NAME_MAX || project.len() > NAME_MAX {
            return;
        }
        let off = Duration::from_millis(theirs.abs_diff(now_ms));
        let clock =
            (off > SKEW_MAX).then(|| format!("its clock differs from the fetcher's by {} s", off.as_secs()));
        let unready = Some(unready).filter(|reason| !reason.is_empty()).or(clock);
        let short = |text: String| text.chars().take(REASON_MAX).collect::<String>();
        let known = Known {
            heard: Instant::now(),
            version: version.chars().take(64).collect(),
            unready: unready.map(short),
            insecure: !insecure.is_empty(),
        };
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (project, node);
        if all.len() >= NODES_MAX && !all.contains_key(&key) {
            forget(&mut all);
            if all.len() >= NODES_MAX {
                return;
            }
        }
        all.insert(key, known);
    }

    fn list(self: Arc<Self>, _: NodesRequest) -> Ready<Result<NodesReply, Status>> {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        forget(&mut all);
        let listening = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut reply =
            NodesReply { listening_ms: listening, total: all.len() as u64, ..NodesReply::default() };
        let mut versions: BTreeMap<&str, u64> = BTreeMap::new();
        for ((project, node), known) in all.iter() {
            *versions.entry(&known.version).or_default() += 1;
            reply.insecure += u64::from(known.insecure);
            let Some(reason) = known.broken() else { continue };
            reply.broken_total += 1;
            if reply.broken.len() < BROKEN_MAX {
                let (project, node, version) = (project.clone(), node.clone(), known.version.clone());
                reply.broken.push(BrokenNode { project, node, version, reason });
            }
        }
        let versions = versions.into_iter().take(VERSIONS_MAX);
        let count = |(version, nodes): (&str, u64)| VersionCount { version: version.to_owned(), nodes };
        reply.versions = versions.map(count).collect();
        ready(Ok(reply))
    }
}

impl Known {
    fn broken(&self) -> Option<String> {
        let silent = self.heard.elapsed();
        match silent > SILENT_AFTER {
            true => Some(format!("it was not heard of for {} s", silent.as_secs())),
            false => self.unready.clone(),
        }
    }
}

fn forget(all: &mut BTreeMap<(String, String), Known>) {
    all.retain(|_, known| known.heard.elapsed() < FORGOTTEN_AFTER);
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn nodes() -> Arc<Nodes> {
        Arc::new(Nodes { since: Instant::now(), known: Mutex::default() })
    }

    fn presence(number: usize) -> Presence {
        Presence {
            node: format!("node-{number:05}"),
            version: "1".to_owned(),
            now_ms: 1,
            ..Presence::default()
        }
    }

    async fn listed(nodes: &Arc<Nodes>) -> NodesReply {
        nodes.clone().list(NodesRequest {}).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn ten_thousand_nodes_fit_one_answer_and_the_broken_ones_are_named() {
        let nodes = nodes();
        for number in 0..10_000 {
            let unready = if number % 5 == 0 { "x".repeat(5_000) } else { String::new() };
            nodes.note(Presence { unready, ..presence(number) }, 1);
        }
        let reply = listed(&nodes).await;
        assert_eq!((reply.total, reply.broken_total, reply.broken.len()), (10_000, 2_000, BROKEN_MAX));
        assert_eq!(reply.versions, [VersionCount { version: "1".to_owned(), nodes: 10_000 }]);
        assert!(reply.encoded_len() < bus::MESSAGE_MAX / 8, "{}", reply.encoded_len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_is_broken_and_later_forgotten_and_a_wrong_clock_is_told() {
        let nodes = nodes();
        nodes.note(presence(1), 1);
        nodes.note(presence(2), 10 * 60 * 1_000 + 1);
        let reply = listed(&nodes).await;
        assert_eq!((reply.total, reply.broken.len()), (2, 1));
        assert!(reply.broken[0].reason.contains("clock differs from the fetcher's by 600 s"), "{reply:?}");
        tokio::time::advance(SILENT_AFTER + Duration::from_secs(1)).await;
        nodes.note(presence(2), 1);
        let reply = listed(&nodes).await;
        assert_eq!((reply.total, &*reply.broken[0].node), (2, "node-00001"));
        assert!(reply.broken[0].reason.contains("not heard of for 181 s"), "{reply:?}");
        tokio::time::advance(FORGOTTEN_AFTER).await;
        assert_eq!(listed(&nodes).await.total, 0);
        nodes.note(Presence { node: "n".repeat(1_000), ..presence(1) }, 1);
        assert_eq!(listed(&nodes).await.total, 0, "no node is called so");
    }
}
