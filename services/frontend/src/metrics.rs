//! What the frontend counts: every name, its unit and its meaning.

use metrics::{counter, gauge, histogram};

use crate::content::Class;

/// Chunks that arrived, by class.
const CHUNKS_RECEIVED: &str = "sluice_frontend_chunks_received_total";
/// Stored bytes that arrived, by class.
const BYTES_RECEIVED: &str = "sluice_frontend_received_bytes_total";
/// Seconds from asking for a chunk to having it verified, by class.
const CHUNK_SECONDS: &str = "sluice_frontend_chunk_seconds";
/// Chunks whose bytes did not match their name. Never shown to anybody.
const CHUNKS_CORRUPT: &str = "sluice_frontend_chunks_corrupt_total";
/// Trees and maps whose bytes did not match their name.
const INDEXES_CORRUPT: &str = "sluice_frontend_indexes_corrupt_total";
/// Requests for content that a cache refused for want of quota.
const QUOTA_REFUSED: &str = "sluice_frontend_quota_refused_total";
/// Reads of processes that waited for a quota.
const READS_SHORT: &str = "sluice_frontend_reads_waited_for_quota_total";
/// Chunk streams that stopped early, by reason: stalled, refused, quota, protocol, unwanted.
const REPLICA_FAILURES: &str = "sluice_frontend_replica_failures_total";
/// Chunks and indexes that came from the object store, past the replicas.
const STORE_READS: &str = "sluice_frontend_store_reads_total";
/// Reads through the remote file system, by where their bytes were: memory, disk, network.
const READS: &str = "sluice_frontend_reads_total";
/// Reads that failed after everything was tried.
const READS_FAILED: &str = "sluice_frontend_reads_failed_total";
/// Chunks that were verified but not written, because the disk was full or too slow.
const WRITES_SKIPPED: &str = "sluice_frontend_writes_skipped_total";
/// Bytes on disk under the state folder, by allocated blocks.
const DISK_BYTES: &str = "sluice_frontend_disk_bytes";
/// Bytes that eviction took off the disk.
const EVICTED_BYTES: &str = "sluice_frontend_evicted_bytes_total";
/// Images of which everything is local.
const IMAGES_COMPLETED: &str = "sluice_frontend_images_completed_total";
/// Images that were opened only once others were complete, for want of memory.
const OPENS_WAITED: &str = "sluice_frontend_opens_waited_total";
/// Images that were not opened for want of memory, and pulled without streaming.
const OPENS_REFUSED: &str = "sluice_frontend_opens_refused_total";
/// Layers that containerd did not have to fetch.
const LAYERS_STREAMED: &str = "sluice_frontend_layers_streamed_total";
/// Layers that containerd fetched as ever, by reason.
const LAYERS_ORDINARY: &str = "sluice_frontend_layers_ordinary_total";

pub(crate) fn open_waited() {
    counter!(OPENS_WAITED).increment(1);
}

pub(crate) fn open_refused() {
    counter!(OPENS_REFUSED).increment(1);
}

pub(crate) fn layer_streamed() {
    counter!(LAYERS_STREAMED).increment(1);
}

pub(crate) fn layer_ordinary(reason: &'static str) {
    counter!(LAYERS_ORDINARY, "reason" => reason).increment(1);
}

pub(crate) fn chunk_received(class: Class, stored_len: u32, seconds: f64) {
    let class = label(class);
    counter!(CHUNKS_RECEIVED, "class" => class).increment(1);
    counter!(BYTES_RECEIVED, "class" => class).increment(u64::from(stored_len));
    histogram!(CHUNK_SECONDS, "class" => class).record(seconds);
}

pub(crate) fn chunk_corrupt() {
    counter!(CHUNKS_CORRUPT).increment(1);
}

pub(crate) fn index_corrupt() {
    counter!(INDEXES_CORRUPT).increment(1);
}

pub(crate) fn replica_failed(reason: &'static str) {
    counter!(REPLICA_FAILURES, "reason" => reason).increment(1);
}

pub(crate) fn quota_refused() {
    counter!(QUOTA_REFUSED).increment(1);
}

pub(crate) fn read_waits_for_quota() {
    counter!(READS_SHORT).increment(1);
}

pub(crate) fn read_from_store() {
    counter!(STORE_READS).increment(1);
}

pub(crate) fn read(from: &'static str) {
    counter!(READS, "from" => from).increment(1);
}

pub(crate) fn read_failed() {
    counter!(READS_FAILED).increment(1);
}

pub(crate) fn write_skipped() {
    counter!(WRITES_SKIPPED).increment(1);
}

pub(crate) fn disk_used(bytes: u64) {
    gauge!(DISK_BYTES).set(bytes as f64);
}

pub(crate) fn evicted(bytes: u64) {
    counter!(EVICTED_BYTES).increment(bytes);
}

pub(crate) fn image_completed() {
    counter!(IMAGES_COMPLETED).increment(1);
}

fn label(class: Class) -> &'static str {
    match class {
        Class::Demand => "demand",
        Class::Prefetch => "prefetch",
        Class::Background => "background",
    }
}
