//! What is told on a subject to whoever listens there at the time: nobody has to, and telling waits for nobody.

use std::collections::{HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::in_process::InProcess;
use crate::nats::Nats;
use crate::wire::MESSAGE_MAX;

/// Bytes that wait to be told while the server is slow or away: a few of the largest messages, hundreds of ordinary ones.
const WAITING_MAX: usize = 4 * 1024 * 1024;
/// What a message counts beside its content, so that small ones are bounded too.
const MESSAGE_COST: usize = 256;

/// What others tell, as it comes, for as long as there is a bus.
pub type ToldStream<M> = Pin<Box<dyn Stream<Item = M> + Send>>;

/// Tells messages on one subject. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Teller {
    way: Way,
}

#[derive(Clone, Debug)]
enum Way {
    InProcess(Arc<InProcess>, &'static str),
    Nats { waiting: mpsc::UnboundedSender<Waiting>, room: Arc<Semaphore> },
}

#[derive(Debug)]
struct Waiting {
    payload: Bytes,
    _room: OwnedSemaphorePermit,
}

impl Teller {
    pub(crate) fn in_process(bus: Arc<InProcess>, subject: &'static str) -> Teller {
        Teller { way: Way::InProcess(bus, subject) }
    }

    pub(crate) fn over_nats(nats: Nats, subject: &'static str) -> Teller {
        // Bounded by the room that each message takes.
        let (waiting, mut next) = mpsc::unbounded_channel::<Waiting>();
        tokio::spawn(async move {
            while let Some(message) = next.recv().await {
                nats.hand_over(subject, message.payload.clone()).await;
            }
        });
        Teller { way: Way::Nats { waiting, room: Arc::new(Semaphore::new(WAITING_MAX)) } }
    }

    /// Never waits. False: it is lost, since it is larger than a message may be, or too much waits already.
    pub fn tell(&self, message: &impl Message) -> bool {
        let length = message.encoded_len();
        if length > MESSAGE_MAX {
            return false;
        }
        match &self.way {
            Way::InProcess(bus, subject) => {
                bus.tell(subject, message.encode_to_vec().into());
                true
            }
            Way::Nats { waiting, room } => {
                let needed = u32::try_from(length + MESSAGE_COST).unwrap_or(u32::MAX);
                let Ok(room) = room.clone().try_acquire_many_owned(needed) else { return false };
                let payload = message.encode_to_vec().into();
                waiting.send(Waiting { payload, _room: room }).is_ok()
            }
        }
    }
}

/// What came over a transport; what is of another kind is passed over.
pub(crate) fn decoded<M: Message + Default>(payload: &[u8]) -> Option<M> {
    M::decode(payload)
        .inspect_err(|error| tracing::debug!(%error, "what was told on a subject is of another kind"))
        .ok()
}

/// An event, unless it names another node than the one that told it.
pub(crate) fn event(subject: &str, payload: &[u8]) -> Option<proto::Event> {
    let event: proto::Event = decoded(payload)?;
    let speaker = proto::speaker::of_subject(subject);
    match speaker.is_none_or(|speaker| speaker.node == event.node) {
        true => Some(event),
        false => {
            tracing::warn!(subject, node = event.node, "passed over an event in another's name");
            None
        }
    }
}

/// Ids that were heard lately: what is published again, since an answer was lost, is heard once.
#[derive(Debug, Default)]
pub(crate) struct Once {
    heard: HashSet<String>,
    by_age: VecDeque<String>,
}

/// More than are published again at a time.
const HEARD_MAX: usize = 1024;

impl Once {
    pub(crate) fn is_new(&mut self, id: &str) -> bool {
        if !self.heard.insert(id.to_owned()) {
            return false;
        }
        self.by_age.push_back(id.to_owned());
        if self.by_age.len() > HEARD_MAX
            && let Some(oldest) = self.by_age.pop_front()
        {
            self.heard.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_id_is_heard_once_and_few_are_remembered() {
        let mut once = Once::default();
        assert!(once.is_new("a") && !once.is_new("a"));
        assert!((0..2 * HEARD_MAX).all(|id| once.is_new(&id.to_string())));
        assert_eq!((once.heard.len(), once.by_age.len()), (HEARD_MAX, HEARD_MAX));
        assert!(once.is_new("a"));
    }
}
