//! Asks the prefetch policies what of an image to fetch before it is read, and how.
//!
//! A start waits for nobody: when no plan comes within a short while, what earlier starts read is fetched in its order, and
//! everything else in the background.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use image::{Digest, ImageRecord, Map, Profile};
use proto::plan_item::Item;
use proto::plan_reply::Mode;
use proto::{AskerFacts, Facts, ImageFacts, LayerFacts, PlanReply, PlanRequest};

use super::Images;
use crate::downloads::Prefetch;

/// How long a plan may take: it is asked for while the map is fetched, so mostly nobody waits for it.
const PLAN_WAIT: Duration = Duration::from_millis(300);

impl Images {
    /// The policies' plan. None: nobody answers in time, or no policy has one.
    pub(super) async fn plan(&self, record: &ImageRecord, profile: &Profile) -> Option<PlanReply> {
        let config = &self.node.config;
        let request = PlanRequest {
            facts: Some(facts(record, config.asker(&record.project))),
            starts: profile.starts,
            chunks: u32::try_from(profile.chunks.len()).unwrap_or(u32::MAX),
        };
        match self.node.bus.call_once(request, PLAN_WAIT).await {
            Ok(plan) => Some(plan),
            Err(status) => {
                tracing::debug!(image = record.manifest_digest, error = status.message(), "no prefetch plan");
                None
            }
        }
    }
}

/// What a plan means for this image.
pub(super) fn prefetch(plan: PlanReply, profile: &Profile, map: &Map) -> Prefetch {
    let mode = plan.mode();
    let listed = plan.items.into_iter().filter_map(|item| match item.item? {
        Item::Chunks(run) => Some((run.first as usize, run.count as usize)),
        // Which chunks a file stands in, only the tree knows, which is not here yet.
        Item::Path(path) => {
            tracing::debug!(path, "a prefetch plan names a path: passed over");
            None
        }
    });
    let of_profile = |(first, count): (usize, usize)| profile.chunks.iter().skip(first).take(count).copied();
    let listed = listed.flat_map(of_profile);
    let everything = map.chunks.iter().map(|chunk| chunk.digest);
    let mut once = std::collections::HashSet::new();
    let mut chunks: Vec<Digest> = match mode {
        Mode::ListedThenRest | Mode::ListedOnly => listed.collect(),
        Mode::Everything => listed.chain(everything).collect(),
        Mode::Nothing => Vec::new(),
    };
    chunks.retain(|chunk| once.insert(*chunk));
    let background = matches!(mode, Mode::ListedThenRest | Mode::Everything);
    Prefetch { chunks, background, bandwidth: plan.bandwidth }
}

fn facts(record: &ImageRecord, asker: AskerFacts) -> Facts {
    Facts {
        image: Some(image_facts(record)),
        asker: Some(asker),
        now_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64),
        ..Facts::default()
    }
}

/// As far as the image's record tells; the fetcher's facts are the same and more.
fn image_facts(record: &ImageRecord) -> ImageFacts {
    let reference = record.references.first().cloned().unwrap_or_default();
    let (registry, repository, tag) = parts(&reference);
    let mut seen = std::collections::HashSet::new();
    let layer = |layer: &image::record::LayerRef| LayerFacts {
        digest: layer.digest.clone(),
        diff_id: layer.diff_id.clone(),
        media_type: layer.media_type.clone(),
        size: layer.size,
        empty: layer.entries == 0,
        duplicate: !seen.insert(layer.digest.clone()),
        encrypted: false,
    };
    let layers: Vec<LayerFacts> = record.layers.iter().map(layer).collect();
    ImageFacts {
        compressed_bytes: layers.iter().filter(|layer| !layer.duplicate).map(|layer| layer.size).sum(),
        layers,
        manifest_digest: record.manifest_digest.clone(),
        schema_version: 2,
        registry,
        repository,
        tag,
        reference,
        ..ImageFacts::default()
    }
}

/// Registry, repository and tag of a reference in full; of local images none.
fn parts(reference: &str) -> (String, String, Option<String>) {
    let name = reference.split_once('@').map_or(reference, |(name, _)| name);
    let local = reference.starts_with("oci:") || reference.starts_with("docker-archive:");
    let Some((registry, path)) = name.split_once('/').filter(|_| !local) else { return Default::default() };
    let (repository, tag) = match path.split_once(':') {
        Some((repository, tag)) => (repository, Some(tag.to_owned())),
        None => (path, None),
    };
    (registry.to_owned(), repository.to_owned(), tag)
}

#[cfg(test)]
mod tests {
    use proto::PlanItem;
    use proto::plan_item::ChunkRun;

    use super::*;
    use crate::content::testing::{Sample, Site};

    fn plan(mode: Mode, runs: &[(u32, u32)]) -> PlanReply {
        let item = |(first, count): &(u32, u32)| PlanItem {
            item: Some(Item::Chunks(ChunkRun { first: *first, count: *count })),
        };
        PlanReply { mode: mode.into(), items: runs.iter().map(item).collect(), ..PlanReply::default() }
    }

    fn positions(sample: &Sample, chunks: &[Digest]) -> Vec<usize> {
        let position = |chunk: &Digest| sample.map.chunks.iter().position(|known| known.digest == *chunk);
        chunks.iter().filter_map(position).collect()
    }

    #[tokio::test]
    async fn the_mode_says_what_follows_the_list() {
        let sample = Site::new(0).await.sample(1, 6, 6).await;
        let profile = sample.profile([4, 1, 0]);
        let of = |mode, runs: &[(u32, u32)]| prefetch(plan(mode, runs), &profile, &sample.map);
        let positions = |prefetch: &Prefetch| positions(&sample, &prefetch.chunks);
        let learned = of(Mode::ListedThenRest, &[(0, 3)]);
        assert_eq!((positions(&learned), learned.background), (vec![4, 1, 0], true));
        let only = of(Mode::ListedOnly, &[(1, 2), (0, 1), (1, 1)]);
        assert_eq!((positions(&only), only.background), (vec![1, 0, 4], false));
        let whole = of(Mode::Everything, &[(0, 1)]);
        assert_eq!(positions(&whole)[0], 4);
        assert_eq!(whole.chunks.len(), sample.map.chunks.len());
        let nothing = of(Mode::Nothing, &[(0, 3)]);
        assert_eq!((nothing.chunks.len(), nothing.background), (0, false));
    }

    #[tokio::test]
    async fn numbers_that_the_profile_does_not_have_are_passed_over() {
        let sample = Site::new(0).await.sample(1, 6, 6).await;
        let beyond = plan(Mode::ListedOnly, &[(1, u32::MAX), (7, 9), (u32::MAX, u32::MAX)]);
        let planned = prefetch(beyond, &sample.profile([2, 3]), &sample.map);
        assert_eq!(positions(&sample, &planned.chunks), [3]);
    }

    #[test]
    fn references_are_taken_apart() {
        let expect = |reference: &str, registry: &str, repository: &str, tag: Option<&str>| {
            assert_eq!(parts(reference), (registry.into(), repository.into(), tag.map(str::to_owned)));
        };
        expect("docker.io/library/debian:12", "docker.io", "library/debian", Some("12"));
        expect("host:5000/app@sha256:12", "host:5000", "app", None);
        expect("host:5000/app:1@sha256:12", "host:5000", "app", Some("1"));
        expect("oci:/srv/a:b", "", "", None);
    }
}
