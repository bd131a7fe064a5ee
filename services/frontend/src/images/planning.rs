//! Asks the prefetch policies what of an image to fetch before it is read, and how.
//!
//! A start waits for nobody: when no plan comes within a short while, what earlier starts read is fetched in its order, and
//! everything else in the background.

use std::collections::HashSet;
use std::time::Duration;

use image::limits::PROFILE_CHUNKS_MAX;
use image::{Digest, ImageRecord, Map, Profile};
use proto::plan_item::Item;
use proto::plan_reply::Mode;
use proto::{PlanItem, PlanReply, PlanRequest, ResolveRequest};

use super::Images;
use super::facts::facts;
use super::room::Claim;
use crate::downloads::Prefetch;

/// How long a plan may take: it is asked for while the map is fetched, so mostly nobody waits for it.
const PLAN_WAIT: Duration = Duration::from_millis(300);
/// The same for an image that was here before: containers may be reading it, and nothing of it is known to be read first.
const PLAN_WAIT_KEPT: Duration = Duration::from_millis(50);
/// Chunks that a plan's list comes to, repeats included: twice those of the longest profile, and 128 GiB of large files. What is
/// beyond is passed over.
const LISTED_MAX: usize = 2 * PROFILE_CHUNKS_MAX;

impl Images {
    /// The policies' plan. None: nobody answers in time, or no policy has one.
    pub(super) async fn plan(
        &self,
        asked: &ResolveRequest,
        record: &ImageRecord,
        profile: &Profile,
        claim: Claim,
    ) -> Option<PlanReply> {
        let config = &self.node.config;
        let request = PlanRequest {
            facts: Some(facts(asked, record, config.asker(&record.project))),
            starts: profile.starts,
            chunks: u32::try_from(profile.chunks.len()).unwrap_or(u32::MAX),
        };
        let wait = match claim {
            Claim::New => PLAN_WAIT,
            Claim::Kept => PLAN_WAIT_KEPT,
        };
        match self.node.bus.call_once(request, wait).await {
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

/// What a plan means for this image; `files`: the objects of each path that it names; `capped`: the node has a limit of
/// bandwidth. A limit is of the background, so under one everything that is not listed is left to that.
pub(super) fn prefetch(
    plan: PlanReply,
    files: &[Vec<Digest>],
    capped: bool,
    profile: &Profile,
    map: &Map,
) -> Prefetch {
    let mode = match plan.mode() {
        Mode::Everything if capped || plan.bandwidth.is_some() => Mode::ListedThenRest,
        mode => mode,
    };
    let mut files = files.iter();
    let chunks_of = |object: &Digest| {
        let slices = map.place(object).into_iter().flat_map(|place| map.slices(place, 0..place.len));
        slices.map(|slice| map.chunks[slice.chunk as usize].digest)
    };
    let of_item = |item: &PlanItem| -> Box<dyn Iterator<Item = Digest>> {
        match &item.item {
            Some(Item::Chunks(run)) => {
                let (first, count) = (run.first as usize, run.count as usize);
                Box::new(profile.chunks.iter().skip(first).take(count).copied())
            }
            Some(Item::Path(_)) => Box::new(files.next().into_iter().flatten().flat_map(chunks_of)),
            None => Box::new(std::iter::empty()),
        }
    };
    let listed = plan.items.iter().flat_map(of_item).take(LISTED_MAX);
    let everything = map.chunks.iter().map(|chunk| chunk.digest);
    let mut seen = HashSet::new();
    let once = |chunk: &Digest| seen.insert(*chunk);
    let chunks: Vec<Digest> = match mode {
        Mode::ListedThenRest | Mode::ListedOnly => listed.filter(once).collect(),
        Mode::Everything => listed.chain(everything).filter(once).collect(),
        Mode::Nothing => Vec::new(),
    };
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
        let of = |mode, runs: &[(u32, u32)]| prefetch(plan(mode, runs), &[], false, &profile, &sample.map);
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
    async fn under_a_limit_of_bandwidth_all_that_is_not_listed_is_background() {
        let sample = Site::new(0).await.sample(1, 6, 6).await;
        let profile = sample.profile([4, 1]);
        let of = |bandwidth, capped| {
            let plan = PlanReply { bandwidth, ..plan(Mode::Everything, &[(0, 2)]) };
            let prefetch = prefetch(plan, &[], capped, &profile, &sample.map);
            (positions(&sample, &prefetch.chunks).len(), prefetch.background, prefetch.bandwidth)
        };
        assert_eq!(of(None, false), (sample.map.chunks.len(), true, None));
        assert_eq!(of(Some(7), false), (2, true, Some(7)));
        assert_eq!(of(None, true), (2, true, None));
    }

    #[tokio::test]
    async fn numbers_that_the_profile_does_not_have_are_passed_over() {
        let sample = Site::new(0).await.sample(1, 6, 6).await;
        let beyond = plan(Mode::ListedOnly, &[(1, u32::MAX), (7, 9), (u32::MAX, u32::MAX)]);
        let planned = prefetch(beyond, &[], false, &sample.profile([2, 3]), &sample.map);
        assert_eq!(positions(&sample, &planned.chunks), [3]);
    }

    #[tokio::test]
    async fn files_bring_the_chunks_of_all_their_objects() {
        let sample = Site::new(0).await.sample(1, 6, 6).await;
        let of = |at: usize| sample.map.objects[at].digest;
        let path = |path: &str| PlanItem { item: Some(Item::Path(path.to_owned())) };
        let items = ["folder/", "none", "file"].map(path).to_vec();
        let named = PlanReply { mode: Mode::ListedOnly.into(), items, ..PlanReply::default() };
        let files = [vec![of(3), of(1), of(3)], vec![], vec![of(0), Digest::of(b"of another image")]];
        let planned = prefetch(named, &files, false, &sample.profile([]), &sample.map);
        let place = |at: usize| sample.map.objects[at].first_chunk as usize;
        let mut expected: Vec<usize> = [3, 1, 0].map(place).to_vec();
        expected.dedup();
        assert_eq!(positions(&sample, &planned.chunks), expected);
    }

    #[tokio::test]
    async fn what_a_list_repeats_counts_until_it_is_full() {
        let sample = Site::new(0).await.sample(1, 6, 6).await;
        let of = |repeated: usize| {
            let profile = sample.profile(std::iter::repeat_n(0, repeated).chain([5]));
            let planned =
                prefetch(plan(Mode::ListedOnly, &[(0, u32::MAX)]), &[], false, &profile, &sample.map);
            positions(&sample, &planned.chunks)
        };
        assert_eq!(of(LISTED_MAX - 1), [0, 5]);
        assert_eq!(of(LISTED_MAX), [0]);
    }
}
