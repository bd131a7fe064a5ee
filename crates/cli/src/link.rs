//! A simulated network link: a TCP proxy with a round-trip time and a bandwidth.
//!
//! ```text
//! client --> [Link] --turn--> delay line (rtt/2) --> server       up
//! client <-- delay line (rtt/2) <--turn-- [Link] <-- server       down
//! ```
//!
//! A [`Nic`] is one machine's network card: a schedule of turns and a byte counter for each direction, shared by all
//! connections of all links that are attached to it. A frame waits for its turn, then
//! travels half a round trip; an opening handshake costs a whole one, as TCP's does. Slow start and loss
//! are not simulated: both sides of a comparison are spared them alike. A link without delay and limit copies bytes.
//!
//! Concurrency: [`Carriers`] are the threads that links run on, apart from what is measured through them, so that their own
//! processor time can be told. Two tasks for each direction of each connection (reader, delay line), joined by a
//! bounded channel; the schedules are the only shared state, behind short locks. Dropping the [`Link`] ends them all.

mod carriers;
mod shape;
#[cfg(test)]
mod tests;
mod timer;
mod way;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

pub use carriers::{Carriers, processor_time};
use shape::Direction;
pub use shape::{Bandwidth, Counters, Nic, Shape};
use timer::Precise;
use way::one_way;

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
    pub fn start(carriers: &Carriers, nic: Arc<Nic>, listen: SocketAddr) -> anyhow::Result<Link> {
        let _on_their_threads = carriers.handle().enter();
        let socket = if listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(listen).with_context(|| format!("listen on {listen} for a simulated link"))?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        let (control, watched) = watch::channel(Control::default());
        let accepting =
            AbortOnDropHandle::new(carriers.handle().spawn(accept(listener, nic.clone(), watched)));
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
    let lane = |direction| nic.lane(direction);
    let up =
        one_way(client_read, server_write, lane(Direction::Up), opened, Precise::new()?, control.clone());
    let down =
        one_way(server_read, client_write, lane(Direction::Down), opened, Precise::new()?, control.clone());
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
