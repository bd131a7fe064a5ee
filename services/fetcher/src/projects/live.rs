//! What operators switch while services run.
//!
//! In a mesh it stands in a table on the bus, which each fetcher follows: a key is a project, with `*` for all that are not named, and a
//! value `on` or `off`. Without NATS a table would end with its process, so there it is a file.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{Change, Table, TableChanges};
use futures::StreamExt as _;
use names::Project;
use proto::Refusal;
use tokio::sync::watch;
use tonic::Status;

use super::file::{File, Said};

const TABLE: &str = "projects";
/// Of every project that is not named.
const ALL: &str = "*";
const ON: &[u8] = b"on";
const OFF: &[u8] = b"off";
/// Projects that are remembered; more are told of and not followed.
const PROJECTS_MAX: usize = 100_000;

#[derive(Debug)]
pub(super) enum Live {
    File(File),
    Table(Table, Arc<Followed>),
}

/// The table as this process knows it.
#[derive(Debug, Default)]
pub(super) struct Followed {
    said: Mutex<Said>,
    known: watch::Sender<bool>,
}

impl Live {
    pub(super) fn in_table(bus: &bus::Bus) -> Live {
        Live::Table(bus.table(TABLE), Arc::default())
    }

    pub(super) fn look<T>(&self, look: impl FnOnce(&Said) -> T) -> T {
        match self {
            Live::File(file) => file.look(look),
            Live::Table(_, followed) => look(&followed.said()),
        }
    }

    /// Whether it was read.
    pub(super) fn is_known(&self) -> bool {
        match self {
            Live::File(_) => true,
            Live::Table(_, followed) => *followed.known.borrow(),
        }
    }

    /// `None` for the project: all that are not named. `None` for its switch: nothing is said of it any more.
    pub(super) async fn switch(&self, project: Option<&Project>, to: Option<bool>) -> Result<(), Status> {
        let key = project.map_or(ALL, Project::as_str);
        match self {
            Live::File(file) => file
                .change(|said| said.set(key, to))
                .map_err(|error| Refusal::Unreachable.status(format!("{error:#}"))),
            Live::Table(table, followed) => {
                match to {
                    Some(on) => table.put(key, if on { ON } else { OFF }.into()).await.map(drop)?,
                    None => table.delete(key).await?,
                }
                // What this process answers next knows of it; the others hear of it in a moment.
                followed.said().set(key, to);
                Ok(())
            }
        }
    }
}

impl Followed {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until it was read once.
    pub(super) async fn settled(&self) {
        // An error would say that nobody follows it.
        let _ = self.known.subscribe().wait_for(|known| *known).await;
    }

    /// Takes over what changes, for as long as it does. What cannot be read leaves what was said before.
    pub(super) async fn follow(self: Arc<Self>, mut changes: TableChanges) {
        while let Some(change) = changes.next().await {
            match change {
                Change::Settled => {
                    self.known.send_replace(true);
                }
                Change::Deleted(key) => self.said().set(&key, None),
                Change::Put(entry) => match (is_project(&entry.key), &*entry.value) {
                    (true, ON) => self.put(&entry.key, true),
                    (true, OFF) => self.put(&entry.key, false),
                    (named, _) => {
                        let error =
                            if named { "it is neither on nor off" } else { "it is no project's name" };
                        tracing::error!(
                            key = entry.key,
                            error,
                            "a live switch cannot be used: it stays as it was"
                        );
                    }
                },
            }
        }
    }

    fn put(&self, key: &str, on: bool) {
        let mut said = self.said();
        if said.switches.len() >= PROJECTS_MAX && !said.switches.contains_key(key) {
            tracing::error!(key, "a live switch is not followed: there are {PROJECTS_MAX} already");
            return;
        }
        said.set(key, Some(on));
    }
}

fn is_project(key: &str) -> bool {
    key == ALL || key.parse::<Project>().is_ok()
}

impl Said {
    fn set(&mut self, key: &str, to: Option<bool>) {
        if key == ALL {
            self.streaming = to;
        } else if let Some(on) = to {
            self.switches.insert(key.to_owned(), on);
        } else {
            self.switches.remove(key);
        }
    }
}
