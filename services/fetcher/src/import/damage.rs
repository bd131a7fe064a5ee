//! Which of an image's chunks are missing or not what their names say.

use std::collections::HashSet;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use image::{Digest, LayerRecord};
use store::{ProjectStore, StoreError, verify};

/// Chunks read back at the same time: some 16 MiB of memory.
const READS_AT_ONCE: usize = 8;

/// Reads back the chunks of all known layers. A layer with damage is known no longer; what is
/// damaged is returned, for those layers to be read again.
pub(super) async fn forget_damaged(
    project: &ProjectStore,
    known: &mut [Option<Arc<LayerRecord>>],
) -> Result<HashSet<Digest>, StoreError> {
    let distinct: HashSet<Digest> =
        known.iter().flatten().flat_map(|layer| layer.chunks.iter().map(|chunk| chunk.digest)).collect();
    let checks: Vec<_> = distinct.into_iter().map(|digest| check(project, digest)).collect();
    let damaged: HashSet<Digest> = stream::iter(checks)
        .buffer_unordered(READS_AT_ONCE)
        .try_filter_map(|damaged| std::future::ready(Ok(damaged)))
        .try_collect()
        .await?;
    for layer in known {
        let hit = layer
            .as_ref()
            .is_some_and(|layer| layer.chunks.iter().any(|chunk| damaged.contains(&chunk.digest)));
        if hit {
            *layer = None;
        }
    }
    Ok(damaged)
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
