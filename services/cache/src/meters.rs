//! The metrics of the cache; names are stable.

/// Chunks and indexes asked for, by `kind` (chunk, tree, map).
pub(crate) const REQUESTS: &str = "sluice_cache_requests_total";
/// Of those, where they came from, by `tier` (memory, disk, store).
pub(crate) const SERVED: &str = "sluice_cache_served_total";
/// Stored bytes sent to nodes.
pub(crate) const SERVED_BYTES: &str = "sluice_cache_served_bytes_total";
/// Of those asked for, what could not be served, by `reason` (missing, corrupt, unavailable).
pub(crate) const FAILED: &str = "sluice_cache_failed_total";
/// Content that did not match its name, by `place` (store, disk); never served.
pub(crate) const CORRUPT: &str = "sluice_cache_corrupt_total";
/// How long reading and verifying from the store took, in seconds.
pub(crate) const FILL_SECONDS: &str = "sluice_cache_fill_seconds";
/// Repairs that were asked of the fetcher.
pub(crate) const REPAIRS: &str = "sluice_cache_repairs_total";
/// Chunks that the store had lost and that were written back from here.
pub(crate) const HEALED: &str = "sluice_cache_healed_total";
/// Requests that were refused, by `reason`: no-grant, other-project, other-image, foreign-content, role, node, key, revoked.
pub(crate) const REFUSED: &str = "sluice_cache_refused_total";
/// How long it took to see whether a request for chunks may be served (grant, connection, revocations, the image's names), in seconds.
pub(crate) const CHECK_SECONDS: &str = "sluice_cache_check_seconds";
/// Memory for the names of what images consist of, in bytes.
pub(crate) const SCOPE_BYTES: &str = "sluice_cache_scope_bytes";
/// Streams being served.
pub(crate) const STREAMS: &str = "sluice_cache_streams";
