//! What a grant opens: the tree, the map and the chunks of its image, and nothing else of its project.
//!
//! ```text
//! grant --names--> tree, map          signed by the fetcher; in grants of older fetchers the image's record says it
//!                   map --names--> chunks
//! ```
//!
//! The names of an image's chunks are kept in memory, sorted, [`PREFIX`] bytes of each: nobody finds another digest that begins
//! with the same. They are read once per map, whoever asks for it meanwhile waits for the same reading, and what was used longest
//! ago goes when all together are more than their part of the memory budget.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use image::{Digest, ImageRecord, Map};
use prost::Message as _;
use proto::signed::{Domain, TrustedKeys};
use proto::{Grant, Refusal, Signed};
use store::{Index, StoreError, verify};
use tokio::sync::{OnceCell, Semaphore};
use tonic::Status;

use crate::content::{Content, Reader};
use crate::meters;
use crate::tiers::Kind;

/// Bytes of each digest that are kept.
const PREFIX: usize = 16;
/// The part of the memory budget that the names of all images may take beside the content itself.
const MEMORY_SHARE: u64 = 8;
/// Maps decoded at the same time: a large one takes some hundred MiB for a moment.
const DECODED_AT_ONCE: usize = 2;
/// What an entry costs beside its names.
const ENTRY_OVERHEAD: usize = 256;
/// Maps in the table; of more those that nobody has read yet are begun anew.
const SCOPES_MAX: usize = 16 * 1024;
/// Images whose grants do not name their indexes, and what their records said; of more all are forgotten.
const RECORDS_MAX: usize = 4096;

/// The indexes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Indexes {
    tree: Digest,
    map: Digest,
}

/// The names of an image's chunks.
#[derive(Debug)]
pub(crate) struct Chunks(Box<[[u8; PREFIX]]>);

#[derive(Debug)]
pub(crate) struct Scopes {
    trusted: TrustedKeys,
    bytes_max: usize,
    table: Mutex<Table>,
    records: Mutex<HashMap<Key, Indexes>>,
    decoding: Semaphore,
}

/// Project and manifest digest, or project and map.
type Key = (Arc<str>, String);

#[derive(Debug, Default)]
struct Table {
    scopes: HashMap<(Arc<str>, Digest), Entry>,
    bytes: usize,
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    chunks: Arc<OnceCell<Arc<Chunks>>>,
    bytes: usize,
    used: u64,
}

impl Scopes {
    pub(crate) fn new(trusted: TrustedKeys, memory: u64) -> Scopes {
        Scopes {
            trusted,
            bytes_max: usize::try_from(memory / MEMORY_SHARE).unwrap_or(usize::MAX),
            table: Mutex::default(),
            records: Mutex::default(),
            decoding: Semaphore::new(DECODED_AT_ONCE),
        }
    }

    /// Refuses a tree or a map that is not the image's.
    pub(crate) async fn check_index(
        &self,
        reader: &Reader,
        grant: &Grant,
        index: Index,
        digest: Digest,
    ) -> Result<(), Status> {
        let indexes = self.indexes(reader, grant).await?;
        let own = match index {
            Index::Tree => indexes.tree,
            Index::Map => indexes.map,
        };
        if own == digest { Ok(()) } else { Err(foreign(grant, Kind::Index(index), &digest)) }
    }

    /// Refuses all of `digests` as soon as one of them is no chunk of the image.
    pub(crate) async fn check_chunks(
        &self,
        content: &Content,
        reader: &Reader,
        grant: &Grant,
        digests: &[Digest],
    ) -> Result<(), Status> {
        if digests.is_empty() {
            return Ok(());
        }
        let map = self.indexes(reader, grant).await?.map;
        let chunks = self.chunks(content, reader, map).await?;
        match digests.iter().find(|digest| !chunks.holds(digest)) {
            None => Ok(()),
            Some(digest) => Err(foreign(grant, Kind::Chunk, digest)),
        }
    }

    /// What the grant's image consists of.
    async fn indexes(&self, reader: &Reader, grant: &Grant) -> Result<Indexes, Status> {
        match (Digest::try_from(&grant.tree[..]), Digest::try_from(&grant.map[..])) {
            (Ok(tree), Ok(map)) => Ok(Indexes { tree, map }),
            _ if grant.tree.is_empty() && grant.map.is_empty() => self.of_record(reader, grant).await,
            _ => Err(Status::unauthenticated("invalid grant: it names no tree and no map")),
        }
    }

    /// Of an image that was removed the record is kept as long as there is content of it, and who has a grant reads on.
    async fn of_record(&self, reader: &Reader, grant: &Grant) -> Result<Indexes, Status> {
        let (project, manifest) = (&reader.project, &grant.manifest_digest);
        let key = (Arc::from(project.name()), manifest.clone());
        if let Some(indexes) = lock(&self.records).get(&key) {
            return Ok(*indexes);
        }
        let stored = match project.image(manifest).await {
            Err(error) if error.is_not_found() => project.removed(manifest).await,
            stored => stored,
        };
        let stored = stored.map_err(|error| unread(manifest, &error))?;
        let untrusted = |reason: &dyn std::fmt::Display| {
            Status::data_loss(format!("the record of {manifest} is not believed: {reason}"))
        };
        let signed = Signed::decode(stored).map_err(|error| untrusted(&error))?;
        let payload = self.trusted.verify(Domain::ImageRecord, &signed).map_err(|error| untrusted(&error))?;
        let record = ImageRecord::decode(payload).map_err(|error| untrusted(&error))?;
        if record.manifest_digest != *manifest || record.project != project.name() {
            return Err(untrusted(&"it is of another image"));
        }
        let indexes = Indexes { tree: record.tree.digest, map: record.map.digest };
        let mut records = lock(&self.records);
        if records.len() >= RECORDS_MAX {
            records.clear();
        }
        records.insert(key, indexes);
        Ok(indexes)
    }

    async fn chunks(&self, content: &Content, reader: &Reader, map: Digest) -> Result<Arc<Chunks>, Status> {
        let key = (Arc::from(reader.project.name()), map);
        let cell = self.entry(&key);
        if let Some(chunks) = cell.get() {
            return Ok(chunks.clone());
        }
        let read = cell.get_or_try_init(|| self.read(content, reader, map)).await.cloned();
        match &read {
            Ok(chunks) => self.keep(&key, &cell, chunks),
            // Nothing is kept of what could not be read.
            Err(_) => drop(self.table().scopes.remove(&key)),
        }
        read
    }

    fn entry(&self, key: &(Arc<str>, Digest)) -> Arc<OnceCell<Arc<Chunks>>> {
        let mut table = self.table();
        table.uses += 1;
        if table.scopes.len() >= SCOPES_MAX {
            // Whose readers went away before it was read.
            table.scopes.retain(|_, entry| entry.bytes > 0);
        }
        let used = table.uses;
        let new = || Entry { chunks: Arc::default(), bytes: 0, used };
        let entry = table.scopes.entry(key.clone()).or_insert_with(new);
        entry.used = used;
        entry.chunks.clone()
    }

    /// Counts what was read, and makes room for it. The newest stays however large it is: else it would be read for each request.
    fn keep(&self, key: &(Arc<str>, Digest), cell: &Arc<OnceCell<Arc<Chunks>>>, chunks: &Chunks) {
        let mut table = self.table();
        let bytes = chunks.0.len() * PREFIX + ENTRY_OVERHEAD;
        match table.scopes.get_mut(key) {
            // Of those who waited for one reading the first counts it.
            Some(entry) if Arc::ptr_eq(&entry.chunks, cell) && entry.bytes == 0 => entry.bytes = bytes,
            _ => return,
        }
        table.bytes += bytes;
        while table.bytes > self.bytes_max {
            let others = table.scopes.iter().filter(|(other, entry)| *other != key && entry.bytes > 0);
            let Some(oldest) = others.min_by_key(|(_, entry)| entry.used).map(|(other, _)| other.clone())
            else {
                break;
            };
            if let Some(entry) = table.scopes.remove(&oldest) {
                table.bytes -= entry.bytes;
            }
        }
        metrics::gauge!(meters::SCOPE_BYTES).set(table.bytes as f64);
    }

    async fn read(&self, content: &Content, reader: &Reader, map: Digest) -> Result<Arc<Chunks>, Status> {
        let stored = content.get(reader, Kind::Index(Index::Map), map).await?;
        let _turn = self.decoding.acquire().await.map_err(|_| Status::unavailable("the cache is ending"))?;
        let read = tokio::task::spawn_blocking(move || {
            let plain = verify::open_index(&map, &stored)
                .map_err(|corrupt| Status::data_loss(corrupt.to_string()))?;
            let map = Map::decode(&plain).map_err(|error| Status::data_loss(error.to_string()))?;
            Ok(Arc::new(Chunks::of(map.chunks.iter().map(|chunk| &chunk.digest))))
        });
        read.await.unwrap_or_else(|error| Err(Status::unavailable(format!("reading the map {map}: {error}"))))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }
}

impl Chunks {
    fn of<'a>(digests: impl Iterator<Item = &'a Digest>) -> Chunks {
        let mut names: Vec<[u8; PREFIX]> = digests.map(prefix).collect();
        names.sort_unstable();
        names.dedup();
        Chunks(names.into())
    }

    fn holds(&self, digest: &Digest) -> bool {
        self.0.binary_search(&prefix(digest)).is_ok()
    }
}

fn prefix(digest: &Digest) -> [u8; PREFIX] {
    let mut prefix = [0; PREFIX];
    prefix.copy_from_slice(&digest.as_bytes()[..PREFIX]);
    prefix
}

/// Counted, and told to nobody but who asked: whether there is such content is not said.
fn foreign(grant: &Grant, kind: Kind, digest: &Digest) -> Status {
    metrics::counter!(meters::REFUSED, "reason" => "foreign-content").increment(1);
    tracing::warn!(
        project = grant.project, node = grant.node, image = grant.manifest_digest, kind = kind.label(), %digest,
        "refused content that the grant's image does not name"
    );
    Refusal::Denied.status(format!(
        "the {} {digest} is not of the image {}",
        kind.label(),
        grant.manifest_digest
    ))
}

fn unread(manifest: &str, error: &StoreError) -> Status {
    match error.is_not_found() {
        true => Status::not_found(format!("there is no record of {manifest}")),
        false => Status::unavailable(error.to_string()),
    }
}

fn lock<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change leaves it whole; a count that is off by one entry evicts a little too much.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_thousand_names_take_little_and_none_of_others_is_among_them() {
        let digest = |number: u32| Digest::of(&number.to_le_bytes());
        let digests: Vec<Digest> = (0..100_000).map(digest).collect();
        let chunks = Chunks::of(digests.iter().chain(&digests[..100]));
        assert_eq!(std::mem::size_of_val(&*chunks.0), 100_000 * PREFIX);
        assert!(digests.iter().all(|digest| chunks.holds(digest)));
        assert!((100_000..200_000).all(|number| !chunks.holds(&digest(number))));
        assert!(!Chunks::of([].iter()).holds(&digests[0]));
    }

    #[test]
    fn the_names_of_all_images_stay_within_their_budget_and_the_newest_stays() {
        let scopes = Scopes::new(TrustedKeys::default(), 8 * 1024 * MEMORY_SHARE);
        let keep = |number: u8, chunks: usize| {
            let key = (Arc::from("p"), Digest::of(&[number]));
            let cell = scopes.entry(&key);
            let names = Chunks(vec![[number; PREFIX]; chunks].into());
            scopes.keep(&key, &cell, &names);
            // Counted once, however many waited for it.
            scopes.keep(&key, &cell, &names);
            let table = scopes.table();
            let sum: usize = table.scopes.values().map(|entry| entry.bytes).sum();
            assert_eq!(sum, table.bytes);
            (table.scopes.len(), table.bytes)
        };
        for number in 0..3 {
            assert_eq!(keep(number, 100).0, usize::from(number) + 1);
        }
        // The first was used since.
        scopes.entry(&(Arc::from("p"), Digest::of(&[0])));
        let (count, bytes) = keep(3, 200);
        assert!(count == 3 && bytes <= 8 * 1024, "{count} {bytes}");
        assert!(scopes.table().scopes.contains_key(&(Arc::from("p"), Digest::of(&[0]))));
        let (count, bytes) = keep(4, 10_000);
        assert!(count == 1 && bytes > 8 * 1024, "{count} {bytes}");
    }
}
