//! A new image of a repository begins with what was learned from the one before: its first start is not the first one ever.
//!
//! ```text
//! first report of an image's start --> repositories/<hash of its name> says: this image was started
//! import of another image of it    --> that image's profile, through what both have, becomes the new one's guess
//! ```
//!
//! A guess is forgotten with the first start that is reported. All of it is a hint: what fails is logged, and nothing else.

use std::collections::BTreeSet;

use anyhow::Context as _;
use image::{ImageRecord, Map};
use names::ImageName;
use sha2::{Digest as _, Sha256};
use store::{Index, ProjectStore, verify};

use super::Service;
use super::starts::history;
use crate::seed::seed;

/// Repositories of one image that learn of its starts.
const REPOSITORIES_MAX: usize = 4;
/// What a repository's entry holds, in bytes: a manifest digest.
const ENTRY_MAX: usize = 128;

impl Service {
    /// Notes that an image was started, for the next of its repositories.
    pub(super) async fn note_started(&self, project: &ProjectStore, record: &ImageRecord) {
        for repository in repositories(record) {
            let manifest = record.manifest_digest.clone();
            if let Err(error) = project.put_repository(&repository, manifest.into()).await {
                tracing::warn!(image = record.manifest_digest, %error, "the repository will not learn of this image");
            }
        }
    }

    /// Guesses what starts of a new image will read.
    pub(super) async fn seed_profile(&self, project: &ProjectStore, record: &ImageRecord) {
        match self.try_to_seed(project, record).await {
            Ok(0) => {}
            Ok(chunks) => tracing::info!(
                image = record.manifest_digest,
                chunks,
                "its starts are guessed from an earlier image's"
            ),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(
                    image = record.manifest_digest,
                    error,
                    "its starts cannot be guessed from an earlier image's"
                );
            }
        }
    }

    async fn try_to_seed(&self, project: &ProjectStore, record: &ImageRecord) -> anyhow::Result<usize> {
        let mut own = history(project, &record.manifest_digest).await?;
        if !own.is_empty() {
            return Ok(0);
        }
        for repository in repositories(record) {
            let Some(earlier) = self.started_of(project, &repository).await? else { continue };
            let learned = history(project, &earlier.manifest_digest).await?.profile();
            if learned.starts == 0 || earlier.manifest_digest == record.manifest_digest {
                continue;
            }
            let (old, new) = (map(project, &earlier).await?, map(project, record).await?);
            let guess = tokio::task::spawn_blocking(move || seed(&old, &learned.chunks, &new)).await?;
            own.guess(&guess);
            project.put_profile(&record.manifest_digest, own.encode()?.into()).await?;
            return Ok(guess.len());
        }
        Ok(0)
    }

    /// The image of the repository that was the last to be started for the first time.
    async fn started_of(
        &self,
        project: &ProjectStore,
        repository: &str,
    ) -> anyhow::Result<Option<ImageRecord>> {
        let entry = match project.repository(repository).await {
            Err(error) if error.is_not_found() => return Ok(None),
            entry => entry?,
        };
        let manifest = std::str::from_utf8(&entry).ok().filter(|entry| entry.len() <= ENTRY_MAX);
        let manifest = manifest.context("the repository's entry is not a digest")?;
        Ok(self.records.image(project, manifest).await?.map(|image| image.record))
    }
}

/// The names of the repositories that the image is of, as the store knows them.
pub(super) fn repositories(record: &ImageRecord) -> BTreeSet<String> {
    let repository = |reference: &String| reference.parse::<ImageName>().ok()?.repository();
    // Each once, however many tags of it the image has.
    let names: BTreeSet<String> = record.references.iter().filter_map(repository).collect();
    names.into_iter().take(REPOSITORIES_MAX).map(|name| hex::encode(Sha256::digest(name))).collect()
}

pub(super) async fn map(project: &ProjectStore, record: &ImageRecord) -> anyhow::Result<Map> {
    let digest = record.map.digest;
    let stored = project.index(Index::Map, digest).await?;
    let decoded = tokio::task::spawn_blocking(move || -> anyhow::Result<Map> {
        Ok(Map::decode(&verify::open_index(&digest, &stored)?)?)
    });
    decoded.await?.with_context(|| format!("reading the map of {}", record.manifest_digest))
}
