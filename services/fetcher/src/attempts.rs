//! Attempts to import an image that ended without an answer, because the fetcher that made them died.
//!
//! An image that kills a fetcher would kill the next one that takes it over, and so on through the mesh. So each attempt is noted
//! in the store, which all fetchers share, before it begins, and cleared by its answer, whether that is an image or an error.
//! Two notes without an answer mean that the image is refused for a while. An image that has one is imported
//! alone: of two that were imported by a fetcher when it died only one is to blame, and the next death shows which.
//!
//! Who notes holds the import's lease, so nobody else writes the same notes.

use std::time::Duration;

use bytes::Bytes;
use store::{ProjectStore, StoreError};

use crate::import::unix_now;

/// So many deaths refuse an image.
const DEATHS_MAX: usize = 2;
/// What is read of a stored list of notes: more than this process ever writes.
const NOTES_MAX: usize = 16;

/// Attempts without an answer, as far as they count.
#[derive(Debug)]
pub(crate) struct Attempts {
    project: ProjectStore,
    manifest: String,
    notes: Vec<Note>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Note {
    began_unix: u64,
    instance: String,
}

/// An attempt that is being made.
#[derive(Debug)]
pub(crate) struct Attempt {
    project: ProjectStore,
    manifest: String,
    earlier: Vec<Note>,
}

/// Fetchers died of the image.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{deaths} fetchers died while they imported it ({fetchers}), so it is not tried again for {}: give fetchers more memory or \
     lower fetcher.limits.image_records, and fetcher.limits.refused_after_deaths=0s to try at once",
    humantime::format_duration(Duration::from_secs(*.seconds))
)]
pub(crate) struct Refused {
    deaths: usize,
    fetchers: String,
    seconds: u64,
}

impl Attempts {
    /// Those of the last `counted`.
    pub(crate) async fn read(
        project: &ProjectStore,
        manifest: &str,
        counted: Duration,
    ) -> Result<Attempts, StoreError> {
        let stored = match project.attempts(manifest).await {
            Ok(stored) => stored,
            Err(error) if error.is_not_found() => Bytes::new(),
            Err(error) => return Err(error),
        };
        let oldest = unix_now().saturating_sub(counted.as_secs());
        let mut notes = parse(&stored);
        notes.retain(|note| note.began_unix > oldest);
        Ok(Attempts { project: project.clone(), manifest: manifest.to_owned(), notes })
    }

    /// Whether a fetcher died, perhaps of this image.
    pub(crate) fn are_suspicious(&self) -> bool {
        !self.notes.is_empty()
    }

    /// An error when the image is refused, for `refused_for` since the last death.
    pub(crate) fn check(&self, refused_for: Duration) -> Result<(), Refused> {
        let Some(last) = self.notes.last().filter(|_| self.notes.len() >= DEATHS_MAX) else { return Ok(()) };
        let fetchers: Vec<&str> = self.notes.iter().map(|note| note.instance.as_str()).collect();
        let until = last.began_unix.saturating_add(refused_for.as_secs());
        let seconds = until.saturating_sub(unix_now()).max(1);
        Err(Refused { deaths: self.notes.len(), fetchers: fetchers.join(", "), seconds })
    }

    /// Notes that one begins.
    pub(crate) async fn begin(self, instance: &str) -> Result<Attempt, StoreError> {
        let Attempts { project, manifest, notes } = self;
        let note = Note { began_unix: unix_now(), instance: instance.to_owned() };
        let all = [&notes[..], &[note]].concat();
        project.put_attempts(&manifest, write(&all)).await?;
        Ok(Attempt { project, manifest, earlier: notes })
    }
}

impl Attempt {
    /// It came to an end: nothing is left to be suspicious of.
    pub(crate) async fn answered(self) {
        self.clear(Vec::new()).await;
    }

    /// It was given up for a reason of the fetcher's own, which says nothing about the image.
    pub(crate) async fn withdrawn(mut self) {
        let earlier = std::mem::take(&mut self.earlier);
        self.clear(earlier).await;
    }

    async fn clear(self, left: Vec<Note>) {
        let cleared = match left.is_empty() {
            true => self.project.delete_attempts(&self.manifest).await,
            false => self.project.put_attempts(&self.manifest, write(&left)).await,
        };
        if let Err(error) = cleared {
            tracing::warn!(manifest = self.manifest, %error, "an attempt that ended well counts as one that did not");
        }
    }
}

/// A line each: when it began, in seconds since 1970, and the fetcher.
fn write(notes: &[Note]) -> Bytes {
    let lines: String = notes.iter().map(|note| format!("{} {}\n", note.began_unix, note.instance)).collect();
    lines.into()
}

/// What cannot be read says nothing.
fn parse(stored: &[u8]) -> Vec<Note> {
    let text = String::from_utf8_lossy(stored);
    let note = |line: &str| {
        let (began, instance) = line.split_once(' ')?;
        Some(Note { began_unix: began.parse().ok()?, instance: instance.to_owned() })
    };
    text.lines().filter_map(note).take(NOTES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use store::Store;

    use super::*;

    const HOURS: Duration = Duration::from_secs(6 * 3600);

    async fn read(project: &ProjectStore) -> Attempts {
        Attempts::read(project, &format!("sha256:{}", "ab".repeat(32)), HOURS).await.unwrap()
    }

    #[tokio::test]
    async fn two_deaths_refuse_and_an_answer_clears() {
        let folder = tempfile::tempdir().unwrap();
        let project =
            Store::open(folder.path().to_str().unwrap(), &HashMap::new()).unwrap().project("").unwrap();
        // The first dies, the second is told to stop, the third dies.
        drop(read(&project).await.begin("one").await.unwrap());
        read(&project).await.begin("two").await.unwrap().withdrawn().await;
        let attempts = read(&project).await;
        assert!(attempts.are_suspicious() && attempts.check(HOURS).is_ok());
        drop(attempts.begin("three").await.unwrap());
        let refused = read(&project).await.check(HOURS).unwrap_err();
        assert_eq!((refused.deaths, refused.fetchers.as_str()), (2, "one, three"));
        assert!(
            refused.to_string().contains("for 5h 59m") || refused.to_string().contains("for 6h"),
            "{refused}"
        );
        // Told not to count, or later, it is tried again, and its answer clears all.
        let manifest = format!("sha256:{}", "ab".repeat(32));
        let uncounted = Attempts::read(&project, &manifest, Duration::ZERO).await.unwrap();
        assert!(!uncounted.are_suspicious());
        uncounted.begin("four").await.unwrap().answered().await;
        assert!(!read(&project).await.are_suspicious());
        read(&project).await.begin("five").await.unwrap().answered().await;
        assert!(project.attempts(&manifest).await.unwrap_err().is_not_found());
    }

    #[test]
    fn notes_that_cannot_be_read_say_nothing() {
        let notes = [Note { began_unix: 7, instance: "fetcher-1".into() }];
        assert_eq!(parse(&write(&notes)), notes);
        assert_eq!(parse(b"\xff\xff\nx y\n12\n"), []);
    }
}
