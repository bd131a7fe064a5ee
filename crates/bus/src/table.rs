//! A small table that everyone on the bus reads, changes and watches: settings, not content.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use futures::stream;
use tokio::sync::watch;
use tonic::Status;

use crate::key;
use crate::nats::NatsTable;

/// The longest value, in bytes.
pub const VALUE_MAX: usize = 64 * 1024;
/// Entries of one table, within one process; one more is refused.
const ENTRIES_MAX: usize = 100_000;

/// One table. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Table {
    way: Way,
}

#[derive(Clone, Debug)]
enum Way {
    InProcess(Arc<Rows>),
    Nats(Arc<NatsTable>),
}

/// What stands under one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Bytes,
    /// Higher with each change; never 0.
    pub revision: u64,
}

/// What a watcher is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put(Entry),
    Deleted(String),
    /// Everything was told that was there when the watch began. Said once.
    Settled,
}

/// What is there, then every change. Of changes that follow fast on each other only the last one may be told.
pub type TableChanges = Pin<Box<dyn Stream<Item = Change> + Send>>;

impl Table {
    pub(crate) fn in_process(rows: Arc<Rows>) -> Table {
        Table { way: Way::InProcess(rows) }
    }

    pub(crate) fn nats(table: NatsTable) -> Table {
        Table { way: Way::Nats(Arc::new(table)) }
    }

    pub async fn get(&self, key: &str) -> Result<Option<Entry>, Status> {
        let token = key::checked(key)?;
        match &self.way {
            Way::InProcess(rows) => Ok(rows.state.borrow().rows.get(key).cloned()),
            Way::Nats(table) => table.get(&token).await,
        }
    }

    /// Writes, whatever was there; the new revision.
    pub async fn put(&self, key: &str, value: Bytes) -> Result<u64, Status> {
        self.write(key, value, None).await
    }

    /// Writes over the revision that the caller knows, 0 for none: `ABORTED` when it is another.
    pub async fn update(&self, key: &str, value: Bytes, expected: u64) -> Result<u64, Status> {
        self.write(key, value, Some(expected)).await
    }

    async fn write(&self, key: &str, value: Bytes, expected: Option<u64>) -> Result<u64, Status> {
        let token = key::checked(key)?;
        if value.len() > VALUE_MAX {
            let length = value.len();
            return Err(Status::invalid_argument(format!(
                "{key}: a value of {length} bytes, at most {VALUE_MAX} expected"
            )));
        }
        match &self.way {
            Way::InProcess(rows) => rows.write(key, value, expected),
            Way::Nats(table) => table.write(&token, value, expected).await,
        }
    }

    /// Deletes what is there, if anything is.
    pub async fn delete(&self, key: &str) -> Result<(), Status> {
        let token = key::checked(key)?;
        match &self.way {
            Way::InProcess(rows) => {
                rows.state.send_if_modified(|state| state.rows.remove(key).is_some());
                Ok(())
            }
            Way::Nats(table) => table.delete(&token).await,
        }
    }

    /// All that is there, by key.
    pub async fn entries(&self) -> Result<Vec<Entry>, Status> {
        match &self.way {
            Way::InProcess(rows) => Ok(rows.state.borrow().rows.values().cloned().collect()),
            Way::Nats(table) => table.entries().await,
        }
    }

    /// Goes on for as long as it is held: what changed while the server was away is told when it is back.
    pub fn watch(&self) -> TableChanges {
        match &self.way {
            Way::InProcess(rows) => rows.watch(),
            Way::Nats(table) => table.watch(),
        }
    }
}

pub(crate) fn conflict(key: &str, expected: u64) -> Status {
    Status::aborted(format!("{key}: it changed since revision {expected}"))
}

/// One table, within one process.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    state: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct State {
    revision: u64,
    rows: BTreeMap<String, Entry>,
}

impl Rows {
    fn write(&self, key: &str, value: Bytes, expected: Option<u64>) -> Result<u64, Status> {
        let mut written = Err(conflict(key, expected.unwrap_or_default()));
        self.state.send_if_modified(|state| {
            let now = state.rows.get(key).map_or(0, |entry| entry.revision);
            if expected.is_some_and(|expected| expected != now) {
                return false;
            }
            if now == 0 && state.rows.len() >= ENTRIES_MAX {
                written = Err(Status::unavailable(format!("{key}: the table has {ENTRIES_MAX} entries")));
                return false;
            }
            state.revision += 1;
            written = Ok(state.revision);
            let entry = Entry { key: key.to_owned(), value, revision: state.revision };
            state.rows.insert(key.to_owned(), entry);
            true
        });
        written
    }

    fn watch(&self) -> TableChanges {
        let mut state = self.state.subscribe();
        state.mark_changed();
        let begun = (state, Told::default(), VecDeque::new());
        Box::pin(stream::unfold(begun, |(mut state, mut told, mut due)| async move {
            while due.is_empty() {
                // An error says that the bus is gone, and nothing changes any more.
                state.changed().await.ok()?;
                due.extend(told.all(state.borrow_and_update().rows.values().cloned()));
            }
            let next = due.pop_front()?;
            Some((next, (state, told, due)))
        }))
    }
}

/// What a watcher was told, by which it is told only what is new.
#[derive(Debug, Default)]
pub(crate) struct Told {
    revisions: BTreeMap<String, u64>,
    settled: bool,
}

impl Told {
    /// Everything that is there now: what of it is new, and what of the former is gone.
    pub(crate) fn all(&mut self, there: impl Iterator<Item = Entry>) -> Vec<Change> {
        let there: BTreeMap<String, Entry> = there.map(|entry| (entry.key.clone(), entry)).collect();
        let gone: Vec<String> =
            self.revisions.keys().filter(|key| !there.contains_key(*key)).cloned().collect();
        let mut changes: Vec<Change> = gone.iter().filter_map(|key| self.deleted(key)).collect();
        changes.extend(there.into_values().filter_map(|entry| self.put(entry)));
        if !std::mem::replace(&mut self.settled, true) {
            changes.push(Change::Settled);
        }
        changes
    }

    pub(crate) fn put(&mut self, entry: Entry) -> Option<Change> {
        let before = self.revisions.insert(entry.key.clone(), entry.revision);
        (before != Some(entry.revision)).then_some(Change::Put(entry))
    }

    pub(crate) fn deleted(&mut self, key: &str) -> Option<Change> {
        self.revisions.remove(key).map(|_| Change::Deleted(key.to_owned()))
    }
}
