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
/// Looks after which a set that could not be loaded is tried again, unchanged: a plugin's file may come after the file that names it, a
/// registry may come back.
const RETRY_LOOKS: u32 = 4;
/// At the most, five minutes: each try may compile for seconds.
const RETRY_LOOKS_MAX: u32 = 150;
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

/// When a set that could not be loaded is tried again: after twice as many looks each time.
#[derive(Debug)]
struct Retry {
    looks: u32,
    wait: u32,
}

impl Retry {
    fn first() -> Retry {
        Retry { looks: 0, wait: RETRY_LOOKS }
    }

    fn next(self) -> Retry {
        Retry { looks: 0, wait: RETRY_LOOKS_MAX.min(self.wait * 2) }
    }

    /// To be asked once a look.
    fn is_due(&mut self) -> bool {
        self.looks += 1;
        self.looks >= self.wait
    }
}

/// Watches until `shutdown`; `loaded` is the text that the set in use came from.
pub(crate) async fn watch(service: Arc<Service>, file: SetFile, loaded: String, shutdown: CancellationToken) {
    let file = Arc::new(file);
    let (mut tried, mut retry, mut absent) = (loaded, None, false);
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
        let changed = back || text != tried;
        let due = retry.as_mut().is_some_and(Retry::is_due);
        if !changed && !due {
            continue;
        }
        tried.clone_from(&text);
        let (service, file) = (service.clone(), file.clone());
        // Compiling takes as long as the plugins are large; nothing waits for it.
        let reload = move || service.reload(file.parse(&text), &file.folder());
        let loaded = tokio::task::spawn_blocking(reload).await.unwrap_or(false);
        retry = match retry {
            _ if loaded => None,
            Some(before) if !changed => Some(before.next()),
            _ => Some(Retry::first()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_loaded_is_tried_more_and_more_seldom() {
        let mut retry = Retry::first();
        let mut waits = Vec::new();
        for _ in 0..8 {
            let looks = (1..).take_while(|_| !retry.is_due()).count() as u32 + 1;
            waits.push((LOOK_PAUSE * looks).as_secs());
            retry = retry.next();
        }
        assert_eq!(waits, [8, 16, 32, 64, 128, 256, 300, 300]);
    }
}
