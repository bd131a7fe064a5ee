//! The ledger on the disk: one redb table, name → snapshot as JSON.
//!
//! JSON, so that a later version may add fields and an operator can read it. What cannot be read is
//! skipped with a warning: one bad entry must not stop the others.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::panic::catch_unwind;
use std::path::Path;

use anyhow::Context as _;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use super::Snapshot;

const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots.v1");
/// Of the database's own page cache, in bytes: the ledger keeps everything in memory itself.
const CACHE: usize = 256 * 1024;

#[derive(Debug)]
pub(super) struct Table {
    database: Database,
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
        let table = Table { database: Database::builder().set_cache_size(CACHE).create(file)? };
        // Made only where it is not there yet: a full disk may have no room for a write, and is emptied through this table.
        let found = match table.load() {
            Err(redb::Error::TableDoesNotExist(_)) => table.change(None, &[]).map(|()| Found::default()),
            found => found,
        };
        Ok((table, found?))
    }

    fn load(&self) -> Result<Found, redb::Error> {
        let table = self.database.begin_read()?.open_table(SNAPSHOTS)?;
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

    /// Takes `remove` away and puts `put` there, all or nothing, before it returns.
    pub(super) fn change(&self, remove: Option<&str>, put: &[(&str, &Snapshot)]) -> Result<(), redb::Error> {
        let writing = self.database.begin_write()?;
        {
            let mut table = writing.open_table(SNAPSHOTS)?;
            if let Some(name) = remove {
                table.remove(name)?;
            }
            for (name, snapshot) in put {
                let value = serde_json::to_vec(snapshot)
                    .map_err(|error| redb::Error::Io(std::io::Error::other(error)))?;
                table.insert(*name, value.as_slice())?;
            }
        }
        writing.commit()?;
        Ok(())
    }
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
        let writing = self.database.begin_write().unwrap();
        writing.open_table(SNAPSHOTS).unwrap().insert(name, value).unwrap();
        writing.commit().unwrap();
    }
}
