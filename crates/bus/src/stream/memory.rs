//! Streams inside one process.
//!
//! One lock for each stream, held for what is done with one message or one batch, never across an await.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Status;

use super::{ConsumerConfig, Delivery, DeliveryWay, Outgoing, Published, StreamConfig};
use crate::wire::MESSAGE_MAX;

/// Ids that are remembered for their window; the oldest go first.
const IDS_MAX: usize = 65_536;
/// What a message counts beside its content.
const MESSAGE_COST: usize = 256;

/// All streams of a process, by name.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    open: Mutex<HashMap<String, Memory>>,
}

/// One stream. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Something may be there to be delivered.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    config: StreamConfig,
    messages: VecDeque<Stored>,
    bytes: u64,
    /// Of the message that was stored last.
    last: u64,
    ids: HashMap<String, u64>,
    ids_by_age: VecDeque<(Instant, String)>,
    consumers: HashMap<String, Taken>,
}

#[derive(Clone, Debug)]
struct Stored {
    sequence: u64,
    at: Instant,
    subject: String,
    headers: Vec<(String, String)>,
    payload: Bytes,
}

/// Where a consumer is.
#[derive(Debug, Default)]
struct Taken {
    /// All up to here were delivered at least once, or are not for it.
    seen: u64,
    pending: BTreeMap<u64, Pending>,
}

#[derive(Debug)]
struct Pending {
    /// When it is delivered again.
    due: Instant,
    attempt: u64,
}

#[derive(Debug)]
pub(super) struct MemoryConsumer {
    stream: Memory,
    config: ConsumerConfig,
}

#[derive(Debug)]
pub(super) struct MemoryDelivery {
    stream: Memory,
    consumer: String,
    sequence: u64,
    ack_wait: Duration,
}

impl Streams {
    pub(crate) fn open(&self, config: StreamConfig) -> Memory {
        let mut open = lock(&self.open);
        let stream = open.entry(config.name.clone()).or_insert_with(|| Memory::new(config.clone())).clone();
        stream.state().config = config;
        stream
    }

    /// The stream that keeps what is published on `subject`.
    pub(crate) fn keeping(&self, subject: &str) -> Option<Memory> {
        let open = lock(&self.open);
        let keeps = |stream: &&Memory| keeps(&stream.state().config.subjects, subject);
        open.values().find(keeps).cloned()
    }
}

impl Memory {
    fn new(config: StreamConfig) -> Memory {
        let state = State {
            config,
            messages: VecDeque::new(),
            bytes: 0,
            last: 0,
            ids: HashMap::new(),
            ids_by_age: VecDeque::new(),
            consumers: HashMap::new(),
        };
        Memory { shared: Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }) }
    }

    pub(crate) fn publish(&self, message: Outgoing) -> Result<Published, Status> {
        let published = self.state().publish(message, Instant::now())?;
        self.shared.changed.notify_waiters();
        Ok(published)
    }

    pub(super) fn consume(&self, config: ConsumerConfig) -> MemoryConsumer {
        self.state().consumers.entry(config.name.clone()).or_default();
        MemoryConsumer { stream: self.clone(), config }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }
}

impl State {
    fn publish(&mut self, message: Outgoing, now: Instant) -> Result<Published, Status> {
        let Outgoing { subject, id, headers, payload } = message;
        if !keeps(&self.config.subjects, &subject) {
            let refusal = format!("stream {} does not keep {subject}", self.config.name);
            return Err(Status::invalid_argument(refusal));
        }
        if payload.len() > MESSAGE_MAX {
            let refusal =
                format!("a message of {} bytes is too long: at most {MESSAGE_MAX} are kept", payload.len());
            return Err(Status::invalid_argument(refusal));
        }
        self.forget(now);
        if let Some(sequence) = self.ids.get(&id) {
            return Ok(Published { sequence: *sequence, duplicate: true });
        }
        self.last += 1;
        let sequence = self.last;
        if !id.is_empty() {
            self.ids.insert(id.clone(), sequence);
            self.ids_by_age.push_back((now, id));
        }
        let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let stored = Stored { sequence, at: now, subject, headers, payload };
        self.bytes += stored.cost();
        self.messages.push_back(stored);
        self.forget(now);
        Ok(Published { sequence, duplicate: false })
    }

    /// Lets go what is too old or too much.
    fn forget(&mut self, now: Instant) {
        let old = |at: Instant, age: Duration| now.saturating_duration_since(at) >= age;
        while let Some(first) = self.messages.front()
            && (self.bytes > self.config.max_bytes || old(first.at, self.config.max_age))
        {
            self.bytes -= first.cost();
            let gone = first.sequence;
            self.messages.pop_front();
            for taken in self.consumers.values_mut() {
                taken.pending.remove(&gone);
            }
        }
        while let Some((at, _)) = self.ids_by_age.front()
            && (self.ids_by_age.len() > IDS_MAX || old(*at, self.config.duplicate_window))
        {
            if let Some((_, id)) = self.ids_by_age.pop_front() {
                self.ids.remove(&id);
            }
        }
    }

    fn stored(&self, sequence: u64) -> Option<&Stored> {
        let first = self.messages.front()?.sequence;
        self.messages.get(usize::try_from(sequence.checked_sub(first)?).ok()?)
    }

    /// What is to be delivered now, up to `max`; and when something else is due.
    fn take(
        &mut self,
        config: &ConsumerConfig,
        max: usize,
        now: Instant,
    ) -> (Vec<(Stored, u64)>, Option<Instant>) {
        self.forget(now);
        let mut taken = self.consumers.remove(&config.name).unwrap_or_default();
        let mut batch = Vec::new();
        for (sequence, pending) in &mut taken.pending {
            if batch.len() < max
                && pending.due <= now
                && let Some(stored) = self.stored(*sequence)
            {
                pending.attempt += 1;
                pending.due = now + config.ack_wait;
                batch.push((stored.clone(), pending.attempt));
            }
        }
        while batch.len() < max && taken.pending.len() < config.max_in_flight && taken.seen < self.last {
            let first = self.messages.front().map_or(self.last, |first| first.sequence - 1);
            taken.seen = taken.seen.max(first) + 1;
            let Some(stored) = self.stored(taken.seen) else { break };
            if config.subjects.is_empty() || keeps(&config.subjects, &stored.subject) {
                taken.pending.insert(taken.seen, Pending { due: now + config.ack_wait, attempt: 1 });
                batch.push((stored.clone(), 1));
            }
        }
        let due = taken.pending.values().map(|pending| pending.due).min();
        self.consumers.insert(config.name.clone(), taken);
        (batch, due)
    }
}

impl Stored {
    fn cost(&self) -> u64 {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        (self.payload.len() + self.subject.len() + headers + MESSAGE_COST) as u64
    }
}

impl MemoryConsumer {
    pub(super) async fn next(&mut self, max: usize) -> Vec<Delivery> {
        loop {
            let shared = self.stream.shared.clone();
            let mut changed = std::pin::pin!(shared.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            let (batch, due) = self.stream.state().take(&self.config, max.max(1), Instant::now());
            if !batch.is_empty() {
                return batch.into_iter().map(|(stored, attempt)| self.delivery(stored, attempt)).collect();
            }
            match due {
                Some(due) => drop(tokio::time::timeout_at(due, changed).await),
                None => changed.await,
            }
        }
    }

    fn delivery(&self, stored: Stored, attempt: u64) -> Delivery {
        let Stored { sequence, subject, headers, payload, .. } = stored;
        let delivery = MemoryDelivery {
            stream: self.stream.clone(),
            consumer: self.config.name.clone(),
            sequence,
            ack_wait: self.config.ack_wait,
        };
        let message = (subject, headers, payload);
        Delivery::of(message, sequence, attempt, &self.config, DeliveryWay::Memory(delivery))
    }
}

impl MemoryDelivery {
    pub(super) fn finish(&self) {
        if let Some(taken) = self.stream.state().consumers.get_mut(&self.consumer) {
            taken.pending.remove(&self.sequence);
        }
        // There is room for another one.
        self.stream.shared.changed.notify_waiters();
    }

    pub(super) fn again_in(&self, pause: Duration) {
        self.due(Instant::now() + pause);
        self.stream.shared.changed.notify_waiters();
    }

    pub(super) fn in_progress(&self) {
        self.due(Instant::now() + self.ack_wait);
    }

    fn due(&self, due: Instant) {
        let mut state = self.stream.state();
        let pending =
            state.consumers.get_mut(&self.consumer).and_then(|taken| taken.pending.get_mut(&self.sequence));
        if let Some(pending) = pending {
            pending.due = due;
        }
    }
}

/// Whether one of the patterns is of this subject.
fn keeps(patterns: &[String], subject: &str) -> bool {
    patterns.iter().any(|pattern| {
        let (mut wanted, mut found) = (pattern.split('.'), subject.split('.'));
        loop {
            match (wanted.next(), found.next()) {
                (Some(">"), Some(_)) => return true,
                (Some("*"), Some(_)) => {}
                (Some(token), Some(other)) if token == other => {}
                (None, None) => return true,
                _ => return false,
            }
        }
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is changed under it is whole after each step that could panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(max_bytes: u64) -> StreamConfig {
        StreamConfig {
            name: "S".to_owned(),
            subjects: vec!["a.*".to_owned()],
            max_age: Duration::from_secs(60),
            max_bytes,
            duplicate_window: Duration::from_secs(10),
        }
    }

    fn message(id: usize) -> Outgoing {
        Outgoing {
            subject: "a.b".to_owned(),
            id: id.to_string(),
            payload: vec![0; 100].into(),
            ..Outgoing::default()
        }
    }

    #[test]
    fn subjects_match_as_in_nats() {
        let keeps = |pattern: &str, subject| keeps(&[pattern.to_owned()], subject);
        assert!(keeps("a.*", "a.b") && keeps("a.>", "a.b.c") && keeps("a.b", "a.b"));
        assert!(!keeps("a.*", "a.b.c") && !keeps("a.*", "a") && !keeps("a.>", "a") && !keeps("a", "a.b"));
    }

    #[test]
    fn what_is_kept_is_bounded_in_bytes_age_and_ids() {
        let (stream, now) = (Memory::new(config(10_000)), Instant::now());
        for id in 0..2 * IDS_MAX {
            stream.state().publish(message(id), now).unwrap();
        }
        let state = stream.state();
        assert!(state.bytes <= 10_000 && state.messages.len() < 100, "{}", state.messages.len());
        assert!(state.ids.len() <= IDS_MAX + 1 && state.ids_by_age.len() <= IDS_MAX + 1);
        drop(state);
        stream.state().publish(message(0), now + Duration::from_secs(60)).unwrap();
        let state = stream.state();
        assert_eq!((state.messages.len(), state.ids.len()), (1, 1));
    }

    #[test]
    fn an_id_is_stored_again_after_its_window() {
        let (stream, now) = (Memory::new(config(10_000)), Instant::now());
        let publish = |at| stream.state().publish(message(1), at).unwrap();
        assert_eq!(publish(now), Published { sequence: 1, duplicate: false });
        assert_eq!(publish(now + Duration::from_secs(9)), Published { sequence: 1, duplicate: true });
        assert_eq!(publish(now + Duration::from_secs(10)), Published { sequence: 2, duplicate: false });
    }
}
