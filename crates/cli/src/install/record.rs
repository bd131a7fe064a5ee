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
    /// Where the Docker engine is, if it was made to use sluice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    docker: Option<DockerPlaces>,
    /// Whether Docker is all that was: nothing of Kubernetes.
    #[serde(default)]
    docker_alone: bool,
    /// By path, as the node sees it.
    files: BTreeMap<PathBuf, Entry>,
}

/// Where an engine's configuration and its socket are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerPlaces {
    pub config: PathBuf,
    pub socket: PathBuf,
}

impl Record {
    pub fn open(root: &Root, state: &Path) -> anyhow::Result<Record> {
        let path = root.path(&state.join("install.json"));
        let content = match files::read(&path)? {
            Some(text) => serde_json::from_str(&text)
                .with_context(|| format!("read what was installed from {}", path.display()))?,
            None => Content {
                version: VERSION,
                containerd_config: None,
                docker: None,
                docker_alone: false,
                files: BTreeMap::new(),
            },
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

    pub fn docker(&self) -> Option<&DockerPlaces> {
        self.content.docker.as_ref()
    }

    /// Whether Kubernetes' images are none of our business here.
    pub fn is_docker_alone(&self) -> bool {
        self.content.docker_alone
    }

    /// What is being installed, for an engine or for Kubernetes. Saved with the next entry.
    pub fn begin(&mut self, docker: Option<&DockerPlaces>) {
        match docker {
            Some(places) => {
                self.content.docker_alone |= self.content.files.is_empty();
                self.content.docker = Some(places.clone());
            }
            None => self.content.docker_alone = false,
        }
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
