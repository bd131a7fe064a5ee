//! The serving side: connections, each with what its client's certificate proves.
//!
//! Handshakes run beside each other and have a bound each, so that who connects and says nothing holds up nobody.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::SingleCertAndKey;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::Peer;
use crate::files::{Files, Loaded};

/// Handshakes at a time; who comes then waits in the listener's queue.
const HANDSHAKES_MAX: usize = 256;
/// How long a client may take for its side of one.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Connections that were made and wait to be served.
const READY_MAX: usize = 64;
/// After a connection could not be taken: descriptors ran out, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that were refused before a request, by reason (handshake, timeout).
const REFUSED: &str = "sluice_tls_refused_total";
/// gRPC is spoken over HTTP/2 alone.
pub(crate) const PROTOCOL: &[u8] = b"h2";
/// What others than we call.
pub(crate) const HTTP: &[u8] = b"http/1.1";

/// Whether clients must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    Proven,
    /// For who has none yet; one that is shown must count.
    Any,
}

/// Made connections, as they come.
pub type Incoming = ReceiverStream<io::Result<Connection>>;

/// With TLS or, where there are no certificates, without.
#[derive(Debug)]
pub enum Connection {
    Plain(TcpStream),
    Served(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    Dialled(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// What is known of who is at the other end.
#[derive(Clone, Debug, Default)]
pub struct ConnectInfo {
    pub address: Option<SocketAddr>,
    /// Whether the connection is one of TLS.
    pub secured: bool,
    pub peer: Option<Arc<Peer>>,
}

/// Of the connection that a request came over; where nothing is known of it, nothing is proven.
pub fn connection_of<T>(request: &tonic::Request<T>) -> ConnectInfo {
    request.extensions().get::<ConnectInfo>().cloned().unwrap_or_default()
}

pub(crate) fn incoming(
    listener: TcpListener,
    files: Option<Arc<Files>>,
    clients: Clients,
    protocol: &'static [u8],
) -> Incoming {
    let (ready, incoming) = mpsc::channel(READY_MAX);
    let turns = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    tokio::spawn(async move {
        loop {
            let taken = async {
                let turn = turns.clone().acquire_owned().await;
                (turn, listener.accept().await)
            };
            let (turn, accepted) = tokio::select! {
                taken = taken => taken,
                () = ready.closed() => return,
            };
            match (turn, accepted) {
                (Ok(turn), Ok((stream, _))) => {
                    let clients = (clients, protocol);
                    tokio::spawn(take(stream, files.clone(), clients, ready.clone(), turn));
                }
                (_, Err(error)) => {
                    tracing::debug!(%error, "a connection could not be taken");
                    sleep(ACCEPT_PAUSE).await;
                }
                (Err(_closed), _) => return,
            }
        }
    });
    ReceiverStream::new(incoming)
}

async fn take(
    stream: TcpStream,
    files: Option<Arc<Files>>,
    clients: (Clients, &'static [u8]),
    ready: mpsc::Sender<io::Result<Connection>>,
    turn: OwnedSemaphorePermit,
) {
    stream.set_nodelay(true).ok();
    let connection = match files {
        None => Connection::Plain(stream),
        Some(files) => match config(&files.current(), clients) {
            Ok(config) => match timeout(HANDSHAKE_MAX, TlsAcceptor::from(config).accept(stream)).await {
                Ok(Ok(secured)) => Connection::Served(Box::new(secured)),
                Ok(Err(error)) => return refused("handshake", &error),
                Err(late) => return refused("timeout", &late),
            },
            Err(error) => return refused("handshake", &error),
        },
    };
    drop(turn);
    // The server may have ended.
    let _ = ready.send(Ok(connection)).await;
}

fn refused(reason: &'static str, error: &dyn std::fmt::Display) {
    metrics::counter!(REFUSED, "reason" => reason).increment(1);
    tracing::debug!(%error, reason, "refused a connection");
}

fn config(
    loaded: &Loaded,
    (clients, protocol): (Clients, &[u8]),
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let general = |error: &dyn std::fmt::Display| rustls::Error::General(error.to_string());
    let verifier = WebPkiClientVerifier::builder_with_provider(loaded.roots.clone(), loaded.provider.clone());
    let verifier = match clients {
        Clients::Proven => verifier,
        Clients::Any => verifier.allow_unauthenticated(),
    };
    let verifier = verifier.build().map_err(|error| general(&error))?;
    let certified = loaded.certified.clone().ok_or_else(|| general(&"there is no certificate to show"))?;
    let mut config = ServerConfig::builder_with_provider(loaded.provider.clone())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(Arc::new(config))
}

impl Connected for Connection {
    type ConnectInfo = ConnectInfo;

    fn connect_info(&self) -> ConnectInfo {
        match self {
            Connection::Plain(stream) => {
                ConnectInfo { address: stream.peer_addr().ok(), ..ConnectInfo::default() }
            }
            Connection::Served(stream) => {
                let (stream, session) = stream.get_ref();
                let certificate = session.peer_certificates().and_then(|chain| chain.first());
                let peer = certificate.and_then(|certificate| Peer::of(certificate).ok()).map(Arc::new);
                ConnectInfo { address: stream.peer_addr().ok(), secured: true, peer }
            }
            Connection::Dialled(stream) => {
                ConnectInfo { address: stream.get_ref().0.peer_addr().ok(), secured: true, peer: None }
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Connection::Served(stream) => Pin::new(stream).poll_read(context, buffer),
            Connection::Dialled(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Connection::Served(stream) => Pin::new(stream).poll_write(context, bytes),
            Connection::Dialled(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Connection::Served(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Connection::Dialled(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Connection::Plain(stream) => stream.is_write_vectored(),
            Connection::Served(stream) => stream.is_write_vectored(),
            Connection::Dialled(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_flush(context),
            Connection::Served(stream) => Pin::new(stream).poll_flush(context),
            Connection::Dialled(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Connection::Served(stream) => Pin::new(stream).poll_shutdown(context),
            Connection::Dialled(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
