//! The snapshots of this node, and what may happen to them.
//!
//! ```text
//! prepare --> active --commit--> committed --remove--> (gone)
//! view -----> view --------------------------remove--> (gone)
//! an image's layer that streams -----> committed
//! ```
//!
//! A parent is committed, and stays as long as it has children. All of it is in memory, since there are
//! some thousands at most; every change is on the disk ([`table`]) before it is in memory.

mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use table::{Found, Table};

/// Snapshots that a node keeps. containerd's own garbage collection comes long before.
const SNAPSHOTS_MAX: usize = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    View,
    Active,
    Committed,
}

/// One snapshot, under its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    /// Names its folder; never used twice.
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) parent: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) created: SystemTime,
    pub(crate) updated: SystemTime,
    /// Present: a layer that streams, and has no folder.
    #[serde(default)]
    pub(crate) streamed: Option<Streamed>,
    /// What its folder took when it was committed.
    #[serde(default)]
    pub(crate) usage: Usage,
}

/// Which layer of which image a snapshot stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Streamed {
    /// The image's manifest digest.
    pub(crate) manifest: String,
    /// Counted from the lowest, which is 0.
    pub(crate) layer: u32,
    pub(crate) layers: u32,
}

impl Streamed {
    /// Whether the image's whole tree is what stands on this layer.
    pub(crate) fn is_top(&self) -> bool {
        self.layer + 1 == self.layers
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// By allocated blocks.
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// What a caller learns when a change is not to be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    #[error("snapshot {0:?} does not exist")]
    NotFound(String),
    #[error("snapshot {0:?} exists already")]
    Exists(String),
    #[error("the parent {0:?} is not committed")]
    ParentNotCommitted(String),
    #[error("snapshot {0:?} is not active")]
    NotActive(String),
    #[error("snapshot {name:?} has the child {child:?}")]
    HasChild { name: String, child: String },
    #[error("this node keeps {SNAPSHOTS_MAX} snapshots already")]
    Full,
    #[error("cannot write down the snapshot: {0}")]
    Disk(#[from] redb::Error),
}

#[derive(Debug)]
pub(crate) struct Ledger {
    snapshots: BTreeMap<String, Snapshot>,
    next_id: u64,
    table: Table,
    /// Snapshots on the disk that cannot be read.
    unread: usize,
}

impl Ledger {
    /// `first_id`: no folder with this number or a higher one exists.
    pub(crate) fn open(file: &Path, first_id: u64) -> anyhow::Result<Ledger> {
        let (table, Found { snapshots, unread }) = Table::open(file)?;
        let used = snapshots.values().map(|snapshot| snapshot.id + 1).max().unwrap_or(0);
        Ok(Ledger { snapshots, next_id: used.max(first_id), table, unread })
    }

    /// Whether all snapshots of this node are known: a folder that none of them names is then nobody's.
    pub(crate) fn is_whole(&self) -> bool {
        self.unread == 0
    }

    pub(crate) fn all(&self) -> &BTreeMap<String, Snapshot> {
        &self.snapshots
    }

    pub(crate) fn get(&self, name: &str) -> Result<&Snapshot, LedgerError> {
        self.snapshots.get(name).ok_or_else(|| LedgerError::NotFound(name.to_owned()))
    }

    /// A number that no folder has.
    pub(crate) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// Whether a snapshot of this name and parent may be made.
    pub(crate) fn check_new(&self, name: &str, parent: Option<&str>) -> Result<(), LedgerError> {
        if self.snapshots.contains_key(name) {
            return Err(LedgerError::Exists(name.to_owned()));
        }
        if self.snapshots.len() >= SNAPSHOTS_MAX {
            return Err(LedgerError::Full);
        }
        self.check_parent(parent)
    }

    fn check_parent(&self, parent: Option<&str>) -> Result<(), LedgerError> {
        let Some(parent) = parent else { return Ok(()) };
        match self.get(parent)?.kind {
            Kind::Committed => Ok(()),
            Kind::View | Kind::Active => Err(LedgerError::ParentNotCommitted(parent.to_owned())),
        }
    }

    pub(crate) fn add(&mut self, name: &str, snapshot: Snapshot) -> Result<(), LedgerError> {
        self.check_new(name, snapshot.parent.as_deref())?;
        self.table.change(&self.snapshots, None, &[(name, &snapshot)])?;
        self.snapshots.insert(name.to_owned(), snapshot);
        Ok(())
    }

    /// Adds layers of an image, from the lowest, in one write. One that is there already stays as it is: of another
    /// namespace, or of a pull at the same time.
    pub(crate) fn add_layers(&mut self, layers: Vec<(String, Snapshot)>) -> Result<(), LedgerError> {
        let new: Vec<_> = layers.into_iter().filter(|(name, _)| !self.snapshots.contains_key(name)).collect();
        if self.snapshots.len() + new.len() > SNAPSHOTS_MAX {
            return Err(LedgerError::Full);
        }
        if let Some((_, lowest)) = new.first() {
            self.check_parent(lowest.parent.as_deref())?;
        }
        let put: Vec<(&str, &Snapshot)> = new.iter().map(|(name, layer)| (name.as_str(), layer)).collect();
        self.table.change(&self.snapshots, None, &put)?;
        self.snapshots.extend(new);
        Ok(())
    }

    /// Makes the active snapshot `key` the committed `name`. `labels` are those it has from now on; a `parent`, where
    /// layers were unpacked side by side, the one it gets.
    pub(crate) fn commit(
        &mut self,
        key: &str,
        name: &str,
        labels: BTreeMap<String, String>,
        parent: Option<&str>,
        usage: Usage,
    ) -> Result<(), LedgerError> {
        let mut snapshot = self.active(key)?.clone();
        self.check_new(name, parent)?;
        if let Some(parent) = parent {
            snapshot.parent = Some(parent.to_owned());
        }
        snapshot.kind = Kind::Committed;
        snapshot.updated = SystemTime::now();
        (snapshot.labels, snapshot.usage) = (labels, usage);
        self.table.change(&self.snapshots, Some(key), &[(name, &snapshot)])?;
        self.snapshots.remove(key);
        self.snapshots.insert(name.to_owned(), snapshot);
        Ok(())
    }

    pub(crate) fn active(&self, key: &str) -> Result<&Snapshot, LedgerError> {
        let snapshot = self.get(key)?;
        if snapshot.kind != Kind::Active {
            return Err(LedgerError::NotActive(key.to_owned()));
        }
        Ok(snapshot)
    }

    pub(crate) fn set_labels(
        &mut self,
        name: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<&Snapshot, LedgerError> {
        let changed = Snapshot { labels, updated: SystemTime::now(), ..self.get(name)?.clone() };
        self.table.change(&self.snapshots, None, &[(name, &changed)])?;
        self.snapshots.insert(name.to_owned(), changed);
        self.get(name)
    }

    /// Forgets a snapshot that has no children, and returns it.
    pub(crate) fn remove(&mut self, name: &str) -> Result<Snapshot, LedgerError> {
        let snapshot = self.get(name)?.clone();
        let child = self.snapshots.iter().find(|(_, other)| other.parent.as_deref() == Some(name));
        if let Some((child, _)) = child {
            return Err(LedgerError::HasChild { name: name.to_owned(), child: child.clone() });
        }
        self.table.change(&self.snapshots, Some(name), &[])?;
        self.snapshots.remove(name);
        Ok(snapshot)
    }

    /// The snapshot and all below it, from the top.
    pub(crate) fn chain<'a>(&'a self, name: &'a str) -> Result<Vec<&'a Snapshot>, LedgerError> {
        Ok(self.named_chain(name)?.into_iter().map(|(_, snapshot)| snapshot).collect())
    }

    /// The highest layer that streams at or below this snapshot, and its name.
    pub(crate) fn streams_below(&self, name: &str) -> Result<Option<(String, Streamed)>, LedgerError> {
        let chain = self.named_chain(name)?;
        let found = chain.into_iter().find_map(|(name, snapshot)| Some((name, snapshot.streamed.as_ref()?)));
        Ok(found.map(|(name, streamed)| (name.to_owned(), streamed.clone())))
    }

    fn named_chain<'a>(&'a self, name: &'a str) -> Result<Vec<(&'a str, &'a Snapshot)>, LedgerError> {
        let (mut chain, mut seen, mut next) = (Vec::new(), BTreeSet::new(), Some(name));
        while let Some(name) = next {
            // A loop can only come from a damaged table: its parent does not exist, then.
            if !seen.insert(name) {
                return Err(LedgerError::NotFound(name.to_owned()));
            }
            let snapshot = self.get(name)?;
            chain.push((name, snapshot));
            next = snapshot.parent.as_deref();
        }
        Ok(chain)
    }

    /// Images, and parts of images, that snapshots name; and whether one that can be written or read stands on it.
    pub(crate) fn claims(&self) -> BTreeMap<String, bool> {
        let mut claims = BTreeMap::new();
        for (name, snapshot) in &self.snapshots {
            match (&snapshot.streamed, snapshot.kind) {
                (Some(streamed), _) => {
                    claims.entry(streamed.manifest.clone()).or_insert(false);
                    if !streamed.is_top() {
                        claims.entry(name.clone()).or_insert(false);
                    }
                }
                (None, Kind::Committed) => {}
                (None, Kind::View | Kind::Active) => {
                    if let Ok(Some((part, streamed))) = self.streams_below(name) {
                        claims.insert(if streamed.is_top() { streamed.manifest } else { part }, true);
                    }
                }
            }
        }
        claims
    }
}
