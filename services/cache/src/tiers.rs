//! Memory and disk, each under a byte budget.
//!
//! On disk an entry carries a BLAKE3 digest of its own over its name and its stored bytes. It is
//! checked when the entry is read, so that what the disk spoilt is as good as absent. Indexes stay in
//! memory: they are read once per node, and some are larger than the disk tier's blocks.

use std::io::{Read, Write};
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use foyer::{
    BlockEngineConfig, Code, DeviceBuilder, Error, ErrorKind, FsDeviceBuilder, HybridCache,
    HybridCacheBuilder, HybridCachePolicy, HybridCacheProperties, Location, RecoverMode, Source,
};
use image::Digest;
use image::limits::CHUNK_STORED_MAX;
use store::Index;

use crate::config::Config;
use crate::meters;

/// What an entry costs beside its bytes.
const ENTRY_OVERHEAD: usize = 256;
/// An index that would take more than this part of the memory budget is not kept.
const INDEX_SHARE: usize = 8;
/// A project's name has at most this many bytes; a longer one on disk is a spoilt entry.
const PROJECT_MAX: usize = 255;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Chunk,
    Index(Index),
}

/// Content of one project.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Name {
    pub(crate) project: Arc<str>,
    pub(crate) kind: Kind,
    pub(crate) digest: Digest,
}

/// What is kept under a name: the bytes as the store has them, verified.
#[derive(Clone, Debug)]
struct Kept {
    digest: Digest,
    stored: Bytes,
}

#[derive(Debug)]
pub(crate) struct Tiers {
    cache: HybridCache<Name, Kept>,
    index_max: usize,
}

/// How the names of the disk tier's files begin.
const DISK_FILES: &str = "foyer-";

/// Which tier had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    Memory,
    Disk,
}

impl Tiers {
    pub(crate) async fn open(config: &Config) -> anyhow::Result<Tiers> {
        let memory = usize::try_from(config.memory.as_u64()).context("cache.memory")?;
        let builder = HybridCacheBuilder::new()
            .with_name("content")
            .with_policy(HybridCachePolicy::WriteOnInsertion)
            // What is to be on disk is on its way there since it was inserted.
            .with_flush_on_close(false)
            .memory(memory)
            .with_weighter(|_: &Name, kept: &Kept| kept.stored.len() + ENTRY_OVERHEAD)
            .storage();
        let builder = match &config.disk {
            None => builder,
            Some(disk) => {
                let opening = || format!("opening the cache's disk tier {}", disk.path.display());
                lifecycle::private::make(&disk.path).with_context(opening)?;
                lifecycle::private::close_own(&disk.path, |name| name.starts_with(DISK_FILES));
                let capacity = usize::try_from(disk.capacity.as_u64()).with_context(opening)?;
                let device = FsDeviceBuilder::new(&disk.path).with_capacity(capacity).build();
                let engine = BlockEngineConfig::new(device.with_context(opening)?);
                builder.with_engine_config(engine).with_recover_mode(RecoverMode::Quiet)
            }
        };
        let cache = builder.build().await.context("opening the cache's tiers")?;
        Ok(Tiers { cache, index_max: memory / INDEX_SHARE })
    }

    /// What memory holds; never waits.
    pub(crate) fn memory(&self, name: &Name) -> Option<Bytes> {
        self.cache.memory().get(name).map(|entry| entry.stored.clone())
    }

    /// What memory or disk holds. A disk that fails is a disk that has nothing.
    pub(crate) async fn get(&self, name: &Name) -> Option<(Bytes, Tier)> {
        let entry = match self.cache.get(name).await {
            Ok(entry) => entry?,
            Err(error) => {
                tracing::warn!(%error, "reading the cache's disk tier failed");
                self.cache.remove(name);
                return None;
            }
        };
        if entry.digest != name.digest {
            metrics::counter!(meters::CORRUPT, "place" => "disk").increment(1);
            self.cache.remove(name);
            return None;
        }
        let tier = if entry.source() == Source::Disk { Tier::Disk } else { Tier::Memory };
        Some((entry.stored.clone(), tier))
    }

    /// Whether something may be kept under this name; a disk that was asked about may be wrong.
    pub(crate) fn may_hold(&self, name: &Name) -> bool {
        self.cache.contains(name)
    }

    /// Keeps bytes that were verified.
    pub(crate) fn keep(&self, name: &Name, stored: Bytes) {
        let kept = Kept { digest: name.digest, stored };
        match name.kind {
            Kind::Chunk => drop(self.cache.insert(name.clone(), kept)),
            Kind::Index(_) if kept.stored.len() <= self.index_max => {
                let memory_only = HybridCacheProperties::default().with_location(Location::InMem);
                drop(self.cache.insert_with_properties(name.clone(), kept, memory_only));
            }
            Kind::Index(_) => {}
        }
    }

    /// Writes out what is on its way to the disk.
    pub(crate) async fn close(&self) {
        if let Err(error) = self.cache.close().await {
            tracing::warn!(%error, "closing the cache's disk tier failed");
        }
    }
}

impl Kind {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Kind::Chunk => "chunk",
            Kind::Index(Index::Tree) => "tree",
            Kind::Index(Index::Map) => "map",
        }
    }

    fn number(self) -> u8 {
        match self {
            Kind::Chunk => 0,
            Kind::Index(Index::Tree) => 1,
            Kind::Index(Index::Map) => 2,
        }
    }

    fn of_number(number: u8) -> Option<Kind> {
        [Kind::Chunk, Kind::Index(Index::Tree), Kind::Index(Index::Map)]
            .into_iter()
            .find(|kind| kind.number() == number)
    }
}

/// `kind (1) | digest (32) | length of project (1) | project`
impl Code for Name {
    fn encode(&self, writer: &mut impl Write) -> Result<(), Error> {
        let length = u8::try_from(self.project.len()).map_err(|_| spoilt("project"))?;
        let parts = [&[self.kind.number()], &self.digest.as_bytes()[..], &[length], self.project.as_bytes()];
        parts.iter().try_for_each(|part| writer.write_all(part)).map_err(Error::io_error)
    }

    fn decode(reader: &mut impl Read) -> Result<Name, Error> {
        let kind = Kind::of_number(array::<1>(reader)?[0]).ok_or_else(|| spoilt("kind"))?;
        let digest = Digest::from_bytes(array(reader)?);
        let mut project = vec![0; usize::from(array::<1>(reader)?[0])];
        reader.read_exact(&mut project).map_err(Error::io_error)?;
        let project = String::from_utf8(project).map_err(|_| spoilt("project"))?;
        Ok(Name { project: project.into(), kind, digest })
    }

    fn estimated_size(&self) -> usize {
        1 + 32 + 1 + self.project.len().min(PROJECT_MAX)
    }
}

/// `digest (32) | check (32) | length (4, little endian) | stored bytes`
impl Code for Kept {
    fn encode(&self, writer: &mut impl Write) -> Result<(), Error> {
        let length = u32::try_from(self.stored.len()).map_err(|_| spoilt("length"))?.to_le_bytes();
        let check = self.check();
        let parts = [&self.digest.as_bytes()[..], check.as_bytes(), &length, &self.stored];
        parts.iter().try_for_each(|part| writer.write_all(part)).map_err(Error::io_error)
    }

    fn decode(reader: &mut impl Read) -> Result<Kept, Error> {
        let digest = Digest::from_bytes(array(reader)?);
        let check = blake3::Hash::from_bytes(array(reader)?);
        let length = u32::from_le_bytes(array(reader)?) as usize;
        if length > CHUNK_STORED_MAX {
            return Err(spoilt("length"));
        }
        let mut stored = vec![0; length];
        reader.read_exact(&mut stored).map_err(Error::io_error)?;
        let kept = Kept { digest, stored: stored.into() };
        if kept.check() != check {
            metrics::counter!(meters::CORRUPT, "place" => "disk").increment(1);
            return Err(spoilt("content"));
        }
        Ok(kept)
    }

    fn estimated_size(&self) -> usize {
        32 + 32 + 4 + self.stored.len()
    }
}

impl Kept {
    fn check(&self) -> blake3::Hash {
        blake3::Hasher::new().update(self.digest.as_bytes()).update(&self.stored).finalize()
    }
}

fn array<const N: usize>(reader: &mut impl Read) -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes).map_err(Error::io_error)?;
    Ok(bytes)
}

fn spoilt(what: &str) -> Error {
    Error::new(ErrorKind::Parse, format!("spoilt entry: {what}"))
}

#[cfg(test)]
mod tests;
