//! Chunks on their way from the scan to the store: looked up, compressed, put.
//!
//! Each chunk is a task. A scan waits for room in the shared budget before it starts one, so what
//! is in memory is bounded whatever the layers are; compression takes at most as many cores as there
//! are, and at most [`PUTS_AT_ONCE`] chunks talk to the store.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use image::Digest;
use image::limits::{CHUNK_PLAIN_MAX, CHUNK_STORED_MAX};
use image::scan::CutChunk;
use store::{ProjectStore, Put, StoreError};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::error::LayerFault;

/// Hides 20 ms of a remote store's latency at 250 MB/s.
const PUTS_AT_ONCE: usize = 16;
/// Chunks whose stored length one import remembers: 12 MiB. Beyond it the store is asked again.
const REMEMBERED_MAX: usize = 256 * 1024;
/// The budget is counted in units of this many bytes.
const UNIT: usize = 1024;

/// What all imports share.
#[derive(Clone, Debug)]
pub(crate) struct Compression {
    budget: Arc<Semaphore>,
    puts: Arc<Semaphore>,
    cores: Arc<Semaphore>,
    idle: Arc<Compressors>,
}

/// Compressors that nobody uses now: making one costs more than a small chunk.
struct Compressors {
    level: i32,
    idle: Mutex<Vec<zstd::bulk::Compressor<'static>>>,
}

/// Where one import's chunks go. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct ChunkWriter {
    compression: Compression,
    project: ProjectStore,
    /// Chunks that are in the store and must not stay as they are.
    corrupt: Arc<HashSet<Digest>>,
    stored: Arc<Mutex<HashMap<Digest, u32>>>,
    written: Arc<AtomicU64>,
    present: Arc<AtomicU64>,
}

/// The chunks of one layer; used on the scan's thread.
pub(super) struct LayerChunks {
    writer: ChunkWriter,
    runtime: Handle,
    tasks: JoinSet<Result<(Digest, u32), LayerFault>>,
    stored_lens: HashMap<Digest, u32>,
}

impl Compression {
    /// `memory` bytes for chunks, plain and compressed together.
    pub(crate) fn new(level: i32, memory: u64) -> Compression {
        let least = 2 * (CHUNK_PLAIN_MAX + CHUNK_STORED_MAX) / UNIT;
        let units = usize::try_from(memory).unwrap_or(usize::MAX) / UNIT;
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Compression {
            budget: Arc::new(Semaphore::new(units.clamp(least, Semaphore::MAX_PERMITS))),
            puts: Arc::new(Semaphore::new(PUTS_AT_ONCE)),
            cores: Arc::new(Semaphore::new(cores)),
            idle: Arc::new(Compressors { level, idle: Mutex::default() }),
        }
    }

    async fn compress(&self, plain: Vec<u8>) -> Result<Vec<u8>, LayerFault> {
        let _core = self.cores.acquire().await.map_err(internal)?;
        let compressors = self.idle.clone();
        tokio::task::spawn_blocking(move || compressors.compress(&plain))
            .await
            .map_err(internal)?
            .map_err(internal)
    }
}

impl Compressors {
    fn compress(&self, plain: &[u8]) -> std::io::Result<Vec<u8>> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut compressor = match idle {
            Some(compressor) => compressor,
            None => zstd::bulk::Compressor::new(self.level)?,
        };
        let stored = compressor.compress(plain);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(compressor);
        stored
    }
}

impl std::fmt::Debug for Compressors {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Compressors").field("level", &self.level).finish_non_exhaustive()
    }
}

impl ChunkWriter {
    pub(super) fn new(
        compression: Compression,
        project: ProjectStore,
        corrupt: HashSet<Digest>,
    ) -> ChunkWriter {
        ChunkWriter {
            compression,
            project,
            corrupt: Arc::new(corrupt),
            stored: Arc::default(),
            written: Arc::default(),
            present: Arc::default(),
        }
    }

    /// Begins a layer. To be called inside the runtime that is to run the tasks.
    pub(super) fn layer(&self) -> LayerChunks {
        LayerChunks {
            writer: self.clone(),
            runtime: Handle::current(),
            tasks: JoinSet::new(),
            stored_lens: HashMap::new(),
        }
    }

    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    pub(super) fn present(&self) -> u64 {
        self.present.load(Ordering::Relaxed)
    }

    /// Makes sure that the chunk is in the store; its stored length.
    async fn store(&self, chunk: CutChunk) -> Result<u32, LayerFault> {
        let _put = self.compression.puts.acquire().await.map_err(internal)?;
        let CutChunk { digest, plain } = chunk;
        let replace = self.corrupt.contains(&digest);
        if !replace && let Some(len) = self.stored_len(digest).await? {
            self.present.fetch_add(1, Ordering::Relaxed);
            return Ok(len);
        }
        let stored = self.compression.compress(plain).await?;
        let len = u32::try_from(stored.len()).map_err(internal)?;
        let stored = Bytes::from(stored);
        if replace {
            self.project.replace_chunk(digest, stored).await?;
        } else if self.project.put_chunk(digest, stored).await? == Put::Present {
            // Somebody else was faster, and may compress differently.
            self.present.fetch_add(1, Ordering::Relaxed);
            let vanished = || LayerFault::Internal(format!("chunk {digest} went away while it was stored"));
            return self.stored_len(digest).await?.ok_or_else(vanished);
        }
        self.written.fetch_add(1, Ordering::Relaxed);
        self.remember(digest, len);
        Ok(len)
    }

    /// The length of a chunk that is in the store. One that cannot be a chunk's is not there.
    async fn stored_len(&self, digest: Digest) -> Result<Option<u32>, StoreError> {
        let remembered = self.stored.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).copied();
        if remembered.is_some() {
            return Ok(remembered);
        }
        let Some(len) = self.project.chunk_len(digest).await? else { return Ok(None) };
        let Some(len) = u32::try_from(len).ok().filter(|len| (1..=CHUNK_STORED_MAX as u32).contains(len))
        else {
            tracing::warn!(%digest, len, "a stored chunk has an impossible length; storing it again");
            self.project.delete_chunk(digest).await?;
            return Ok(None);
        };
        self.remember(digest, len);
        Ok(Some(len))
    }

    fn remember(&self, digest: Digest, len: u32) {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        if stored.len() < REMEMBERED_MAX {
            stored.insert(digest, len);
        }
    }
}

impl LayerChunks {
    /// Hands a chunk on; waits while there is no room. Fails when an earlier chunk could not be stored.
    pub(super) fn add(&mut self, chunk: CutChunk) -> Result<(), LayerFault> {
        while let Some(stored) = self.tasks.try_join_next() {
            self.note(stored)?;
        }
        let units = u32::try_from(2 * chunk.plain.len() / UNIT + 1).map_err(internal)?;
        let budget = self.writer.compression.budget.clone();
        let room = self.runtime.block_on(budget.acquire_many_owned(units)).map_err(internal)?;
        let writer = self.writer.clone();
        let store = async move {
            let digest = chunk.digest;
            let len = writer.store(chunk).await?;
            drop(room);
            Ok((digest, len))
        };
        self.tasks.spawn_on(store, &self.runtime);
        Ok(())
    }

    /// Waits until every chunk is stored; how long each became.
    pub(super) fn finish(mut self) -> Result<HashMap<Digest, u32>, LayerFault> {
        while let Some(stored) = self.runtime.clone().block_on(self.tasks.join_next()) {
            self.note(stored)?;
        }
        Ok(self.stored_lens)
    }

    fn note(
        &mut self,
        stored: Result<Result<(Digest, u32), LayerFault>, tokio::task::JoinError>,
    ) -> Result<(), LayerFault> {
        let (digest, len) = stored.map_err(internal)??;
        self.stored_lens.insert(digest, len);
        Ok(())
    }
}

fn internal(error: impl std::fmt::Display) -> LayerFault {
    LayerFault::Internal(error.to_string())
}
