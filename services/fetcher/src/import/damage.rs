//! Which of an image's chunks are missing or not what their names say.

use std::collections::HashSet;

use futures::{StreamExt, TryStreamExt, stream};
use image::{Digest, LayerRecord};
use store::{ProjectStore, StoreError, verify};

/// Chunks read back at the same time: some 16 MiB of memory.
const READS_AT_ONCE: usize = 8;

/// Reads back the chunks of layers, each distinct one once.
#[derive(Debug)]
pub(super) struct ReadBack<'a> {
    project: &'a ProjectStore,
    seen: HashSet<Digest>,
    damaged: HashSet<Digest>,
}

impl ReadBack<'_> {
    pub(super) fn new(project: &ProjectStore) -> ReadBack<'_> {
        ReadBack { project, seen: HashSet::new(), damaged: HashSet::new() }
    }

    /// Whether a chunk of the layer is damaged: the layer is to be read again.
    pub(super) async fn finds_damage(&mut self, layer: &LayerRecord) -> Result<bool, StoreError> {
        let digests = || layer.chunks.iter().map(|chunk| chunk.digest);
        let new = digests().filter(|digest| self.seen.insert(*digest));
        let checks: Vec<_> = new.map(|digest| check(self.project, digest)).collect();
        let damaged: Vec<Digest> = stream::iter(checks)
            .buffer_unordered(READS_AT_ONCE)
            .try_filter_map(|damaged| std::future::ready(Ok(damaged)))
            .try_collect()
            .await?;
        self.damaged.extend(damaged);
        Ok(digests().any(|digest| self.damaged.contains(&digest)))
    }

    /// All that was found.
    pub(super) fn into_damaged(self) -> HashSet<Digest> {
        self.damaged
    }
}

/// The digest, if its chunk is damaged.
async fn check(project: &ProjectStore, digest: Digest) -> Result<Option<Digest>, StoreError> {
    let stored = match project.chunk(digest).await {
        Ok(stored) => stored,
        Err(error) if error.is_not_found() => {
            tracing::warn!(%digest, "a chunk is missing");
            return Ok(Some(digest));
        }
        Err(error) => return Err(error),
    };
    let opened = tokio::task::spawn_blocking(move || verify::open_chunk(&digest, &stored)).await;
    match opened {
        Ok(Ok(_)) => Ok(None),
        Ok(Err(corrupt)) => {
            tracing::warn!(%digest, %corrupt, "a chunk is corrupt");
            Ok(Some(digest))
        }
        Err(error) => Err(StoreError::Other {
            operation: "verify chunk",
            object: digest.to_string(),
            reason: error.to_string(),
        }),
    }
}
