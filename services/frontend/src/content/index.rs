//! Fetches an image's tree or map: a mount waits for both.

use bytes::BytesMut;
use image::Digest;
use image::limits::ENCODED_PLAIN_MAX;
use image::record::IndexRef;
use proto::IndexRequest;
use proto::index_request::Kind;
use store::Index;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;

use super::endpoints::{Replica, ranked};
use super::{Class, Content, FetchError, STORE_AFTER_CYCLES, backoff};
use crate::metrics;

impl Content {
    /// The verified plain bytes of a tree or a map, tried for as long as a demand read.
    pub async fn index(&self, kind: Index, index: IndexRef) -> Result<Vec<u8>, FetchError> {
        let patience_ends = Instant::now() + self.mesh.options.demand_patience;
        let mut cycle = 0;
        loop {
            sleep(backoff(cycle)).await;
            let error = match self.try_index(cycle, kind, index).await {
                Ok(plain) => return Ok(plain),
                Err(error) => error,
            };
            cycle += 1;
            if Instant::now() + backoff(cycle) >= patience_ends {
                return Err(error);
            }
            tracing::debug!(index = %index.digest, %error, "asking again for an index");
        }
    }

    /// Asks every replica once and then, when it is due, the store.
    async fn try_index(&self, cycle: u32, kind: Index, index: IndexRef) -> Result<Vec<u8>, FetchError> {
        let digest = index.digest;
        let mut error =
            FetchError::unavailable(digest, "no content replica is known and no store is configured");
        let replicas = self.mesh.endpoints.current().await;
        for rank in ranked(&replicas, &digest) {
            let replica = &replicas[rank];
            error = match self.index_from_replica(replica, kind, index).await {
                Ok(stored) => match verify(digest, stored).await {
                    Ok(plain) => return Ok(plain),
                    Err(corrupt) => {
                        self.tell_corrupt(&corrupt);
                        corrupt
                    }
                },
                Err(status) => FetchError::from_status(digest, &status),
            };
        }
        self.mesh.endpoints.doubt();
        if let Some(store) = &self.store
            && (replicas.is_empty() || cycle + 1 >= STORE_AFTER_CYCLES)
        {
            let stored =
                store.index(kind, digest).await.map_err(|error| FetchError::from_store(digest, &error))?;
            let plain = verify(digest, stored.into()).await.inspect_err(|error| self.tell_corrupt(error))?;
            metrics::read_from_store();
            self.mesh.events.past_caches(&self.manifest_digest);
            return Ok(plain);
        }
        Err(error)
    }

    async fn index_from_replica(
        &self,
        replica: &Replica,
        kind: Index,
        index: IndexRef,
    ) -> Result<Vec<u8>, Status> {
        let stall = self.mesh.options.stall_timeout;
        let stalled = |_| {
            self.mesh.endpoints.reconnect(&replica.url);
            Status::unavailable("nothing came within the stall timeout")
        };
        let message = self.request(IndexRequest {
            project: self.project.to_string(),
            kind: match kind {
                Index::Tree => Kind::Tree,
                Index::Map => Kind::Map,
            }
            .into(),
            digest: index.digest.as_bytes().to_vec(),
        });
        let mut client = replica.client(Class::Demand);
        let mut frames = timeout(stall, client.get_index(message)).await.map_err(stalled)??.into_inner();
        let most = stored_max(index);
        let mut stored = BytesMut::new();
        while let Some(frame) = timeout(stall, frames.message()).await.map_err(stalled)?? {
            if stored.len() + frame.data.len() > most {
                return Err(Status::data_loss("the replica sent more bytes than the record allows"));
            }
            stored.extend_from_slice(&frame.data);
        }
        Ok(stored.into())
    }
}

/// How many bytes an index may take compressed. Not the record's own number: a copy that was restored
/// by another version of the compressor may be a little longer.
fn stored_max(index: IndexRef) -> usize {
    let plain = usize::try_from(index.plain_len).unwrap_or(usize::MAX).min(ENCODED_PLAIN_MAX);
    plain + plain / 128 + 1024
}

/// Inflates and hashes an index on a blocking thread.
async fn verify(digest: Digest, stored: Vec<u8>) -> Result<Vec<u8>, FetchError> {
    let opened = tokio::task::spawn_blocking(move || store::verify::open_index(&digest, &stored)).await;
    match opened {
        Ok(Ok(plain)) => Ok(plain),
        Ok(Err(corrupt)) => {
            metrics::index_corrupt();
            tracing::warn!(index = %digest, error = %corrupt, "dropped a corrupt index");
            Err(FetchError::Corrupt(digest))
        }
        Err(stopped) => Err(FetchError::unavailable(digest, stopped)),
    }
}
