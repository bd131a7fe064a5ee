//! Fetches chunks: round after round over the replicas, then the store.
//!
//! One call is one request of one class. In each round every chunk still wanted is asked of one
//! replica; all chunks of one replica travel in one stream, in the order wanted. Whoever
//! closes the [`Gate`] stops the reading of lower classes, and so, by HTTP/2's flow control, their sending.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use image::record::ChunkRef;
use proto::ChunksRequest;
use proto::chunk_frame::Failure;
use proto::chunks_request::Priority;
use proto::quota::Refused;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;
use tonic::metadata::BinaryMetadataValue;

use super::endpoints::{Replica, ranked};
use super::frames::{Assembly, Ended};
use super::quota::Bearing;
use super::{Class, Content, FetchError, Options, STORE_AFTER_CYCLES, backoff};
use crate::metrics;

/// Chunks asked of the store at a time when the replicas failed: two, so that one is on its way while
/// the other is verified.
const STORE_IN_FLIGHT: usize = 2;

/// One chunk's outcome.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) chunk: ChunkRef,
    pub(crate) result: Result<Plain, FetchError>,
}

/// A verified chunk.
#[derive(Clone, Debug)]
pub(crate) struct Plain {
    pub(crate) bytes: Bytes,
    /// What it cost on the wire.
    pub(crate) stored_len: u32,
}

/// Holds lower classes back: the lowest class that may go on reading.
pub(crate) type Gate = watch::Receiver<Class>;

/// A chunk that is still to be had, and why it was not so far.
struct Wanted {
    chunk: ChunkRef,
    failed: FetchError,
}

/// What one request is for, and where its chunks go.
struct Request {
    class: Class,
    gate: Gate,
    out: mpsc::Sender<Fetched>,
}

impl Content {
    /// Delivers every one of `chunks` to `out`, each once, verified or with the reason why not.
    /// Demand is tried for as long as the options say, longer while it is a quota that is waited for, lower classes for one
    /// cycle: whoever wants them comes back later. Ends early when `out` is closed.
    pub(crate) async fn fetch(
        &self,
        class: Class,
        chunks: Vec<ChunkRef>,
        gate: Gate,
        out: mpsc::Sender<Fetched>,
    ) {
        let request = Arc::new(Request { class, gate, out });
        let (begun, options) = (Instant::now(), self.mesh.options);
        let mut patience_ends = begun + options.demand_patience;
        let mut wanted: Vec<Wanted> = chunks.into_iter().map(Wanted::new).collect();
        let mut bearing = Bearing::default();
        for cycle in 0.. {
            let cycle_began = Instant::now();
            wanted = self.cycle(cycle, &request, wanted).await;
            let short = wanted.iter().filter_map(|one| one.failed.short_for()).min();
            if short.is_some() {
                wanted = self.past_the_quota(&request, &bearing, wanted).await;
            }
            let pause = match short {
                Some(retry) => bearing.wait(class, retry, options.quota_wait),
                None if class == Class::Demand || cycle + 1 < STORE_AFTER_CYCLES => Some(backoff(cycle + 1)),
                None => None,
            };
            if short.is_some() && begun.elapsed() < options.quota_patience {
                patience_ends += cycle_began.elapsed() + pause.unwrap_or_default();
            }
            let pause =
                pause.filter(|pause| class != Class::Demand || Instant::now() + *pause < patience_ends);
            let Some(pause) = pause.filter(|_| !wanted.is_empty() && !request.out.is_closed()) else { break };
            sleep(pause).await;
        }
        for missed in wanted {
            // Nobody listens when the image was removed: nothing to tell then.
            let _ = request.out.send(Fetched { chunk: missed.chunk, result: Err(missed.failed) }).await;
        }
    }

    /// Asks every replica once, in each chunk's own order, and then, when it is due, the store.
    async fn cycle(&self, cycle: u32, request: &Arc<Request>, mut wanted: Vec<Wanted>) -> Vec<Wanted> {
        let replicas = self.mesh.endpoints.current().await;
        let mut short = Vec::new();
        for rank in 0..replicas.len() {
            if wanted.is_empty() {
                return short;
            }
            let missed = self.round(rank, &replicas, request, wanted).await;
            // What is refused for want of quota is nobody else's to give.
            let (refused, others) = missed.into_iter().partition(|one| one.failed.short_for().is_some());
            wanted = others;
            short.extend::<Vec<Wanted>>(refused);
        }
        if wanted.is_empty() {
            return short;
        }
        self.mesh.endpoints.doubt();
        if replicas.is_empty() || cycle + 1 >= STORE_AFTER_CYCLES {
            wanted = self.ask_store(request, wanted).await;
        }
        short.extend(wanted);
        short
    }

    /// Asks the store for what a process waits for in vain, where that is allowed.
    async fn past_the_quota(
        &self,
        request: &Arc<Request>,
        bearing: &Bearing,
        wanted: Vec<Wanted>,
    ) -> Vec<Wanted> {
        let Options { quota_wait, quota_bypass, .. } = self.mesh.options;
        if !quota_bypass || request.class != Class::Demand || !bearing.is_over(quota_wait) {
            return wanted;
        }
        let (short, others) = wanted.into_iter().partition(|one| one.failed.short_for().is_some());
        let mut left: Vec<Wanted> = others;
        left.extend(self.ask_store(request, short).await);
        left
    }

    /// Asks for each chunk the replica of rank `rank` in its order.
    async fn round(
        &self,
        rank: usize,
        replicas: &[Replica],
        request: &Arc<Request>,
        wanted: Vec<Wanted>,
    ) -> Vec<Wanted> {
        let mut shares: Vec<Vec<Wanted>> = replicas.iter().map(|_| Vec::new()).collect();
        for one in wanted {
            if let Some(replica) = ranked(replicas, &one.chunk.digest).get(rank) {
                shares[*replica].push(one);
            }
        }
        let mut streams: FuturesUnordered<_> = replicas
            .iter()
            .zip(shares)
            .filter(|(_, share)| !share.is_empty())
            .map(|(replica, share)| self.ask_replica(replica, request, share))
            .collect();
        let mut left = Vec::new();
        while let Some(missed) = streams.next().await {
            left.extend(missed);
        }
        left
    }

    /// One stream from one replica; returns what did not come.
    async fn ask_replica(
        &self,
        replica: &Replica,
        request: &Request,
        mut wanted: Vec<Wanted>,
    ) -> Vec<Wanted> {
        let mut delivered = vec![false; wanted.len()];
        let grant = self.right.to_use().await;
        let mut read = self.read_stream(replica, request, grant.clone(), &mut wanted, &mut delivered).await;
        if read.as_ref().is_err_and(Stopped::for_want_of_a_grant)
            && self.right.renewed_instead_of(&grant).await
        {
            let newer = self.right.to_use().await;
            read = self.read_stream(replica, request, newer, &mut wanted, &mut delivered).await;
        }
        if let Err(stopped) = read {
            if matches!(stopped, Stopped::Stalled) {
                self.mesh.endpoints.reconnect(&replica.url);
            }
            metrics::replica_failed(stopped.label());
            if let Some(refused) = stopped.for_want_of_quota() {
                self.is_short(refused);
            }
            tracing::debug!(replica = %replica.url, error = %stopped, "a chunk stream stopped");
            for (one, _) in wanted.iter_mut().zip(&delivered).filter(|(_, delivered)| !**delivered) {
                one.failed = stopped.for_chunk(one);
            }
        }
        let mut delivered = delivered.into_iter();
        wanted.retain(|_| !delivered.next().unwrap_or(false));
        wanted
    }

    async fn read_stream(
        &self,
        replica: &Replica,
        request: &Request,
        grant: BinaryMetadataValue,
        wanted: &mut [Wanted],
        delivered: &mut [bool],
    ) -> Result<(), Stopped> {
        let stall = self.mesh.options.stall_timeout;
        let asked = ChunksRequest {
            project: self.project.to_string(),
            digests: wanted.iter().map(|one| one.chunk.digest.as_bytes().to_vec()).collect(),
            priority: Priority::from(request.class).into(),
            manifest_digest: self.manifest_digest.to_string(),
        };
        let message = self.request(asked, grant);
        let mut client = replica.client(request.class);
        let mut frames = within(stall, client.get_chunks(message)).await?.into_inner();
        let mut assembly = Assembly::new(wanted.len() as u32);
        while let Some(frame) = {
            request.may_read().await;
            within(stall, frames.message()).await?
        } {
            let ended = assembly.push(frame).map_err(|error| Stopped::Protocol(error.to_string()))?;
            let Some((index, ended)) = ended else { continue };
            let one = &mut wanted[index as usize];
            let arrived = match ended {
                Ended::Stored(stored) => verify(one.chunk, stored).await,
                Ended::Failed(Failure::Missing) => Err(FetchError::Missing(one.chunk.digest)),
                Ended::Failed(Failure::Corrupt) => Err(FetchError::Corrupt(one.chunk.digest)),
                Ended::Failed(_) => {
                    Err(FetchError::unavailable(one.chunk.digest, "the replica could not read the store"))
                }
            };
            match arrived {
                Ok(plain) => {
                    self.comes();
                    delivered[index as usize] = true;
                    request.deliver(one.chunk, plain).await.map_err(|()| Stopped::Unwanted)?;
                }
                Err(error) => {
                    self.tell_corrupt(&error);
                    one.failed = error;
                }
            }
        }
        Ok(())
    }

    /// Reads chunks from the object store itself; returns what did not come.
    async fn ask_store(&self, request: &Arc<Request>, wanted: Vec<Wanted>) -> Vec<Wanted> {
        let Some(store) = &self.store else { return wanted };
        let reads = wanted.into_iter().map(|mut one| async move {
            request.may_read().await;
            let digest = one.chunk.digest;
            let stored = match timeout(self.mesh.options.stall_timeout, store.chunk(digest)).await {
                Ok(read) => read.map_err(|error| FetchError::from_store(digest, &error)),
                Err(_) => Err(FetchError::unavailable(digest, "the store does not answer")),
            };
            let arrived = match stored {
                Ok(stored) => verify(one.chunk, stored).await,
                Err(error) => Err(error),
            };
            match arrived {
                Ok(plain) => {
                    metrics::read_from_store();
                    self.mesh.events.past_caches(&self.manifest_digest);
                    let _ = request.deliver(one.chunk, plain).await;
                    None
                }
                Err(error) => {
                    self.tell_corrupt(&error);
                    one.failed = error;
                    Some(one)
                }
            }
        });
        futures::stream::iter(reads).buffered(STORE_IN_FLIGHT).filter_map(std::future::ready).collect().await
    }
}

impl Wanted {
    fn new(chunk: ChunkRef) -> Wanted {
        let failed =
            FetchError::unavailable(chunk.digest, "no content replica is known and no store is configured");
        Wanted { chunk, failed }
    }
}

impl Request {
    /// Waits while a higher class is served.
    async fn may_read(&self) {
        // The sender is gone when the node shuts down: then nobody is served before us.
        let _ = self.gate.clone().wait_for(|lowest| self.class <= *lowest).await;
    }

    async fn deliver(&self, chunk: ChunkRef, plain: Plain) -> Result<(), ()> {
        self.out.send(Fetched { chunk, result: Ok(plain) }).await.map_err(|_| ())
    }
}

/// Why a stream ended before it was through.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error("nothing came within the stall timeout")]
    Stalled,
    #[error("{0}")]
    Refused(#[from] tonic::Status),
    #[error("{0}")]
    Protocol(String),
    #[error("nobody waits for it any more")]
    Unwanted,
}

impl Stopped {
    fn label(&self) -> &'static str {
        match self {
            Stopped::Stalled => "stalled",
            Stopped::Refused(status) if Refused::of(status).is_some() => "quota",
            Stopped::Refused(_) => "refused",
            Stopped::Protocol(_) => "protocol",
            Stopped::Unwanted => "unwanted",
        }
    }

    /// Said before anything is sent, so nothing comes twice.
    fn for_want_of_a_grant(&self) -> bool {
        matches!(self, Stopped::Refused(status) if status.code() == Code::Unauthenticated)
    }

    fn for_want_of_quota(&self) -> Option<Refused> {
        match self {
            Stopped::Refused(status) => Refused::of(status),
            _ => None,
        }
    }

    fn for_chunk(&self, one: &Wanted) -> FetchError {
        match self {
            Stopped::Refused(status) => FetchError::from_status(one.chunk.digest, status),
            other => FetchError::unavailable(one.chunk.digest, other),
        }
    }
}

async fn within<T>(
    stall: Duration,
    call: impl Future<Output = Result<T, tonic::Status>>,
) -> Result<T, Stopped> {
    match timeout(stall, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Stopped::Stalled),
    }
}

/// Inflates and hashes a chunk on a blocking thread.
async fn verify(chunk: ChunkRef, stored: Bytes) -> Result<Plain, FetchError> {
    let stored_len = stored.len() as u32;
    let opened = tokio::task::spawn_blocking(move || store::verify::open_chunk(&chunk.digest, &stored)).await;
    match opened {
        Ok(Ok(plain)) if plain.len() == chunk.plain_len as usize => {
            Ok(Plain { bytes: plain.into(), stored_len })
        }
        Ok(verified) => {
            metrics::chunk_corrupt();
            let reason =
                verified.err().map_or_else(|| "not as long as the map says".to_owned(), |e| e.to_string());
            tracing::warn!(chunk = %chunk.digest, error = %reason, "dropped a corrupt chunk");
            Err(FetchError::Corrupt(chunk.digest))
        }
        Err(stopped) => Err(FetchError::unavailable(chunk.digest, stopped)),
    }
}
