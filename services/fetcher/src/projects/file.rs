//! Switches in a file: an operator's, which is read again when it changed, or our own, which is written as well.

use std::collections::BTreeMap;
use std::fs::File as Handle;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context as _, ensure};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// A longer file is no list of projects, in bytes.
const FILE_MAX: u64 = 1024 * 1024;

/// What a file, or a table, says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Said {
    /// Of projects that are not named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) streaming: Option<bool>,
    pub(super) switches: BTreeMap<String, bool>,
}

#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    state: Mutex<State>,
}

/// What it said when it was last good.
#[derive(Debug, Default)]
struct State {
    seen: Option<(SystemTime, u64)>,
    said: Said,
}

impl File {
    pub(super) fn new(path: PathBuf) -> File {
        File { path, state: Mutex::default() }
    }

    /// Hands `look` what the file says now. One that cannot be read changes nothing, and is told of once.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Said) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let meta = std::fs::metadata(&self.path).ok();
        let seen = meta.and_then(|meta| Some((meta.modified().ok()?, meta.len())));
        if seen != state.seen {
            state.seen = seen;
            let path = self.path.display();
            match read(&self.path) {
                Ok(said) => {
                    tracing::info!(%path, switches = said.switches.len(), "read the projects' switches");
                    state.said = said;
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(%path, error, "the projects' switches stay as they were");
                }
            }
        }
        look(&state.said)
    }

    /// Replaces the file by a changed one. Of two processes that change it at once one waits.
    pub(super) fn change(&self, change: impl FnOnce(&mut Said)) -> anyhow::Result<()> {
        let changing = || format!("changing the projects' switches in {}", self.path.display());
        self.changed(change).with_context(changing)
    }

    fn changed(&self, change: impl FnOnce(&mut Said)) -> anyhow::Result<()> {
        let folder = self.path.parent().context("it has no folder")?;
        std::fs::create_dir_all(folder).context("make its folder")?;
        let turn = Handle::open(folder).context("open its folder")?;
        flock(&turn, FlockOperation::LockExclusive).context("wait for its folder")?;
        let mut said = read(&self.path)?;
        change(&mut said);
        let beside = self.path.with_extension("new");
        let mut file = Handle::create(&beside).context("make it")?;
        file.write_all(toml::to_string(&said)?.as_bytes()).context("write it")?;
        file.sync_all().context("write it to the disk")?;
        std::fs::rename(&beside, &self.path).context("put it in its place")?;
        turn.sync_all().context("write its folder to the disk")
    }
}

/// No file is one that says nothing.
fn read(path: &Path) -> anyhow::Result<Said> {
    let length = match std::fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Said::default()),
        found => found.context("look at it")?.len(),
    };
    ensure!(length <= FILE_MAX, "it has {length} bytes, more than {FILE_MAX}");
    toml::from_str(&std::fs::read_to_string(path).context("read it")?).context("it is not a list of switches")
}
