//! The ledger on the disk: one redb table, name → snapshot as JSON.
//!
//! JSON, so that a later version may add fields and an operator can read it. What cannot be read is
//! skipped with a warning: one bad entry must not stop the others.

use std::collections::BTreeMap;
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

impl Table {
    pub(super) fn open(file: &Path) -> anyhow::Result<Table> {
        let database = Database::builder()
            .set_cache_size(CACHE)
            .create(file)
            .with_context(|| format!("cannot open the snapshots' state {}", file.display()))?;
        let table = Table { database };
        // Makes the table, so that reading finds it.
        table.change(None, &[]).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(table)
    }

    /// All snapshots that can be read, and how many cannot.
    pub(super) fn load(&self) -> anyhow::Result<(BTreeMap<String, Snapshot>, usize)> {
        let reading = self.database.begin_read().context("cannot read the snapshots' state")?;
        let table = reading.open_table(SNAPSHOTS).context("cannot open the table of snapshots")?;
        let (mut snapshots, mut skipped) = (BTreeMap::new(), 0);
        for entry in table.iter().context("cannot list the table of snapshots")? {
            let (name, value) = match entry {
                Ok((name, value)) => (name.value().to_owned(), value.value().to_vec()),
                Err(error) => {
                    tracing::error!(%error, "skipped a snapshot that cannot be read");
                    skipped += 1;
                    continue;
                }
            };
            match serde_json::from_slice(&value) {
                Ok(snapshot) => {
                    snapshots.insert(name, snapshot);
                }
                Err(error) => {
                    tracing::error!(snapshot = name, %error, "skipped a snapshot that makes no sense");
                    skipped += 1;
                }
            }
        }
        Ok((snapshots, skipped))
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

#[cfg(test)]
impl Table {
    pub(super) fn put_raw(&self, name: &str, value: &[u8]) {
        let writing = self.database.begin_write().unwrap();
        writing.open_table(SNAPSHOTS).unwrap().insert(name, value).unwrap();
        writing.commit().unwrap();
    }
}
