//! One direction of one connection.
//!
//! No timer is set for what is due: whoever wakes up late hands over all that came due meanwhile.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Control;
use super::shape::Lane;
use super::timer::Timer;

/// Frames under way on one connection: 64 MiB of full ones, more than most networks have in flight. What bounds a connection of
/// unlimited bandwidth is this much in half a round trip, as a receive window would.
const FRAMES_UNDER_WAY: usize = 1024;
/// Between two deliveries that had to be waited for: a wake-up for each frame of a fast link would cost more than it tells.
const GRAIN: Duration = Duration::from_micros(200);
/// How late a reader that was held back may wake up without a gap in the schedule.
const LATE_MAX: Duration = Duration::from_millis(50);
/// A sender that was held back with it fills its buffer again within this time; one that takes longer had nothing to send.
const REFILL: Duration = Duration::from_millis(1);
/// What a link that does nothing to bytes moves at once.
const COPY: usize = 256 * 1024;

/// A frame on its way, and when its last bit arrives.
#[derive(Debug)]
struct Frame {
    arrives: Instant,
    bytes: Vec<u8>,
}

/// Carries bytes until their end, which it passes on. Nothing leaves before the connection has `opened`.
pub(super) async fn one_way(
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    lane: Lane,
    opened: Instant,
    timer: impl Timer,
    control: watch::Receiver<Control>,
) -> io::Result<()> {
    if lane.is_plain() {
        return copy(from, to, lane, control).await;
    }
    let (sender, receiver) = mpsc::channel(FRAMES_UNDER_WAY);
    let (sent, delivered) =
        tokio::join!(send(from, sender, lane.clone(), opened), deliver(to, receiver, lane, timer, control));
    sent.and(delivered)
}

/// Reads frames and gives each its turn.
async fn send(
    mut from: impl AsyncRead + Unpin,
    line: mpsc::Sender<Frame>,
    lane: Lane,
    opened: Instant,
) -> io::Result<()> {
    let size = lane.frame();
    // While this is behind the schedule by having slept for too long: since when bytes wait.
    let mut behind: Option<Instant> = None;
    loop {
        let (mut bytes, asked) = (Vec::with_capacity(size), Instant::now());
        if (&mut from).take(size as u64).read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
        let now = Instant::now();
        if now - asked > REFILL {
            behind = None;
        }
        let late = behind.map(|since| now.checked_sub(LATE_MAX).map_or(since, |least| since.max(least)));
        let turn = lane.reserve(bytes.len(), late.unwrap_or(now).max(opened));
        behind = behind.filter(|_| turn.ends < now);
        match line.try_send(Frame { arrives: turn.ends + lane.delay(), bytes }) {
            Ok(()) => {}
            Err(TrySendError::Closed(_)) => return Ok(()),
            Err(TrySendError::Full(frame)) => {
                if line.send(frame).await.is_err() {
                    return Ok(());
                }
                // The receiver held this up, not the link.
                behind = None;
            }
        }
        // What is read before its turn would only wait here instead of in the sender's buffer.
        if turn.begins > Instant::now() {
            tokio::time::sleep_until(turn.begins).await;
            behind = Some(turn.begins);
        }
    }
}

/// Hands frames over when they arrive; while stalled, not at all.
async fn deliver(
    mut to: impl AsyncWrite + Unpin,
    mut line: mpsc::Receiver<Frame>,
    lane: Lane,
    mut timer: impl Timer,
    mut control: watch::Receiver<Control>,
) -> io::Result<()> {
    let mut next = Instant::now();
    while let Some(frame) = line.recv().await {
        if frame.arrives > Instant::now() {
            timer.until(frame.arrives.max(next)).await?;
            next = Instant::now() + GRAIN;
        }
        if !flows(&mut control).await {
            return Ok(());
        }
        lane.count(frame.bytes.len());
        to.write_all(&frame.bytes).await?;
    }
    to.shutdown().await
}

/// Moves bytes as they come.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    lane: Lane,
    mut control: watch::Receiver<Control>,
) -> io::Result<()> {
    let mut block = vec![0; COPY];
    loop {
        let length = from.read(&mut block).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        if !flows(&mut control).await {
            return Ok(());
        }
        lane.count(length);
        to.write_all(&block[..length]).await?;
    }
}

/// Waits while the link is stalled; false: there is no link any more.
async fn flows(control: &mut watch::Receiver<Control>) -> bool {
    control.wait_for(|control| !control.stalled).await.is_ok()
}
