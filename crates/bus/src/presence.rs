//! Nodes say that they are there. Services are asked ([`Bus::introduce`]); of nodes there may be ten thousand, and no answer could hold
//! them all.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use proto::subjects::PRESENCE;
use proto::{Presence, speaker};
use tokio::time::{Instant, sleep};

use crate::{Bus, Introduction, ToldStream, Transport, told, unix_ms};

/// How often each node says so; of ten thousand nodes a fetcher hears 170 a second.
pub const EVERY: Duration = Duration::from_secs(60);
/// Whether it is ready is looked at as often; a change is told at once, unless one was told just now.
const LOOK: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_secs(10);

impl Bus {
    /// Says that this node is there, for as long as the future is polled.
    pub async fn be_present(&self, node: &str, about: Introduction) {
        let teller = self.teller(PRESENCE);
        // Nodes that start together do not go on together.
        let every = EVERY.mul_f64(rand::random_range(0.75..1.0));
        loop {
            let ready = (about.ready)();
            teller.tell(&Presence {
                node: node.to_owned(),
                version: about.version.to_owned(),
                now_ms: unix_ms(),
                unready: ready.clone().err().unwrap_or_default(),
                insecure: about.insecure.clone(),
                ..Presence::default()
            });
            let told = Instant::now();
            loop {
                sleep(LOOK).await;
                let changed = (about.ready)().is_ok() != ready.is_ok();
                if told.elapsed() >= if changed { PAUSE } else { every } {
                    break;
                }
            }
        }
    }

    /// What nodes say of themselves, from when this returns; in another's name they say nothing.
    pub async fn nodes_present(&self) -> anyhow::Result<ToldStream<Presence>> {
        let heard = match &self.transport {
            Transport::InProcess(_) => self.listen_to::<Presence>(PRESENCE).await?,
            Transport::Nats(nats) => {
                let own = nats.subscribe(PRESENCE.to_owned()).await?;
                let proven = nats.subscribe(speaker::subject(PRESENCE, "*", "*")).await?;
                let decoded = |message: async_nats::Message| {
                    std::future::ready(spoken(&message.subject, &message.payload))
                };
                stream::select(own, proven).filter_map(decoded).boxed()
            }
        };
        Ok(heard)
    }
}

/// A message, unless it names another node than the one that told it; with the project that the connection proves.
fn spoken(subject: &str, payload: &[u8]) -> Option<Presence> {
    let presence: Presence = told::decoded(payload)?;
    match speaker::of_subject(subject) {
        None => Some(presence),
        Some(speaker) if speaker.node == presence.node => {
            Some(Presence { project: speaker.project, ..presence })
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_node_says_that_it_is_there_and_no_other() {
        let presence = Presence { node: "n1".to_owned(), ..Presence::default() }.encode_to_vec();
        let proven = spoken(&speaker::subject(PRESENCE, "team", "n1"), &presence).unwrap();
        assert_eq!((proven.node.as_str(), proven.project.as_str()), ("n1", "team"));
        assert!(spoken(&speaker::subject(PRESENCE, "default", "n2"), &presence).is_none());
        assert!(spoken(PRESENCE, &presence).is_some(), "of a mesh without keys");
        assert!(spoken(PRESENCE, b"\xff").is_none());
    }
}
