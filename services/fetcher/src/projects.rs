//! The switch of each project: whether its images stream at all.
//!
//! Off is `PERMISSION_DENIED` for whoever asks for an image, and so an ordinary pull. What streams already goes on: its containers
//! read, and their grants are renewed. The file is looked at with each question, so it counts at once and on every fetcher that sees it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context as _, ensure};
use proto::Refusal;
use serde::Deserialize;
use tonic::Status;

use crate::config::Projects as Config;

/// In the details of the refusal: what is switched, and how.
const SWITCH: &str = "streaming";
const OFF: &str = "off";
/// A longer file is no list of projects, in bytes.
const FILE_MAX: u64 = 1024 * 1024;

#[derive(Debug)]
pub(crate) struct Projects {
    config: Config,
    file: Mutex<File>,
}

/// What the file said when it was last good.
#[derive(Debug, Default)]
struct File {
    seen: Option<(SystemTime, u64)>,
    said: Said,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Said {
    streaming: Option<bool>,
    switches: BTreeMap<String, bool>,
}

impl Projects {
    pub(crate) fn new(config: Config) -> Projects {
        Projects { config, file: Mutex::default() }
    }

    /// Refuses a project that is switched off.
    pub(crate) fn check(&self, project: &str) -> Result<(), Status> {
        if self.streams(project) {
            return Ok(());
        }
        let message = format!("image streaming is switched off for the project {project}");
        let by = [(SWITCH.to_owned(), OFF.to_owned()), ("project".to_owned(), project.to_owned())];
        Err(Refusal::Denied.with(message, by.into(), None))
    }

    fn streams(&self, project: &str) -> bool {
        let configured = self.config.switches.get(project).copied();
        let Some(path) = &self.config.file else { return configured.unwrap_or(self.config.streaming) };
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.look_at(path);
        let said = file.said.switches.get(project).copied();
        said.or(configured).or(file.said.streaming).unwrap_or(self.config.streaming)
    }
}

impl File {
    /// Reads it if it is another one. One that cannot be read changes nothing, and is told of once.
    fn look_at(&mut self, path: &Path) {
        let seen = std::fs::metadata(path).ok().and_then(|meta| Some((meta.modified().ok()?, meta.len())));
        if seen == self.seen {
            return;
        }
        self.seen = seen;
        match read(path) {
            Ok(said) => {
                tracing::info!(path = %path.display(), switches = said.switches.len(), "read the projects' switches");
                self.said = said;
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(path = %path.display(), error, "the projects' switches stay as they were");
            }
        }
    }
}

/// No file is one that says nothing.
fn read(path: &Path) -> anyhow::Result<Said> {
    let length = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Said::default()),
        found => found.context("look at it")?.len(),
    };
    ensure!(length <= FILE_MAX, "it has {length} bytes, more than {FILE_MAX}");
    toml::from_str(&std::fs::read_to_string(path).context("read it")?).context("it is not a list of switches")
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;

    #[test]
    fn a_switch_counts_at_once_and_a_file_that_is_none_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("projects.toml");
        let switches = [("off".to_owned(), false), ("both".to_owned(), true)].into();
        let projects = Projects::new(Config { streaming: true, switches, file: Some(file.clone()) });
        let streams = |expected: [bool; 3]| {
            assert_eq!(["off", "both", "other"].map(|project| projects.streams(project)), expected);
        };
        streams([false, true, true]);
        std::fs::write(&file, "switches.both = false").unwrap();
        streams([false, false, true]);
        std::fs::write(&file, "streaming = false # the rest\nswitches.off = true").unwrap();
        streams([true, true, false]);
        std::fs::write(&file, "streaming = maybe, or not, who knows").unwrap();
        streams([true, true, false]);
        std::fs::remove_file(&file).unwrap();
        streams([false, true, true]);
        let status = projects.check("off").unwrap_err();
        assert_eq!(Refusal::of(&status), Some(Refusal::Denied));
        assert_eq!(status.get_details_error_info().unwrap().metadata[SWITCH], OFF);
    }
}
