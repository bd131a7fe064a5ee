//! The ledger on the disk: one redb table, name → snapshot as JSON.
//!
//! JSON, so that a later version may add fields and an operator can read it. What cannot be read is
//! skipped with a warning: one bad entry must not stop the others.
//!
//! On a disk that is full, or read-only, the table is opened all the same: from a copy in memory, if need be. redb refuses every
//! change after one that the disk refused, so the file is opened again by the next change.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use redb::backends::InMemoryBackend;
use redb::{
    Builder, Database, ReadableDatabase as _, ReadableTable as _, StorageBackend as _, TableDefinition,
};
use rustix::fs::FallocateFlags;

use super::Snapshot;

const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots.v1");
/// Of the database's own page cache, in bytes: the ledger keeps everything in memory itself.
const CACHE: usize = 256 * 1024;

#[derive(Debug)]
pub(super) struct Table {
    file: PathBuf,
    /// Absent after a change that failed, and where the file cannot be written.
    database: Option<Database>,
    /// Bytes of the file that have room on the disk.
    reserved: u64,
}

/// What a table holds.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) snapshots: BTreeMap<String, Snapshot>,
    /// How many cannot be read, at least.
    pub(super) unread: usize,
}

impl Table {
    /// Opens a table, or makes one. A file that is damaged is put aside: without a ledger no container of the node could start,
    /// and none could read on. As long as it lies there, what it named is not known.
    pub(super) fn open(file: &Path) -> anyhow::Result<(Table, Found)> {
        let opening = || format!("cannot open the snapshots' state {}", file.display());
        let aside = file.with_added_extension("damaged");
        let (table, mut found) = match read(file).with_context(opening)? {
            Some(read) => read,
            None => {
                let told = "the snapshots' state is damaged: beginning a new one. As long as the old one is kept, no folder is cleaned up";
                tracing::error!(kept = %aside.display(), "{told}");
                std::fs::rename(file, &aside).with_context(opening)?;
                read(file).and_then(|new| new.context("a new one cannot be read")).with_context(opening)?
            }
        };
        found.unread += usize::from(aside.exists());
        Ok((table, found))
    }

    fn create(file: &Path) -> Result<(Table, Found), redb::Error> {
        let opened = || {
            let database = create_database(file)?;
            // Made only where it is not there yet: a full disk may have no room for a write, and is emptied through this table.
            let found = match load(&database) {
                Err(redb::Error::TableDoesNotExist(_)) => {
                    write(&database, &[], &[]).map(|()| Found::default())
                }
                found => found,
            };
            Ok((Some(database), found?))
        };
        let (database, found) = match opened() {
            Err(redb::Error::Io(error)) if cannot_be_written(&error) => {
                tracing::error!(%error, "the snapshots' state cannot be written: what is there is served, and nothing can change");
                (None, read_copy(file)?)
            }
            opened => opened?,
        };
        let mut table = Table { file: file.to_owned(), database, reserved: 0 };
        table.reserve();
        Ok((table, found))
    }

    /// Takes `remove` away and puts `put` there, all or nothing, before it returns. `known` is what all changes so far came to: of one
    /// that failed the file may have more.
    pub(super) fn change(
        &mut self,
        known: &BTreeMap<String, Snapshot>,
        remove: Option<&str>,
        put: &[(&str, &Snapshot)],
    ) -> Result<(), redb::Error> {
        let database = match self.database.take() {
            Some(database) => database,
            None => reopen(&self.file, known)?,
        };
        write(&database, remove.as_slice(), put)?;
        self.database = Some(database);
        self.reserve();
        Ok(())
    }

    /// Takes room on the disk for all of the file, which has holes: removing snapshots is what makes room on a full disk, and
    /// has to be written down there.
    fn reserve(&mut self) {
        let reserve = || {
            let len = fs::metadata(&self.file)?.len();
            if len > self.reserved && self.database.is_some() {
                let file = File::options().write(true).open(&self.file)?;
                rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len)?;
            }
            Ok::<_, io::Error>(len)
        };
        match reserve() {
            Ok(len) => self.reserved = len,
            Err(error) => tracing::debug!(%error, "no room is kept for changes of the snapshots' state"),
        }
    }
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    builder
}

/// Opens the file, or makes it. Half a file would be a damaged one.
fn create_database(file: &Path) -> Result<Database, redb::DatabaseError> {
    let is_new = fs::metadata(file).map_or(true, |found| found.len() == 0);
    builder().create(file).inspect_err(|_| {
        if is_new {
            fs::remove_file(file).ok();
        }
    })
}

fn load(database: &Database) -> Result<Found, redb::Error> {
    let table = database.begin_read()?.open_table(SNAPSHOTS)?;
    let mut found = Found::default();
    for entry in table.iter()? {
        let (name, value) = match entry {
            Ok((name, value)) => (name.value().to_owned(), value.value().to_vec()),
            Err(error) => {
                tracing::error!(%error, "skipped a snapshot that cannot be read");
                found.unread += 1;
                continue;
            }
        };
        match serde_json::from_slice(&value) {
            Ok(snapshot) => {
                found.snapshots.insert(name, snapshot);
            }
            Err(error) => {
                tracing::error!(snapshot = name, %error, "skipped a snapshot that makes no sense");
                found.unread += 1;
            }
        }
    }
    Ok(found)
}

fn write(database: &Database, remove: &[&str], put: &[(&str, &Snapshot)]) -> Result<(), redb::Error> {
    let writing = database.begin_write()?;
    {
        let mut table = writing.open_table(SNAPSHOTS)?;
        for name in remove {
            table.remove(*name)?;
        }
        for (name, snapshot) in put {
            let value =
                serde_json::to_vec(snapshot).map_err(|error| redb::Error::Io(io::Error::other(error)))?;
            table.insert(*name, value.as_slice())?;
        }
    }
    writing.commit()?;
    Ok(())
}

/// The file, after a change that failed: what `known` says of it, and nothing of that change.
fn reopen(file: &Path, known: &BTreeMap<String, Snapshot>) -> Result<Database, redb::Error> {
    let database = create_database(file)?;
    let found = match load(&database) {
        Err(redb::Error::TableDoesNotExist(_)) => Found::default(),
        found => found?,
    };
    let surplus: Vec<&str> =
        found.snapshots.keys().filter(|name| !known.contains_key(*name)).map(String::as_str).collect();
    let missing = known.iter().filter(|(name, snapshot)| found.snapshots.get(*name) != Some(*snapshot));
    let missing: Vec<(&str, &Snapshot)> = missing.map(|(name, snapshot)| (name.as_str(), snapshot)).collect();
    if !surplus.is_empty() || !missing.is_empty() {
        write(&database, &surplus, &missing)?;
    }
    Ok(database)
}

/// What a file holds that cannot be written, not even to repair it.
fn read_copy(file: &Path) -> Result<Found, redb::Error> {
    let bytes = match fs::read(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        read => read?,
    };
    if bytes.is_empty() {
        return Ok(Found::default());
    }
    let copy = InMemoryBackend::new();
    copy.set_len(bytes.len() as u64)?;
    copy.write(0, &bytes)?;
    match load(&builder().create_with_backend(copy)?) {
        Err(redb::Error::TableDoesNotExist(_)) => Ok(Found::default()),
        found => found,
    }
}

fn cannot_be_written(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem)
}

/// What the file holds, or a new one; none when its content is to blame, and not the disk, nor that somebody else has it open.
fn read(file: &Path) -> anyhow::Result<Option<(Table, Found)>> {
    // redb finds most damage by checksums, and some by a panic.
    let created = match catch_unwind(|| Table::create(file)) {
        Ok(created) => created,
        Err(_) => return Ok(None),
    };
    match created {
        Err(redb::Error::Corrupted(_) | redb::Error::RepairAborted) => Ok(None),
        Err(redb::Error::Io(error))
            if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            Ok(None)
        }
        created => Ok(Some(created?)),
    }
}

#[cfg(test)]
impl Table {
    pub(super) fn put_raw(&self, name: &str, value: &[u8]) {
        let writing = self.database.as_ref().unwrap().begin_write().unwrap();
        writing.open_table(SNAPSHOTS).unwrap().insert(name, value).unwrap();
        writing.commit().unwrap();
    }
}
