//! Imports and collections keep out of each other's way, across all fetchers that share a store.
//!
//! An import relies on chunks that nobody names yet, a collection deletes such chunks. Each writes a
//! marker first and looks for the other's second, so of two that begin at the same moment at least
//! one sees the other. An import waits for a collection to end; a collection gives way to imports. A
//! marker is renewed while its holder lives, and says nothing once it is old: clocks of fetchers and
//! stores must agree within [`STALE`] minus [`RENEWAL`].

use std::time::{Duration, SystemTime};

use futures::TryStreamExt;
use store::{Kind, ProjectStore, StoreError};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Between two renewals.
const RENEWAL: Duration = Duration::from_secs(20);
/// A marker of this age is of someone who died.
const STALE: Duration = Duration::from_secs(120);
/// Between two looks at a running collection.
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// The longest wait for a collection: it walks a store of ten million chunks in this time.
const COLLECTION_MAX: Duration = Duration::from_secs(1800);

/// Says that something goes on, until it is released, or soon after it is dropped.
#[derive(Debug)]
pub(crate) struct Marker {
    released: DropGuard,
    renewal: JoinHandle<()>,
}

/// The other side is at work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Busy {
    #[error("{0} imports are running, or broke off within the last {max} seconds", max = STALE.as_secs())]
    Importing(usize),
    #[error("a collection is running for too long")]
    Collecting,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Marker {
    /// Takes the marker away; returns when it is gone.
    pub(crate) async fn release(self) {
        drop(self.released);
        // It cannot panic, and ends with one request to the store.
        let _ = self.renewal.await;
    }
}

/// Marks an import, and waits until no collection runs.
pub(crate) async fn importing(project: &ProjectStore, tasks: &TaskTracker) -> Result<Marker, Busy> {
    let marker = hold(project, Kind::Importing, tasks).await?;
    let begun = tokio::time::Instant::now();
    while young(project, Kind::Collecting).await? > 0 {
        if begun.elapsed() > COLLECTION_MAX {
            return Err(Busy::Collecting);
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    Ok(marker)
}

/// Marks a collection, unless imports run.
pub(crate) async fn collecting(project: &ProjectStore, tasks: &TaskTracker) -> Result<Marker, Busy> {
    let marker = hold(project, Kind::Collecting, tasks).await?;
    match young(project, Kind::Importing).await? {
        0 => Ok(marker),
        imports => {
            marker.release().await;
            Err(Busy::Importing(imports))
        }
    }
}

async fn hold(project: &ProjectStore, kind: Kind, tasks: &TaskTracker) -> Result<Marker, StoreError> {
    let name = hex::encode(rand::random::<[u8; 32]>());
    project.put_marker(kind, &name).await?;
    let released = CancellationToken::new();
    let renewal = tasks.spawn(renew(project.clone(), kind, name, released.clone()));
    Ok(Marker { released: released.drop_guard(), renewal })
}

async fn renew(project: ProjectStore, kind: Kind, name: String, released: CancellationToken) {
    while released.run_until_cancelled(tokio::time::sleep(RENEWAL)).await.is_some() {
        if let Err(error) = project.put_marker(kind, &name).await {
            tracing::warn!(%error, "a marker could not be renewed");
        }
    }
    if let Err(error) = project.delete_marker(kind, &name).await {
        tracing::warn!(%error, "a marker stays until it is old");
    }
}

/// How many markers of a kind count; the others are cleared away.
async fn young(project: &ProjectStore, kind: Kind) -> Result<usize, StoreError> {
    let now = SystemTime::now();
    let markers: Vec<_> = project.list(kind).try_collect().await?;
    let mut young = 0;
    for marker in markers {
        match now.duration_since(marker.modified) {
            Ok(age) if age > STALE => project.delete(kind, &marker.hex).await?,
            _ => young += 1,
        }
    }
    Ok(young)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs::File;

    use store::Store;

    use super::*;

    #[tokio::test]
    async fn a_collection_gives_way_and_an_import_waits() {
        let folder = tempfile::tempdir().unwrap();
        let project =
            Store::open(folder.path().to_str().unwrap(), &HashMap::new()).unwrap().project("").unwrap();
        let tasks = TaskTracker::new();
        let import = importing(&project, &tasks).await.unwrap();
        assert!(matches!(collecting(&project, &tasks).await, Err(Busy::Importing(1))));
        import.release().await;
        let collection = collecting(&project, &tasks).await.unwrap();
        let waiting = tokio::spawn({
            let (project, tasks) = (project.clone(), tasks.clone());
            async move { importing(&project, &tasks).await.map(drop) }
        });
        while young(&project, Kind::Importing).await.unwrap() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(!waiting.is_finished());
        drop(collection);
        waiting.await.unwrap().unwrap();
        tasks.close();
        tasks.wait().await;
        assert_eq!(young(&project, Kind::Importing).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn the_dead_hold_nothing_up() {
        let folder = tempfile::tempdir().unwrap();
        let project =
            Store::open(folder.path().to_str().unwrap(), &HashMap::new()).unwrap().project("").unwrap();
        let name = "ab".repeat(32);
        project.put_marker(Kind::Importing, &name).await.unwrap();
        assert_eq!(young(&project, Kind::Importing).await.unwrap(), 1);
        let file = folder.path().join("default/importing").join(&name);
        let long_ago = SystemTime::now() - 2 * STALE;
        File::options().write(true).open(&file).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(young(&project, Kind::Importing).await.unwrap(), 0);
        assert!(!file.exists());
    }
}
