//! Tables as JetStream key-value buckets.
//!
//! A watch is opened again whenever it fails, or when the bucket has something newer than what was told and nothing
//! comes: a server that restarts forgets who watches. What was told before is not told again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream;
use async_nats::jetstream::kv::{self, Operation, Store, UpdateErrorKind};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Nats;
use crate::key::unescaped;
use crate::table::{Change, Entry, TableChanges, Told, VALUE_MAX, conflict};

const ALL_KEYS: &str = ">";
/// Between two attempts to watch.
const REOPEN_PAUSE: Duration = Duration::from_millis(500);
/// How long the next entry of a snapshot may take.
const SNAPSHOT_STALL: Duration = Duration::from_secs(10);
/// After so long without a change it is asked whether there was one.
const QUIET: Duration = Duration::from_secs(5);
/// Changes that wait for a slow watcher.
const CHANGES_QUEUED: usize = 64;

/// One bucket.
#[derive(Clone)]
pub(crate) struct NatsTable {
    nats: Nats,
    name: Arc<str>,
    /// Others make it.
    to_read: bool,
    /// Opened when it is first needed: the server may be away before.
    bucket: Arc<Mutex<Option<Store>>>,
}

impl NatsTable {
    pub(crate) fn new(nats: Nats, name: &str) -> NatsTable {
        NatsTable { nats, name: name.into(), to_read: false, bucket: Arc::default() }
    }

    pub(crate) fn to_read(nats: Nats, name: &str) -> NatsTable {
        NatsTable { to_read: true, ..NatsTable::new(nats, name) }
    }

    pub(crate) async fn get(&self, token: &str) -> Result<Option<Entry>, Status> {
        let entry = self.opened().await?.entry(token).await;
        let entry = entry.map_err(|error| self.failed("reading", token, &error))?;
        Ok(entry.and_then(there))
    }

    pub(crate) async fn write(
        &self,
        token: &str,
        value: Bytes,
        expected: Option<u64>,
    ) -> Result<u64, Status> {
        let bucket = self.opened().await?;
        let Some(expected) = expected else {
            let put = bucket.put(token, value).await;
            return put.map_err(|error| self.failed("writing", token, &error));
        };
        let mut over = expected;
        if expected == 0 {
            // What was deleted has a revision as well.
            let entry = bucket.entry(token).await.map_err(|error| self.failed("reading", token, &error))?;
            match entry {
                Some(entry) if entry.operation == Operation::Put => return Err(conflict(token, expected)),
                Some(marker) => over = marker.revision,
                None => {}
            }
        }
        bucket.update(token, value, over).await.map_err(|error| match error.kind() {
            UpdateErrorKind::WrongLastRevision => conflict(token, expected),
            _ => self.failed("writing", token, &error),
        })
    }

    pub(crate) async fn delete(&self, token: &str) -> Result<(), Status> {
        let bucket = self.opened().await?;
        bucket.delete(token).await.map_err(|error| self.failed("deleting", token, &error))
    }

    pub(crate) async fn entries(&self) -> Result<Vec<Entry>, Status> {
        let bucket = self.opened().await?;
        let (_, mut entries, _) = snapshot(&bucket)
            .await
            .map_err(|error| Status::unavailable(format!("reading the table {}: {error:#}", self.name)))?;
        entries.sort_by(|one, other| one.key.cmp(&other.key));
        Ok(entries)
    }

    pub(crate) fn watch(&self) -> TableChanges {
        let (changes, told) = mpsc::channel(CHANGES_QUEUED);
        let table = self.clone();
        tokio::spawn(async move { table.watch_for(changes).await });
        Box::pin(ReceiverStream::new(told))
    }

    async fn watch_for(self, changes: mpsc::Sender<Change>) {
        let mut told = Told::default();
        loop {
            tokio::select! {
                () = changes.closed() => return,
                watched = self.watch_once(&mut told, &changes) => if let Err(error) = watched {
                    tracing::debug!(table = &*self.name, error = format!("{error:#}"), "a watch is opened again");
                },
            }
            // The bucket itself may have gone.
            *self.bucket.lock().await = None;
            if timeout(REOPEN_PAUSE, changes.closed()).await.is_ok() {
                return;
            }
        }
    }

    /// Tells what is new until something fails.
    async fn watch_once(&self, told: &mut Told, changes: &mpsc::Sender<Change>) -> anyhow::Result<()> {
        let bucket = self.opened().await?;
        let (mut watch, entries, mut seen) = snapshot(&bucket).await?;
        for change in told.all(entries.into_iter()) {
            changes.send(change).await?;
        }
        loop {
            let Ok(next) = timeout(QUIET, watch.next()).await else {
                let newest = bucket.stream.get_info().await?.state.last_sequence;
                anyhow::ensure!(newest == seen, "{newest} is the newest revision, and {seen} was told");
                continue;
            };
            let entry = next.context("the watch ended")??;
            seen = seen.max(entry.revision);
            let change = match entry.operation {
                Operation::Put => there(entry).and_then(|entry| told.put(entry)),
                Operation::Delete | Operation::Purge => {
                    unescaped(&entry.key).and_then(|key| told.deleted(&key))
                }
            };
            if let Some(change) = change {
                changes.send(change).await?;
            }
        }
    }

    fn failed(&self, doing: &str, token: &str, error: &dyn std::fmt::Display) -> Status {
        Status::unavailable(format!("{doing} {token} of the table {}: {error}", self.name))
    }

    async fn opened(&self) -> Result<Store, Status> {
        let mut opened = self.bucket.lock().await;
        if let Some(bucket) = &*opened {
            return Ok(bucket.clone());
        }
        let config = kv::Config {
            bucket: format!("sluice-{}", self.name),
            history: 1,
            max_value_size: VALUE_MAX as i32,
            num_replicas: self.nats.replicas,
            ..kv::Config::default()
        };
        let failed = |error: &dyn std::fmt::Display| {
            Status::unavailable(format!("opening the table {}: {error}", self.name))
        };
        let stream = jetstream::new(self.nats.client.clone());
        let bucket = match self.to_read {
            true => stream.get_key_value(config.bucket).await.map_err(|error| failed(&error))?,
            false => stream.create_or_update_key_value(config).await.map_err(|error| failed(&error))?,
        };
        Ok(opened.insert(bucket).clone())
    }
}

/// All that is there, the watch that goes on from it, and the newest revision.
async fn snapshot(bucket: &Store) -> anyhow::Result<(kv::Watch, Vec<Entry>, u64)> {
    let mut watch = bucket.watch_with_history(ALL_KEYS).await.context("watch the table")?;
    let state = bucket.stream.get_info().await.context("ask how large the table is")?.state;
    let (mut entries, mut seen) = (Vec::new(), state.last_sequence);
    let mut last = state.messages == 0;
    while !last {
        let next = timeout(SNAPSHOT_STALL, watch.next()).await.context("the table does not arrive")?;
        let entry = next.context("the watch ended")??;
        last = entry.seen_current;
        seen = seen.max(entry.revision);
        entries.extend(there(entry));
    }
    Ok((watch, entries, seen))
}

/// An entry that was not deleted. What somebody else wrote under a key of another kind is nobody's.
fn there(entry: kv::Entry) -> Option<Entry> {
    let put = entry.operation == Operation::Put;
    let key = put.then(|| unescaped(&entry.key)).flatten()?;
    Some(Entry { key, value: entry.value, revision: entry.revision })
}

impl std::fmt::Debug for NatsTable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("NatsTable").field("name", &self.name).finish_non_exhaustive()
    }
}
