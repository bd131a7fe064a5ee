//! Looks at the file of the policy set, and loads what changed in it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::config::SetConfig;
use crate::service::Service;

/// Between two looks. Reading a few kilobytes costs less than what tells of changes on every file system would.
const LOOK_PAUSE: Duration = Duration::from_secs(2);
/// Looks after which a set that could not be loaded is tried again: a plugin's file may come after the file that names it.
const RETRY_LOOKS: u32 = 3;
/// The file, in bytes.
const FILE_MAX: u64 = 1024 * 1024;

#[derive(Debug)]
pub(crate) struct SetFile {
    pub(crate) path: PathBuf,
}

impl SetFile {
    pub(crate) fn read(&self) -> anyhow::Result<String> {
        let reading = || format!("reading the policy set {}", self.path.display());
        let size = std::fs::metadata(&self.path).with_context(reading)?.len();
        anyhow::ensure!(size <= FILE_MAX, "{}: it has {size} bytes, more than {FILE_MAX}", reading());
        std::fs::read_to_string(&self.path).with_context(reading)
    }

    pub(crate) fn parse(&self, text: &str) -> anyhow::Result<SetConfig> {
        toml::from_str(text).with_context(|| format!("reading the policy set {}", self.path.display()))
    }

    /// Where relative paths of plugins begin.
    pub(crate) fn folder(&self) -> PathBuf {
        self.path.parent().map(PathBuf::from).unwrap_or_default()
    }
}

/// Watches until `shutdown`; `loaded` is the text that the set in use came from.
pub(crate) async fn watch(service: Arc<Service>, file: SetFile, loaded: String, shutdown: CancellationToken) {
    let file = Arc::new(file);
    let (mut tried, mut failed_looks, mut absent) = (loaded, None, false);
    while shutdown.run_until_cancelled(tokio::time::sleep(LOOK_PAUSE)).await.is_some() {
        let text = match file.read() {
            Ok(text) => text,
            Err(error) => {
                if !std::mem::replace(&mut absent, true) {
                    service.reload(Err(error), &file.folder());
                }
                continue;
            }
        };
        // As it comes back it may be what it was: that is told, too.
        let back = std::mem::take(&mut absent);
        let retry = back || failed_looks.is_some_and(|looks| looks >= RETRY_LOOKS);
        if text == tried && !retry {
            failed_looks = failed_looks.map(|looks| looks + 1);
            continue;
        }
        tried.clone_from(&text);
        let (service, file) = (service.clone(), file.clone());
        // Compiling takes as long as the plugins are large; nothing waits for it.
        let reload = move || service.reload(file.parse(&text), &file.folder());
        failed_looks = match tokio::task::spawn_blocking(reload).await {
            Ok(true) => None,
            Ok(false) | Err(_) => Some(0),
        };
    }
}
