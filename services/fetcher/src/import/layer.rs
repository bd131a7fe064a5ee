//! One layer, read once: from its source to the store.
//!
//! ```text
//! task: source --bytes--> thread: hash, inflate, hash --buffers--> thread: scan --chunks--> tasks: compress, put
//! ```
//!
//! Every arrow is a bounded queue. The record that comes out is of a layer whose blob and tar are
//! the promised ones: until then nothing names the chunks that were stored on the way.

use std::path::Path;

use futures::StreamExt;
use image::LayerRecord;
use image::scan::{LayerScanner, RecordBudget, ScanError, ScanLimits};
use tokio::sync::mpsc;
use tokio::task::{JoinError, spawn_blocking};

use super::chunks::LayerChunks;
use super::copies::Copy;
use super::error::LayerFault;
use super::inflate::{Hashed, Inflated, Stop, inflate};
use super::progress::{LayerMeter, Progress};
use crate::source::{BlobDigest, LayerDescriptor, Source};

/// Pieces of a blob (some 16 to 256 KiB each) between the network and the inflating thread.
const BLOB_QUEUE: usize = 16;
/// Buffers of 1 MiB between the inflating and the scanning thread.
const PLAIN_QUEUE: usize = 4;

/// Reads `layer`, stores its chunks and returns its record, verified and complete; a copy of it stays in the folder `copies`.
pub(super) async fn read(
    source: &Source,
    layer: &LayerDescriptor,
    copies: Option<&Path>,
    (limits, budget): (ScanLimits, RecordBudget),
    chunks: LayerChunks,
    meter: LayerMeter,
    progress: Progress,
) -> Result<LayerRecord, LayerFault> {
    let (blob_in, blob_out) = mpsc::channel(BLOB_QUEUE);
    let (plain_in, plain_out) = mpsc::channel(PLAIN_QUEUE);
    let inflating = spawn_blocking(move || inflate(blob_out, plain_in, limits.plain_max));
    let scanning =
        spawn_blocking(move || scan(plain_out, LayerScanner::within(limits, budget), chunks, &progress));
    let mut copy = match copies {
        Some(folder) => Copy::begin(folder, layer).await,
        None => None,
    };
    let reading = async { tokio::join!(feed(source, layer, blob_in, meter, &mut copy), inflating).1 };
    let (inflated, mut record) = both(reading, scanning, layer).await?;
    record.diff_id = inflated.tar.sha256;
    if let Some(copy) = copy {
        copy.keep().await;
    }
    Ok(record)
}

/// Waits for both threads. Where both fail, the cause is told, not its consequence.
async fn both(
    reading: impl Future<Output = Result<Result<Inflated, Stop>, JoinError>>,
    mut scanning: tokio::task::JoinHandle<Result<LayerRecord, LayerFault>>,
    layer: &LayerDescriptor,
) -> Result<(Inflated, LayerRecord), LayerFault> {
    tokio::pin!(reading);
    let (read, scanned) = tokio::select! {
        scanned = &mut scanning => {
            let scanned = match joined(scanned)? {
                // Nothing that is still to come could be its cause.
                Err(fault) if !may_be_the_blobs(&fault) => return Err(fault),
                scanned => scanned,
            };
            (joined(reading.await)?, scanned)
        }
        read = &mut reading => (joined(read)?, joined(scanning.await)?),
    };
    match read {
        Ok(inflated) => {
            check_blob(&inflated.blob, layer)?;
            check_diff_id(&inflated.tar, layer)?;
            Ok((inflated, scanned?))
        }
        Err(Stop::Fault(fault)) => Err(fault),
        Err(Stop::Malformed { fault, blob }) => {
            check_blob(&blob, layer)?;
            Err(fault)
        }
        Err(Stop::Unwanted { blob }) => {
            check_blob(&blob, layer)?;
            scanned?;
            Err(LayerFault::Internal("the scan ended before its input".into()))
        }
    }
}

/// Nonsense in the tar may come from a blob that is not the promised one; other faults do not.
fn may_be_the_blobs(fault: &LayerFault) -> bool {
    use ScanError::{OverBudget, RecordTooLong, TooLong, TooManyExtents, TooManyMembers};
    match fault {
        LayerFault::Scan(error) => {
            !matches!(error, TooLong(_) | TooManyMembers(_) | RecordTooLong | TooManyExtents | OverBudget(_))
        }
        _ => false,
    }
}

async fn feed(
    source: &Source,
    layer: &LayerDescriptor,
    blob: mpsc::Sender<Result<bytes::Bytes, crate::source::SourceError>>,
    mut meter: LayerMeter,
    copy: &mut Option<Copy>,
) {
    let mut stream = match source.blob(layer, 0).await {
        Ok(stream) => stream,
        Err(error) => {
            // Nobody listens only if the import has ended.
            let _ = blob.send(Err(error)).await;
            return;
        }
    };
    while let Some(piece) = stream.next().await {
        if let Ok(bytes) = &piece {
            meter.read(bytes.len() as u64);
            if let Some(kept) = copy
                && !kept.add(bytes).await
            {
                *copy = None;
            }
        }
        if blob.send(piece).await.is_err() {
            return;
        }
    }
    meter.done();
}

fn scan(
    mut plain: mpsc::Receiver<Vec<u8>>,
    mut scanner: LayerScanner,
    mut chunks: LayerChunks,
    progress: &Progress,
) -> Result<LayerRecord, LayerFault> {
    while let Some(buffer) = plain.blocking_recv() {
        scanner.push::<LayerFault>(&buffer, &mut |chunk| chunks.add(chunk))?;
        progress.plain(buffer.len() as u64);
    }
    let mut record = scanner.finish::<LayerFault>(&mut |chunk| chunks.add(chunk))?;
    let stored_lens = chunks.finish()?;
    record.set_stored_lens(&stored_lens).map_err(|error| LayerFault::Internal(error.to_string()))?;
    Ok(record)
}

fn check_blob(blob: &Hashed, layer: &LayerDescriptor) -> Result<(), LayerFault> {
    if blob.len != layer.size {
        return Err(LayerFault::Size { found: blob.len, expected: layer.size });
    }
    let found = BlobDigest::from_bytes(blob.sha256).to_string();
    if found != layer.digest { Err(LayerFault::Digest { found }) } else { Ok(()) }
}

fn check_diff_id(tar: &Hashed, layer: &LayerDescriptor) -> Result<(), LayerFault> {
    let found = BlobDigest::from_bytes(tar.sha256).to_string();
    if found != layer.diff_id {
        return Err(LayerFault::DiffId { found, expected: layer.diff_id.clone() });
    }
    Ok(())
}

fn joined<T>(outcome: Result<T, JoinError>) -> Result<T, LayerFault> {
    outcome.map_err(|error| LayerFault::Internal(error.to_string()))
}
