//! Fetches an image's tree or map: a mount waits for both.
//!
//! Trees of large images have tens of megabytes: they are inflated and hashed as they come, into a file, and what came
//! out counts only once all of it was checked. A few at a time, since inflating takes memory; who waits for its turn
//! holds none.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt as _;
use image::limits::ENCODED_PLAIN_MAX;
use image::record::IndexRef;
use proto::IndexRequest;
use proto::index_request::Kind;
use store::Index;
use store::verify::{Corrupt, OpenError, Opening};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;
use tonic::metadata::BinaryMetadataValue;

use super::endpoints::{Replica, ranked};
use super::quota::Bearing;
use super::{Class, Content, FetchError, Options, STORE_AFTER_CYCLES, backoff};
use crate::metrics;

/// Why there is no tree or no map.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// No other copy would help.
    #[error("what came cannot be written")]
    Keep(#[source] io::Error),
}

impl Content {
    /// Brings a tree or a map into a writer that `into` makes, one for each attempt. Tried for as long as a demand read; less long
    /// where a quota is used up, as an image can be pulled the ordinary way.
    pub async fn index<W, F>(&self, kind: Index, index: IndexRef, into: F) -> Result<W, IndexError>
    where
        W: Write + Send + 'static,
        F: Fn() -> io::Result<W> + Send + Sync + 'static,
    {
        let into = Arc::new(into);
        let patience_ends = Instant::now() + self.mesh.options.demand_patience;
        let Options { quota_wait, quota_bypass, .. } = self.mesh.options;
        let (mut cycle, mut bearing) = (0, Bearing::default());
        loop {
            let error = match self.try_index(cycle, kind, index, &into).await {
                Err(IndexError::Fetch(error)) => error,
                ended => return ended,
            };
            cycle += 1;
            let mut pause = backoff(cycle);
            if let Some(retry) = error.short_for() {
                if bearing.is_over(quota_wait) && quota_bypass && self.store.is_some() {
                    return self.index_past_the_caches(kind, index, &into).await;
                }
                if bearing.is_over(quota_wait) {
                    return Err(error.into());
                }
                pause = bearing.wait(Class::Demand, retry, quota_wait).unwrap_or(pause);
            }
            if Instant::now() + pause >= patience_ends {
                return Err(error.into());
            }
            sleep(pause).await;
            tracing::debug!(index = %index.digest, %error, "asking again for an index");
        }
    }

    /// Asks every replica once and then, when it is due, the store.
    async fn try_index<W, F>(
        &self,
        cycle: u32,
        kind: Index,
        index: IndexRef,
        into: &Arc<F>,
    ) -> Result<W, IndexError>
    where
        W: Write + Send + 'static,
        F: Fn() -> io::Result<W> + Send + Sync + 'static,
    {
        let none = "no content replica is known and no store is configured";
        let mut error = FetchError::unavailable(index.digest, none);
        let replicas = self.mesh.endpoints.current().await;
        for rank in ranked(&replicas, &index.digest) {
            error = match self.index_from_replica(&replicas[rank], kind, index, into).await {
                Err(IndexError::Fetch(error)) => error,
                ended => {
                    self.comes();
                    return ended;
                }
            };
            if let FetchError::Quota { refused, .. } = &error {
                self.is_short(refused.clone());
                return Err(error.into());
            }
            self.tell_corrupt(&error);
        }
        self.mesh.endpoints.doubt();
        if self.store.is_some() && (replicas.is_empty() || cycle + 1 >= STORE_AFTER_CYCLES) {
            return self.index_past_the_caches(kind, index, into).await;
        }
        Err(error.into())
    }

    async fn index_past_the_caches<W, F>(
        &self,
        kind: Index,
        index: IndexRef,
        into: &Arc<F>,
    ) -> Result<W, IndexError>
    where
        W: Write + Send + 'static,
        F: Fn() -> io::Result<W> + Send + Sync + 'static,
    {
        let opened = self.index_from_store(kind, index, into).await;
        if let Err(IndexError::Fetch(error)) = &opened {
            self.tell_corrupt(error);
        }
        let opened = opened?;
        metrics::read_from_store();
        self.mesh.events.past_caches(&self.manifest_digest);
        Ok(opened)
    }

    async fn index_from_replica<W, F>(
        &self,
        replica: &Replica,
        kind: Index,
        index: IndexRef,
        into: &Arc<F>,
    ) -> Result<W, IndexError>
    where
        W: Write + Send + 'static,
        F: Fn() -> io::Result<W> + Send + Sync + 'static,
    {
        let grant = self.right.to_use().await;
        match self.index_under(grant.clone(), replica, kind, index, into).await {
            Err(IndexError::Fetch(FetchError::Denied { ungranted: true, .. }))
                if self.right.renewed_instead_of(&grant).await =>
            {
                self.index_under(self.right.to_use().await, replica, kind, index, into).await
            }
            ended => ended,
        }
    }

    async fn index_under<W, F>(
        &self,
        grant: BinaryMetadataValue,
        replica: &Replica,
        kind: Index,
        index: IndexRef,
        into: &Arc<F>,
    ) -> Result<W, IndexError>
    where
        W: Write + Send + 'static,
        F: Fn() -> io::Result<W> + Send + Sync + 'static,
    {
        let stall = self.mesh.options.stall_timeout;
        let stalled = |_| {
            self.mesh.endpoints.reconnect(&replica.url);
            Status::unavailable("nothing came within the stall timeout")
        };
        let failed = |status: Status| FetchError::from_status(index.digest, &status);
        let request = IndexRequest {
            project: self.project.to_string(),
            kind: match kind {
                Index::Tree => Kind::Tree,
                Index::Map => Kind::Map,
            }
            .into(),
            digest: index.digest.as_bytes().to_vec(),
        };
        let message = self.request(request, grant);
        let mut client = replica.client(Class::Demand);
        let answer = timeout(stall, client.get_index(message)).await.map_err(stalled).map_err(failed)?;
        let mut frames = answer.map_err(failed)?.into_inner();
        let mut incoming = self.receive(index, into.clone()).await?;
        while let Some(frame) =
            timeout(stall, frames.message()).await.map_err(stalled).map_err(failed)?.map_err(failed)?
        {
            incoming = incoming.push(frame.data.into()).await?;
        }
        incoming.finish().await
    }

    async fn index_from_store<W, F>(
        &self,
        kind: Index,
        index: IndexRef,
        into: &Arc<F>,
    ) -> Result<W, IndexError>
    where
        W: Write + Send + 'static,
        F: Fn() -> io::Result<W> + Send + Sync + 'static,
    {
        let failed = |error| FetchError::from_store(index.digest, &error);
        let Some(store) = &self.store else { return Err(FetchError::Missing(index.digest).into()) };
        let mut stored = std::pin::pin!(store.index_stream(kind, index.digest).await.map_err(failed)?);
        let mut incoming = self.receive(index, into.clone()).await?;
        while let Some(bytes) = stored.try_next().await.map_err(failed)? {
            incoming = incoming.push(bytes).await?;
        }
        incoming.finish().await
    }

    /// Waits for its turn.
    async fn receive<W, F>(&self, index: IndexRef, into: Arc<F>) -> Result<Receiving<W>, IndexError>
    where
        W: Write + Send + 'static,
        F: Fn() -> io::Result<W> + Send + Sync + 'static,
    {
        let turn = self.mesh.opening.clone().acquire_owned().await;
        let turn = turn.map_err(|closed| FetchError::unavailable(index.digest, closed))?;
        let opening = on_disk(index, move || Opening::new(index.digest, into().map_err(OpenError::Keep)?));
        Ok(Receiving { index, opening: opening.await?, left: stored_max(index), _turn: turn })
    }
}

/// An index that is arriving.
struct Receiving<W: Write> {
    index: IndexRef,
    opening: Opening<W>,
    /// Stored bytes that may still come.
    left: usize,
    _turn: OwnedSemaphorePermit,
}

impl<W: Write + Send + 'static> Receiving<W> {
    async fn push(self, stored: Bytes) -> Result<Receiving<W>, IndexError> {
        let Receiving { index, opening, left, _turn } = self;
        let Some(left) = left.checked_sub(stored.len()) else {
            return Err(refused(index, &Corrupt::TooLarge(index.digest)).into());
        };
        let opening = on_disk(index, move || opening.push(&stored)).await?;
        Ok(Receiving { index, opening, left, _turn })
    }

    async fn finish(self) -> Result<W, IndexError> {
        on_disk(self.index, move || self.opening.finish()).await
    }
}

/// How many bytes an index may take compressed. Not the record's own number: a copy that was restored
/// by another version of the compressor may be a little longer.
fn stored_max(index: IndexRef) -> usize {
    let plain = usize::try_from(index.plain_len).unwrap_or(usize::MAX).min(ENCODED_PLAIN_MAX);
    plain + plain / 128 + 1024
}

/// Inflates, hashes and writes on a blocking thread.
async fn on_disk<T: Send + 'static>(
    index: IndexRef,
    work: impl FnOnce() -> Result<T, OpenError> + Send + 'static,
) -> Result<T, IndexError> {
    match spawn_blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(OpenError::Corrupt(corrupt))) => Err(refused(index, &corrupt).into()),
        Ok(Err(OpenError::Keep(error))) => Err(IndexError::Keep(error)),
        Err(stopped) => Err(FetchError::unavailable(index.digest, stopped).into()),
    }
}

fn refused(index: IndexRef, corrupt: &Corrupt) -> FetchError {
    metrics::index_corrupt();
    tracing::warn!(index = %index.digest, error = %corrupt, "dropped a corrupt index");
    FetchError::Corrupt(index.digest)
}
