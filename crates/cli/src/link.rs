//! A simulated network link: a TCP proxy with a round-trip time and a bandwidth.
//!
//! ```text
//! client --> [Link] --bucket--> delay line (rtt/2) --> server       up
//! client <-- delay line (rtt/2) <--bucket-- [Link] <-- server       down
//! ```
//!
//! A [`Nic`] is one machine's network card: a bucket and a byte counter for each direction, shared by all
//! connections of all links that are attached to it. A frame waits for its turn in the bucket, then
//! travels half a round trip; an opening handshake costs a whole one, as TCP's does. Slow start and loss
//! are not simulated: both sides of a comparison are spared them alike.
//!
//! Concurrency: two tasks for each direction of each connection (reader, delay line), joined by a
//! bounded channel; the buckets are the only shared state, behind short locks. Dropping the [`Link`] ends them all.

mod shape;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

pub use shape::{Bandwidth, Counters, Nic, Shape};
use shape::{Direction, Lane};

/// Bytes that take their turn in the bucket together: 0.65 ms at 200 Mbit/s, so that connections share finely.
const FRAME: usize = 16 * 1024;
/// Frames under way on one connection: 16 MiB, more than any simulated bandwidth times delay.
const FRAMES_UNDER_WAY: usize = 1024;
/// The socket buffers towards the server, in bytes: what a server believes sent should be on the link,
/// not in a buffer in front of it.
const SOCKET_BUFFER: u32 = 256 * 1024;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// A listening proxy. Dropped, it stops listening and cuts its connections.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    nic: Arc<Nic>,
    control: watch::Sender<Control>,
    _accepting: AbortOnDropHandle<()>,
}

/// What the connections of a link watch.
#[derive(Clone, Debug, Default)]
struct Control {
    /// Where connections go; until it is known they wait.
    to: Option<String>,
    stalled: bool,
    /// Connections of an earlier generation are cut.
    generation: u64,
}

impl Link {
    /// Listens on `listen` (port 0: any) and carries every connection through `nic`, once [`Link::lead_to`] has
    /// said where to: what is advertised may have to be known before what serves it.
    pub async fn start(nic: Arc<Nic>, listen: SocketAddr) -> anyhow::Result<Link> {
        let socket = if listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(listen).with_context(|| format!("listen on {listen} for a simulated link"))?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        let (control, watched) = watch::channel(Control::default());
        let accepting = AbortOnDropHandle::new(tokio::spawn(accept(listener, nic.clone(), watched)));
        Ok(Link { address, nic, control, _accepting: accepting })
    }

    /// Connections go to `to` (`host:port`) from now on.
    pub fn lead_to(&self, to: impl ToString) {
        self.control.send_modify(|control| control.to = Some(to.to_string()));
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes that the link's card has delivered so far.
    pub fn counters(&self) -> Counters {
        self.nic.counters()
    }

    /// Nothing arrives any more, at either end, until [`Link::resume`].
    pub fn stall(&self) {
        self.control.send_modify(|control| control.stalled = true);
    }

    pub fn resume(&self) {
        self.control.send_modify(|control| control.stalled = false);
    }

    /// Cuts every connection; new ones are accepted.
    pub fn cut(&self) {
        self.control.send_modify(|control| control.generation += 1);
    }
}

async fn accept(listener: TcpListener, nic: Arc<Nic>, control: watch::Receiver<Control>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    let carried = carry(client, nic.clone(), control.clone());
                    connections.spawn(async move {
                        if let Err(error) = carried.await {
                            tracing::debug!(error = %error, "a connection of the simulated link ended");
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: give the ones in use time to close.
                    tracing::warn!(error = %error, "accept on the simulated link failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, from its first byte to its end.
async fn carry(
    client: TcpStream,
    nic: Arc<Nic>,
    mut control: watch::Receiver<Control>,
) -> std::io::Result<()> {
    let opened = Instant::now() + nic.rtt();
    let known = control.wait_for(|control| control.to.is_some()).await;
    let Some(to) = known.ok().and_then(|control| control.to.clone()) else { return Ok(()) };
    let server = connect(&to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let generation = control.borrow().generation;
    let up = one_way(client_read, server_write, nic.lane(Direction::Up), opened, control.clone());
    let down = one_way(server_read, client_write, nic.lane(Direction::Down), opened, control.clone());
    tokio::select! {
        ended = async { tokio::try_join!(up, down).map(|_| ()) } => ended,
        _ = control.wait_for(|control| control.generation != generation) => Ok(()),
    }
}

async fn connect(to: &str) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::other(format!("{to} names no address"));
    for address in tokio::net::lookup_host(to).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_recv_buffer_size(SOCKET_BUFFER)?;
        match socket.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A frame on its way, and when its last bit arrives.
struct Frame {
    arrives: Instant,
    bytes: Vec<u8>,
}

async fn one_way(
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    lane: Lane,
    opened: Instant,
    control: watch::Receiver<Control>,
) -> std::io::Result<()> {
    let (sender, receiver) = mpsc::channel(FRAMES_UNDER_WAY);
    let (sent, delivered) =
        tokio::join!(send(from, sender, lane.clone(), opened), deliver(to, receiver, lane, control));
    sent.and(delivered)
}

/// Reads frames and gives each its turn in the bucket.
async fn send(
    mut from: impl AsyncRead + Unpin,
    line: mpsc::Sender<Frame>,
    lane: Lane,
    opened: Instant,
) -> std::io::Result<()> {
    loop {
        let mut bytes = vec![0; FRAME];
        let length = from.read(&mut bytes).await?;
        if length == 0 {
            return Ok(());
        }
        bytes.truncate(length);
        let turn = lane.reserve(length, opened);
        if line.send(Frame { arrives: turn.ends + lane.delay(), bytes }).await.is_err() {
            return Ok(());
        }
        // What is read before its turn would only wait here instead of in the sender's buffer.
        tokio::time::sleep_until(turn.begins).await;
    }
}

/// Hands frames over when they arrive; while stalled, not at all.
async fn deliver(
    mut to: impl AsyncWrite + Unpin,
    mut line: mpsc::Receiver<Frame>,
    lane: Lane,
    mut control: watch::Receiver<Control>,
) -> std::io::Result<()> {
    while let Some(frame) = line.recv().await {
        tokio::time::sleep_until(frame.arrives).await;
        if control.wait_for(|control| !control.stalled).await.is_err() {
            return Ok(());
        }
        lane.count(frame.bytes.len());
        to.write_all(&frame.bytes).await?;
    }
    to.shutdown().await
}
