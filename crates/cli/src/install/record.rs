//! What we did to which file, kept under the state folder until it is undone.
//!
//! It is written before the file that it speaks of, so that it always knows at least as much as was done: an entry
//! whose file is still as it was before undoes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use super::files::{self, Root};
use super::plan::Entry;

const VERSION: u32 = 1;
/// It holds copies of configurations, in which there may be passwords.
const MODE: u32 = 0o600;

#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    content: Content,
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    /// The file that containerd is started with.
    containerd_config: Option<PathBuf>,
    /// By path, as the node sees it.
    files: BTreeMap<PathBuf, Entry>,
}

impl Record {
    pub fn open(root: &Root, state: &Path) -> anyhow::Result<Record> {
        let path = root.path(&state.join("install.json"));
        let content = match files::read(&path)? {
            Some(text) => serde_json::from_str(&text)
                .with_context(|| format!("read what was installed from {}", path.display()))?,
            None => Content { version: VERSION, containerd_config: None, files: BTreeMap::new() },
        };
        ensure!(
            content.version == VERSION,
            "{} was written by another version of sluice: use that one",
            path.display()
        );
        Ok(Record { path, content })
    }

    pub fn containerd_config(&self) -> Option<&Path> {
        self.content.containerd_config.as_deref()
    }

    /// Saved with the next entry.
    pub fn set_containerd_config(&mut self, path: &Path) {
        self.content.containerd_config = Some(path.to_owned());
    }

    pub fn get(&self, path: &Path) -> Option<&Entry> {
        self.content.files.get(path)
    }

    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.content.files.keys().map(PathBuf::as_path)
    }

    /// Sets what is known of a file, on the disk as well.
    pub fn set(&mut self, path: &Path, entry: Option<Entry>) -> anyhow::Result<()> {
        match entry {
            Some(entry) => self.content.files.insert(path.to_owned(), entry),
            None => self.content.files.remove(path),
        };
        let saved = match self.content.files.is_empty() {
            true => files::remove(&self.path),
            false => self.save(),
        };
        saved.with_context(|| format!("write {}", self.path.display()))
    }

    fn save(&self) -> anyhow::Result<()> {
        if let Some(folder) = self.path.parent() {
            crate::node::make_state(folder)?;
        }
        files::replace(&self.path, &serde_json::to_string_pretty(&self.content)?, MODE)
    }
}
