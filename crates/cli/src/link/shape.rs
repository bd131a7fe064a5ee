//! What a link does to bytes: how long they wait, how fast they follow each other.
//!
//! The arithmetic is that of a schedule, not of timers: turns follow each other without a gap as long as bytes wait, however
//! late those who hand them over wake up, and none begins before its bytes were there.

use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

/// What a turn takes on the wire, unless that is more or less than a frame can hold: connections share finely.
const TURN: Duration = Duration::from_millis(1);
const FRAME_MIN: u64 = 2 * 1024;
const FRAME_MAX: u64 = 64 * 1024;

/// Round-trip time, and bandwidth of each direction; none: unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shape {
    pub rtt: Duration,
    pub bandwidth: Option<Bandwidth>,
}

/// Bits per second; read from `200Mbit`, `1.5Gbit`, `64kbit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bandwidth(pub u64);

impl Bandwidth {
    /// How long `bytes` take.
    pub fn time_for(self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 * 8.0 / self.0 as f64)
    }
}

impl FromStr for Bandwidth {
    type Err = String;

    fn from_str(text: &str) -> Result<Bandwidth, String> {
        let refuse = || format!("not a bandwidth: {text:?} (examples: 200Mbit, 1.5Gbit, 64kbit)");
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(refuse)?;
        let number: f64 = text[..digits].parse().map_err(|_| refuse())?;
        let factor = match text[digits..].trim_end_matches("/s").to_ascii_lowercase().as_str() {
            "bit" => 1.0,
            "kbit" => 1e3,
            "mbit" => 1e6,
            "gbit" => 1e9,
            _ => return Err(refuse()),
        };
        // The lower bound keeps the arithmetic on durations in range, the upper one u64.
        match number * factor {
            bits if (1e3..=1e12).contains(&bits) => Ok(Bandwidth(bits as u64)),
            _ => Err(format!("{text} is not between 1kbit and 1000Gbit")),
        }
    }
}

impl std::fmt::Display for Bandwidth {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bits = self.0 as f64;
        match self.0 {
            1_000_000_000.. => write!(formatter, "{}Gbit/s", bits / 1e9),
            1_000_000.. => write!(formatter, "{}Mbit/s", bits / 1e6),
            _ => write!(formatter, "{}kbit/s", bits / 1e3),
        }
    }
}

/// Bytes delivered: `down` to the clients of the links (the node), `up` from them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    pub up: u64,
    pub down: u64,
}

impl Counters {
    /// What was moved since `earlier`.
    pub fn since(self, earlier: Counters) -> Counters {
        Counters { up: self.up.saturating_sub(earlier.up), down: self.down.saturating_sub(earlier.down) }
    }
}

/// One machine's network card.
#[derive(Debug)]
pub struct Nic {
    shape: Shape,
    up: Arc<Wire>,
    down: Arc<Wire>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Direction {
    Up,
    Down,
}

#[derive(Debug, Default)]
struct Wire {
    /// When the last bit of what was given a turn so far leaves.
    busy_until: Mutex<Option<Instant>>,
    delivered: AtomicU64,
}

impl Nic {
    pub fn new(shape: Shape) -> Arc<Nic> {
        Arc::new(Nic { shape, up: Arc::default(), down: Arc::default() })
    }

    pub fn counters(&self) -> Counters {
        let read = |wire: &Wire| wire.delivered.load(Ordering::Relaxed);
        Counters { up: read(&self.up), down: read(&self.down) }
    }

    pub(super) fn rtt(&self) -> Duration {
        self.shape.rtt
    }

    pub(super) fn lane(&self, direction: Direction) -> Lane {
        let wire = match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        };
        Lane { shape: self.shape, wire: wire.clone() }
    }
}

/// One direction of a card, as a connection uses it.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    shape: Shape,
    wire: Arc<Wire>,
}

/// When a frame is on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Turn {
    pub(super) begins: Instant,
    pub(super) ends: Instant,
}

impl Lane {
    /// Whether bytes are neither delayed nor held back.
    pub(super) fn is_plain(&self) -> bool {
        self.shape.rtt.is_zero() && self.shape.bandwidth.is_none()
    }

    /// Bytes that take their turn together.
    pub(super) fn frame(&self) -> usize {
        let bytes = |bandwidth: Bandwidth| (bandwidth.0 as f64 / 8.0 * TURN.as_secs_f64()) as u64;
        self.shape.bandwidth.map_or(FRAME_MAX, bytes).clamp(FRAME_MIN, FRAME_MAX) as usize
    }

    /// The next free turn for `length` bytes that have waited since `ready`.
    pub(super) fn reserve(&self, length: usize, ready: Instant) -> Turn {
        let Some(bandwidth) = self.shape.bandwidth else { return Turn { begins: ready, ends: ready } };
        let mut busy_until = self.wire.busy_until.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = next_turn(*busy_until, ready, bandwidth.time_for(length as u64));
        *busy_until = Some(turn.ends);
        turn
    }

    pub(super) fn delay(&self) -> Duration {
        self.shape.rtt / 2
    }

    pub(super) fn count(&self, length: usize) {
        self.wire.delivered.fetch_add(length as u64, Ordering::Relaxed);
    }
}

/// After what is under way.
pub(super) fn next_turn(busy_until: Option<Instant>, ready: Instant, takes: Duration) -> Turn {
    let begins = busy_until.map_or(ready, |busy_until| busy_until.max(ready));
    Turn { begins, ends: begins + takes }
}
