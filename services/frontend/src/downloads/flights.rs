//! Which chunks are on their way, for whom, and how far away. Pure.
//!
//! A chunk is in flight once, whoever wants it. A read that needs a chunk which a lower class already
//! asked for joins that flight when it lands soon: when not too many bytes are due before it. Otherwise
//! it is asked again as demand and the copy of the lower class, when it comes, is not needed any more.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use image::Digest;
use image::record::ChunkRef;

use super::scheduler::Waiter;
use crate::content::Class;

/// What may still be due before a flight of the background that a read joins. To ask again costs a round trip: at the 20 ms
/// and 200 Mbit/s that the design counts with, that is the time of 500 KB.
const JOIN_BACKGROUND: u64 = 512 * 1024;
/// The same of a prefetch, which the start reads in about this order: what is due before is needed too, and to ask again holds
/// it up for a round trip, sends this chunk twice, and leaves the next read as far ahead of what comes.
const JOIN_PREFETCH: u64 = 2 * 1024 * 1024;
/// How long a read waits for a flight that it joined before it asks as demand all the same: that one's replica
/// may be stuck, and its class has little patience.
const JOIN_FOR: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Flights {
    flights: HashMap<Digest, Flight>,
    demand: Lane,
    prefetch: Lane,
    background: Lane,
}

/// One chunk on its way.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) class: Class,
    pub(super) chunk: ChunkRef,
    pub(super) asked: Instant,
    pub(super) waiters: Vec<Waiter>,
    /// When the first read joined it.
    joined: Option<Instant>,
    /// The lane's `asked_bytes` when this was asked, itself included.
    due_after: u64,
}

/// What one class has asked and got, in stored bytes.
#[derive(Debug, Default)]
struct Lane {
    asked_bytes: u64,
    ended_bytes: u64,
    /// Requests for chunks that have not ended.
    chunks: usize,
    /// Flights of this lane with waiters.
    joined: usize,
}

/// What to do with a read's chunk.
#[derive(Debug)]
pub(super) enum Joined {
    /// It waits for a flight that is under way.
    Waits,
    /// It must be asked as demand; the waiter comes back.
    Ask(Waiter),
}

impl Flights {
    pub(super) fn contains(&self, chunk: &Digest) -> bool {
        self.flights.contains_key(chunk)
    }

    /// Lets a read wait for a flight that lands soon.
    pub(super) fn join(&mut self, chunk: &Digest, waiter: Waiter, now: Instant) -> Joined {
        let Some(flight) = self.flights.get_mut(chunk) else { return Joined::Ask(waiter) };
        let lane = match flight.class {
            Class::Demand => None,
            Class::Prefetch => Some((&mut self.prefetch, JOIN_PREFETCH)),
            Class::Background => Some((&mut self.background, JOIN_BACKGROUND)),
        };
        if let Some((lane, most_before)) = lane {
            let before = flight.due_after.saturating_sub(u64::from(flight.chunk.stored_len));
            if flight.waiters.is_empty() && before.saturating_sub(lane.ended_bytes) > most_before {
                return Joined::Ask(waiter);
            }
            lane.joined += usize::from(flight.waiters.is_empty());
        }
        flight.waiters.push(waiter);
        flight.joined.get_or_insert(now);
        Joined::Waits
    }

    /// Notes that a chunk is asked now. A flight of a lower class becomes this one.
    pub(super) fn ask(&mut self, class: Class, chunk: ChunkRef, now: Instant) {
        let lane = self.lane(class);
        lane.asked_bytes += u64::from(chunk.stored_len);
        lane.chunks += 1;
        let due_after = lane.asked_bytes;
        let earlier = self.flights.remove(&chunk.digest);
        let waiters = earlier.map_or_else(Vec::new, |flight| {
            self.left(&flight);
            flight.waiters
        });
        let joined = usize::from(!waiters.is_empty());
        self.lane(class).joined += joined;
        let flight = Flight { class, chunk, asked: now, waiters, joined: None, due_after };
        self.flights.insert(chunk.digest, flight);
    }

    /// Adds a waiter to a flight that was just asked for it.
    pub(super) fn wait(&mut self, chunk: &Digest, waiter: Waiter) {
        let Some(flight) = self.flights.get_mut(chunk) else { return };
        let first = flight.waiters.is_empty();
        flight.waiters.push(waiter);
        let class = flight.class;
        self.lane(class).joined += usize::from(first);
    }

    /// Flights of lower classes that a read has waited for too long, and when to look again.
    pub(super) fn overdue(&self, now: Instant) -> (Vec<ChunkRef>, Option<Instant>) {
        if self.prefetch.joined + self.background.joined == 0 {
            return (Vec::new(), None);
        }
        let joined = self.flights.values().filter(|flight| flight.class != Class::Demand);
        let due = joined.filter_map(|flight| Some((flight.chunk, flight.joined? + JOIN_FOR)));
        let (overdue, waiting): (Vec<_>, Vec<_>) = due.partition(|(_, due)| *due <= now);
        let next = waiting.into_iter().map(|(_, due)| due).min();
        (overdue.into_iter().map(|(chunk, _)| chunk).collect(), next)
    }

    /// A request of `class` for the chunk ended, however.
    pub(super) fn ended(&mut self, class: Class, chunk: &ChunkRef) {
        let lane = self.lane(class);
        lane.ended_bytes += u64::from(chunk.stored_len);
        lane.chunks = lane.chunks.saturating_sub(1);
    }

    /// The chunk is here: whoever waits for it gets it.
    pub(super) fn land(&mut self, chunk: &Digest) -> Option<Flight> {
        let flight = self.flights.remove(chunk)?;
        self.left(&flight);
        Some(flight)
    }

    /// The request of `class` failed. Gives the flight back unless another class still flies it.
    pub(super) fn fail(&mut self, class: Class, chunk: &Digest) -> Option<Flight> {
        let flies = self.flights.get(chunk).is_some_and(|flight| flight.class == class);
        if flies { self.land(chunk) } else { None }
    }

    /// Stored bytes of `class` that were asked and have not ended.
    pub(super) fn outstanding_bytes(&self, class: Class) -> u64 {
        let lane = match class {
            Class::Demand => &self.demand,
            Class::Prefetch => &self.prefetch,
            Class::Background => &self.background,
        };
        lane.asked_bytes.saturating_sub(lane.ended_bytes)
    }

    pub(super) fn outstanding(&self, class: Class) -> usize {
        match class {
            Class::Demand => self.demand.chunks,
            Class::Prefetch => self.prefetch.chunks,
            Class::Background => self.background.chunks,
        }
    }

    /// The lowest class that may go on reading now. A class that a read has joined goes on: the
    /// read waits for it.
    pub(super) fn lowest_reading(&self) -> Class {
        if self.background.joined > 0 {
            return Class::Background;
        }
        if self.prefetch.joined > 0 {
            return Class::Prefetch;
        }
        match (self.demand.chunks, self.prefetch.chunks) {
            (0, 0) => Class::Background,
            (0, _) => Class::Prefetch,
            _ => Class::Demand,
        }
    }

    fn left(&mut self, flight: &Flight) {
        if !flight.waiters.is_empty() {
            let lane = self.lane(flight.class);
            lane.joined = lane.joined.saturating_sub(1);
        }
    }

    fn lane(&mut self, class: Class) -> &mut Lane {
        match class {
            Class::Demand => &mut self.demand,
            Class::Prefetch => &mut self.prefetch,
            Class::Background => &mut self.background,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    const KIB: u32 = 1024;

    fn chunk(number: u32, stored_len: u32) -> ChunkRef {
        ChunkRef { digest: Digest::of(&number.to_le_bytes()), plain_len: stored_len, stored_len }
    }

    /// Whether a read waits for a flight of `class` with so much before it.
    fn waits_behind(class: Class, kib: u32) -> bool {
        let (mut flights, now) = (Flights::default(), Instant::now());
        flights.ask(class, chunk(0, 100 * KIB), now);
        flights.ask(class, chunk(1, kib * KIB), now);
        let wanted = chunk(2, 300 * KIB);
        flights.ask(class, wanted, now);
        flights.ended(class, &chunk(0, 100 * KIB));
        matches!(flights.join(&wanted.digest, oneshot::channel().0, now), Joined::Waits)
    }

    #[test]
    fn a_read_waits_for_what_comes_soon_and_longer_for_what_comes_in_the_order_of_starts() {
        assert!(waits_behind(Class::Background, 512) && !waits_behind(Class::Background, 513));
        assert!(waits_behind(Class::Prefetch, 2048) && !waits_behind(Class::Prefetch, 2049));
        assert!(waits_behind(Class::Demand, 100_000));
    }

    #[test]
    fn where_one_read_waits_others_do_too() {
        let (mut flights, now) = (Flights::default(), Instant::now());
        let wanted = chunk(0, KIB);
        flights.ask(Class::Background, wanted, now);
        let join = |flights: &mut Flights| flights.join(&wanted.digest, oneshot::channel().0, now);
        assert!(matches!(join(&mut flights), Joined::Waits));
        assert_eq!(flights.lowest_reading(), Class::Background);
        assert!(matches!(join(&mut flights), Joined::Waits));
        assert_eq!(flights.land(&wanted.digest).map(|flight| flight.waiters.len()), Some(2));
        assert!(matches!(join(&mut flights), Joined::Ask(_)));
    }
}
