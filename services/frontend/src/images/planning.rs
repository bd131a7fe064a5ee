//! Asks the prefetch policies what of an image to fetch before it is read, and how.
//!
//! A start waits for nobody: when no plan comes within a short while, what earlier starts read is fetched in its order, and
//! everything else in the background.

use std::time::Duration;

use image::{Digest, ImageRecord, Map, Profile};
use proto::plan_item::Item;
use proto::plan_reply::Mode;
use proto::{PlanItem, PlanReply, PlanRequest, ResolveRequest};

use super::Images;
use super::facts::facts;
use crate::downloads::Prefetch;

/// How long a plan may take: it is asked for while the map is fetched, so mostly nobody waits for it.
const PLAN_WAIT: Duration = Duration::from_millis(300);

impl Images {
    /// The policies' plan. None: nobody answers in time, or no policy has one.
    pub(super) async fn plan(
        &self,
        asked: &ResolveRequest,
        record: &ImageRecord,
        profile: &Profile,
    ) -> Option<PlanReply> {
        let config = &self.node.config;
        let request = PlanRequest {
            facts: Some(facts(asked, record, config.asker(&record.project))),
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

/// The paths that a plan names, in its order.
pub(super) fn paths(plan: &PlanReply) -> Vec<String> {
    let path = |item: &PlanItem| match &item.item {
        Some(Item::Path(path)) => Some(path.clone()),
        _ => None,
    };
    plan.items.iter().filter_map(path).collect()
}

/// What a plan means for this image; `files`: the object of each path that it names, if there is one.
pub(super) fn prefetch(plan: PlanReply, files: &[Option<Digest>], profile: &Profile, map: &Map) -> Prefetch {
    let mode = plan.mode();
    let mut files = files.iter();
    let mut listed = Vec::new();
    for item in plan.items {
        match item.item {
            Some(Item::Chunks(run)) => {
                let (first, count) = (run.first as usize, run.count as usize);
                listed.extend(profile.chunks.iter().skip(first).take(count).copied());
            }
            Some(Item::Path(_)) => {
                let place = files.next().copied().flatten().and_then(|object| map.place(&object));
                let slices = place.into_iter().flat_map(|place| map.slices(place, 0..place.len));
                listed.extend(slices.map(|slice| map.chunks[slice.chunk as usize].digest));
            }
            None => {}
        }
    }
    let listed = listed.into_iter();
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

#[cfg(test)]
mod tests {
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
        let of = |mode, runs: &[(u32, u32)]| prefetch(plan(mode, runs), &[], &profile, &sample.map);
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
        let planned = prefetch(beyond, &[], &sample.profile([2, 3]), &sample.map);
        assert_eq!(positions(&sample, &planned.chunks), [3]);
    }
}
