//! Reads, order and failures, against real replicas over a real store.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::image::record::ObjectPlace;
use ::image::{Digest, Extent, Map, Profile, Sparse, SparseHasher};
use proto::chunks_request::Priority;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::content::testing::{Faults, Sample, Site, impatient};
use crate::content::{self, Content, FetchError};

mod places;

/// A node: its state folder outlives it.
struct TestNode {
    downloads: Downloads,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl TestNode {
    fn start(site: &Site, options: Options) -> TestNode {
        TestNode::start_telling(site, options, &bus::Bus::in_process())
    }

    fn start_telling(site: &Site, options: Options, bus: &bus::Bus) -> TestNode {
        let objects = Arc::new(Objects::open(&site.folder.path().join("state")).unwrap());
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let events = NodeEvents::new(bus.events().clone(), "node");
        let downloads = Downloads::start(objects, events, options, &tasks, shutdown.clone());
        TestNode { downloads, tasks, shutdown }
    }

    async fn add(&self, site: &Site, name: &str, sample: &Sample, profile: Profile) -> ImageId {
        self.add_with(site, name, sample, profile, content::Options::default()).await
    }

    async fn add_with(
        &self,
        site: &Site,
        name: &str,
        sample: &Sample,
        profile: Profile,
        options: content::Options,
    ) -> ImageId {
        let id = ImageId::new(name);
        let content = site.content(true, options);
        let new = new_image(id.clone(), sample, profile, content);
        self.downloads.add_image(new).await.unwrap();
        id
    }

    async fn check_reads(&self, sample: &Sample) {
        for (object, bytes) in &sample.bytes {
            let mut read = Vec::new();
            while read.len() < bytes.len() {
                let part = self.downloads.read(*object, read.len() as u64, 70_000).await.unwrap();
                assert!(!part.is_empty() && part.len() <= 70_000);
                read.extend_from_slice(&part);
            }
            assert!(read == *bytes, "{object}");
            assert_eq!(self.downloads.read(*object, bytes.len() as u64, 10).await.unwrap(), "");
            let middle = bytes.len() / 2;
            assert_eq!(
                self.downloads.read(*object, middle as u64, usize::MAX).await.unwrap(),
                bytes[middle..]
            );
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn new_image(id: ImageId, sample: &Sample, profile: Profile, content: Content) -> NewImage {
    let prefetch = Prefetch::learned(&profile);
    NewImage { id, map: sample.map.clone(), profile, prefetch, content, asked: Instant::now() }
}

/// The background begins at once.
fn eager() -> Options {
    Options { background_quiet: Duration::ZERO, ..Options::default() }
}

fn demand_only() -> Options {
    Options { background: false, ..Options::default() }
}

#[tokio::test]
async fn reads_are_right_whatever_comes_first() {
    for options in [eager(), demand_only()] {
        let site = Site::new(2).await;
        let sample = site.sample(1, 6, 5).await;
        let node = TestNode::start(&site, options);
        node.add(&site, "image", &sample, sample.profile([3, 7])).await;
        node.check_reads(&sample).await;
        let unknown = Digest::of(b"unknown");
        assert_eq!(node.downloads.read(unknown, 0, 1).await, Err(ReadError::Unknown(unknown)));
        node.stop().await;
    }
}

#[tokio::test]
async fn the_background_completes_an_image_and_its_files_are_whole() {
    let site = Site::new(2).await;
    let sample = site.sample(1, 20, 9).await;
    let node = TestNode::start(&site, eager());
    let id = node.add(&site, "image", &sample, Profile::default()).await;
    assert!(node.downloads.completed(&id).await);
    let progress = node.downloads.progress(&id).unwrap();
    assert_eq!((progress.objects_local, progress.objects_total), (201, 201));
    assert_eq!(
        (progress.bytes_local, progress.bytes_total),
        (sample.map.plain_bytes(), sample.map.plain_bytes())
    );
    assert_eq!((progress.demand_bytes, progress.prefetch_bytes), (0, 0));
    assert_eq!(progress.received_bytes, sample.map.stored_bytes());
    for (object, bytes) in &sample.bytes {
        assert!(std::fs::read(node.downloads.objects().path(object)).unwrap() == *bytes);
    }
    // The replicas may go now.
    site.replicas.iter().for_each(|replica| replica.set(Faults { refuse: true, ..Faults::default() }));
    node.check_reads(&sample).await;
    node.stop().await;
}

#[tokio::test]
async fn a_chunk_travels_once_whoever_wants_it() {
    let site = Site::new(1).await;
    let sample = site.sample(1, 1, 0).await;
    let node = TestNode::start(&site, demand_only());
    let id = node.add(&site, "image", &sample, Profile::default()).await;
    let reads =
        sample.bytes.keys().chain(sample.bytes.keys()).map(|object| node.downloads.read(*object, 0, 100));
    for read in futures::future::join_all(reads).await {
        assert_eq!(read.unwrap().len(), 100);
    }
    assert_eq!(site.replicas[0].sent().len(), 1);
    let trace = node.downloads.trace(&id);
    assert_eq!(trace.len(), 1);
    assert_eq!(trace[0].waiters, 20);
    assert_eq!(trace[0].chunk, sample.map.chunks[0].digest.as_bytes());
    node.stop().await;
}

#[tokio::test]
async fn demand_overtakes_a_prefetch_and_a_background_that_are_stuck() {
    for stuck in [Priority::Prefetch, Priority::Background] {
        let site = Site::new(1).await;
        let sample = site.sample(1, 3, 12).await;
        site.replicas[0].set(Faults { hold: Some(stuck), ..Faults::default() });
        let node = TestNode::start(&site, eager());
        let profile = if stuck == Priority::Prefetch { sample.profile(0..15) } else { Profile::default() };
        let id = node.add(&site, "image", &sample, profile).await;
        // The last chunk stands behind 1.2 MB of the lower class: too far to wait for.
        let large = sample.object_at(3);
        let end = sample.bytes[&large].len() - 10;
        assert_eq!(node.downloads.read(large, end as u64, 100).await.unwrap(), sample.bytes[&large][end..]);
        assert_eq!(site.replicas[0].sent()[0], (sample.map.chunks[14].digest, Priority::Demand));
        // A read of the first waits for the lower class, which goes on because of it.
        let object = sample.object_at(0);
        let waiting = node.downloads.read(object, 0, 10);
        site.replicas[0].set(Faults::default());
        assert_eq!(waiting.await.unwrap(), sample.bytes[&object][..10]);
        assert!(node.downloads.completed(&id).await);
        node.stop().await;
    }
}

#[tokio::test]
async fn the_prefetch_comes_in_the_order_of_the_profile_and_before_the_background() {
    let site = Site::new(1).await;
    let sample = site.sample(1, 30, 4).await;
    let node = TestNode::start(&site, eager());
    let order = [20, 3, 33, 7, 0];
    let id = node.add(&site, "image", &sample, sample.profile(order)).await;
    assert!(node.downloads.completed(&id).await);
    let sent = site.replicas[0].sent();
    let expected: Vec<_> =
        order.iter().map(|at| (sample.map.chunks[*at].digest, Priority::Prefetch)).collect();
    assert_eq!(sent[..5], expected);
    assert!(sent[5..].iter().all(|(_, class)| *class == Priority::Background));
    let once: HashSet<Digest> = sent.iter().map(|(chunk, _)| *chunk).collect();
    assert_eq!((once.len(), sent.len()), (34, 34));
    node.stop().await;
}

#[tokio::test]
async fn the_profile_is_what_reads_needed_in_their_order() {
    let site = Site::new(1).await;
    let sample = site.sample(1, 6, 0).await;
    let node = TestNode::start(&site, demand_only());
    let id = node.add(&site, "image", &sample, Profile::default()).await;
    for position in [4, 1, 4, 0] {
        node.downloads.read(sample.object_at(position), 0, 10).await.unwrap();
    }
    assert_eq!(node.downloads.profile(&id).unwrap(), sample.profile([4, 1, 0]));
    // The next start prefetches them; reads that are answered by the prefetch count as well.
    let id = node.add(&site, "image", &sample, sample.profile([4, 1])).await;
    for position in [1, 5, 4] {
        node.downloads.read(sample.object_at(position), 0, 10).await.unwrap();
    }
    assert_eq!(node.downloads.profile(&id).unwrap(), sample.profile([4, 1, 5]));
    node.stop().await;
}

#[tokio::test]
async fn a_restart_goes_on_where_it_was() {
    let site = Site::new(1).await;
    let sample = site.sample(1, 5, 8).await;
    let large = sample.object_at(5);
    let node = TestNode::start(&site, demand_only());
    node.add(&site, "image", &sample, Profile::default()).await;
    node.downloads.read(sample.object_at(2), 0, 10).await.unwrap();
    node.downloads.read(large, 150_000, 10).await.unwrap();
    node.downloads.settled().await;
    node.stop().await;

    let node = TestNode::start(&site, eager());
    // What is here already is not prefetched either.
    let id = node.add(&site, "image", &sample, sample.profile([2, 6, 0])).await;
    assert!(node.downloads.completed(&id).await);
    let sent = site.replicas[0].sent();
    for read in [2, 6] {
        let digest = sample.map.chunks[read].digest;
        assert_eq!(sent.iter().filter(|(chunk, _)| *chunk == digest).count(), 1, "chunk {read}");
    }
    node.check_reads(&sample).await;
    assert_eq!(site.replicas[0].sent().len(), sent.len());
    node.stop().await;
}

#[tokio::test]
async fn an_object_whose_last_piece_came_just_before_a_crash_becomes_whole() {
    let site = Site::new(1).await;
    let sample = site.sample(1, 0, 3).await;
    let node = TestNode::start(&site, eager());
    let id = node.add(&site, "image", &sample, Profile::default()).await;
    assert!(node.downloads.completed(&id).await);
    node.stop().await;
    // As such a crash leaves it: every piece is marked, and the object not let in.
    let (object, state) = (sample.object_at(0), site.folder.path().join("state"));
    let partial = state.join("partial").join(object.to_string());
    std::fs::rename(state.join("objects").join(object.path()), &partial).unwrap();
    std::fs::write(partial.with_extension("have"), "111").unwrap();

    let node = TestNode::start(&site, eager());
    let id = node.add(&site, "image", &sample, Profile::default()).await;
    assert!(node.downloads.completed(&id).await);
    assert_eq!(site.replicas[0].sent().len(), 3);
    node.stop().await;
}

#[tokio::test]
async fn stalls_cuts_and_wrong_bytes_delay_but_never_harm() {
    let site = Site::new(2).await;
    let sample = site.sample(1, 8, 6).await;
    let chunk = |at: usize| sample.map.chunks[at].digest;
    site.replicas[0].set(Faults {
        stall: vec![chunk(0), chunk(9)],
        cut: vec![chunk(2), chunk(10)],
        corrupt: (3..8).map(chunk).collect(),
        ..Faults::default()
    });
    site.replicas[1].set(Faults { corrupt: vec![chunk(1), chunk(11)], ..Faults::default() });
    let options = content::Options { stall_timeout: Duration::from_millis(200), ..Default::default() };
    let node = TestNode::start(&site, eager());
    let id = node.add_with(&site, "image", &sample, sample.profile(4..10), options).await;
    node.check_reads(&sample).await;
    assert!(node.downloads.completed(&id).await);
    node.stop().await;
}

#[tokio::test]
async fn a_link_that_drops_and_comes_back_only_makes_reads_wait() {
    let site = Site::new(1).await;
    let sample = site.sample(1, 4, 4).await;
    // Nothing but the replica: the store cannot help.
    let content = site.content(false, content::Options::default());
    let node = TestNode::start(&site, demand_only());
    let id = ImageId::new("image");
    node.downloads.add_image(new_image(id, &sample, Profile::default(), content)).await.unwrap();
    site.replicas[0].set(Faults { refuse: true, ..Faults::default() });
    let object = sample.object_at(1);
    let read = node.downloads.read(object, 0, 10);
    let back = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        site.replicas[0].set(Faults::default());
    };
    let (read, ()) = tokio::join!(read, back);
    assert_eq!(read.unwrap(), sample.bytes[&object][..10]);
    node.stop().await;
}

#[tokio::test]
async fn what_cannot_be_had_is_an_error_and_never_zeros() {
    let site = Site::new(1).await;
    let sample = site.sample(1, 2, 0).await;
    site.project().delete_chunk(sample.map.chunks[0].digest).await.unwrap();
    let node = TestNode::start(&site, demand_only());
    node.add_with(&site, "image", &sample, Profile::default(), impatient()).await;
    let object = sample.object_at(0);
    let source = FetchError::Missing(sample.map.chunks[0].digest);
    assert_eq!(node.downloads.read(object, 0, 1).await, Err(ReadError::Fetch { object, source }));
    assert!(node.downloads.read(sample.object_at(1), 0, 1).await.is_ok());
    node.stop().await;
}

#[tokio::test]
async fn a_removed_image_is_not_downloaded_any_further() {
    let site = Site::new(1).await;
    let sample = site.sample(1, 10, 0).await;
    site.replicas[0].set(Faults { hold: Some(Priority::Demand), ..Faults::default() });
    let node = TestNode::start(&site, demand_only());
    let id = node.add(&site, "image", &sample, Profile::default()).await;
    let object = sample.object_at(0);
    let read = tokio::spawn({
        let downloads = node.downloads.clone();
        async move { downloads.read(object, 0, 1).await }
    });
    site.replicas[0].asked(1).await;
    node.downloads.remove_image(&id);
    let chunk = sample.map.chunks[0].digest;
    let cancelled = ReadError::Fetch { object, source: FetchError::Cancelled(chunk) };
    assert_eq!(read.await.unwrap(), Err(cancelled));
    assert!(!node.downloads.contains(&object) && !node.downloads.completed(&id).await);
    assert!(site.replicas[0].sent().is_empty());
    node.stop().await;
}

#[tokio::test]
async fn a_read_outlives_the_image_it_was_asked_through() {
    let site = Site::new(1).await;
    let sample = site.sample(1, 3, 0).await;
    site.replicas[0].set(Faults { hold: Some(Priority::Demand), ..Faults::default() });
    let node = TestNode::start(&site, demand_only());
    let other = node.add(&site, "other", &sample, Profile::default()).await;
    let id = node.add(&site, "image", &sample, Profile::default()).await;
    let object = sample.object_at(0);
    let read = tokio::spawn({
        let downloads = node.downloads.clone();
        async move { downloads.read(object, 0, 4).await }
    });
    site.replicas[0].asked(1).await;
    node.downloads.remove_image(&id);
    site.replicas[0].set(Faults::default());
    assert_eq!(read.await.unwrap().unwrap(), sample.bytes[&object][..4]);
    assert_eq!(node.downloads.trace(&other).len(), 1);
    node.stop().await;
}

#[tokio::test]
async fn what_two_images_share_is_fetched_once() {
    let site = Site::new(1).await;
    let shared = site.sample(1, 4, 3).await;
    let node = TestNode::start(&site, eager());
    let first = node.add(&site, "first", &shared, Profile::default()).await;
    let second = node.add(&site, "second", &shared, Profile::default()).await;
    assert!(node.downloads.completed(&first).await && node.downloads.completed(&second).await);
    assert_eq!(site.replicas[0].sent().len(), 7);
    node.stop().await;
}

#[tokio::test]
async fn an_object_that_its_chunks_do_not_make_up_stays_remote() {
    let site = Site::new(1).await;
    let sample = site.sample(1, 2, 3).await;
    let mut map = (*sample.map).clone();
    let wrong = Digest::from_bytes([7; 32]);
    let large = sample.object_at(2);
    map.objects.iter_mut().find(|place| place.digest == large).unwrap().digest = wrong;
    map.objects.sort_by_key(|place| place.digest);
    let sample = Sample { map: Arc::new(map), bytes: sample.bytes };
    let node = TestNode::start(&site, eager());
    let id = node.add(&site, "image", &sample, Profile::default()).await;
    let mut progress = node.downloads.follow(&id).unwrap();
    progress.wait_for(|progress| progress.objects_local == 20).await.unwrap();
    node.downloads.settled().await;
    assert!(!node.downloads.objects().contains(&wrong));
    node.stop().await;
}

#[tokio::test]
async fn the_background_respects_the_disk_budget_and_reads_do_not_need_it() {
    let site = Site::new(1).await;
    let sample = site.sample(1, 6, 0).await;
    let node = TestNode::start(&site, Options { disk_budget: Some(0), ..eager() });
    let id = node.add(&site, "image", &sample, Profile::default()).await;
    for position in 0..6 {
        node.downloads.read(sample.object_at(position), 0, 10).await.unwrap();
    }
    assert!(site.replicas[0].sent().iter().all(|(_, class)| *class == Priority::Demand));
    assert!(node.downloads.progress(&id).unwrap().received_bytes > 0);
    node.stop().await;
}

#[tokio::test]
async fn a_read_does_not_wait_for_ever_on_a_prefetch_that_it_joined() {
    let site = Site::new(1).await;
    let sample = site.sample(1, 2, 0).await;
    site.replicas[0].set(Faults { hold: Some(Priority::Prefetch), ..Faults::default() });
    let node = TestNode::start(&site, demand_only());
    node.add(&site, "image", &sample, sample.profile([1, 0])).await;
    site.replicas[0].asked(1).await;
    let object = sample.object_at(0);
    assert_eq!(node.downloads.read(object, 0, 10).await.unwrap(), sample.bytes[&object][..10]);
    assert_eq!(site.replicas[0].sent(), [(sample.map.chunks[0].digest, Priority::Demand)]);
    node.stop().await;
}

#[tokio::test]
async fn what_stands_behind_a_read_is_asked_for_with_it_and_is_no_part_of_the_profile() {
    let site = Site::new(1).await;
    let sample = site.sample(1, 5, 0).await;
    let node = TestNode::start(&site, demand_only());
    let id = node.add(&site, "image", &sample, Profile::default()).await;
    node.downloads.read(sample.object_at(1), 0, 10).await.unwrap();
    let mut progress = node.downloads.follow(&id).unwrap();
    let four: u64 = sample.map.chunks[1..].iter().map(|chunk| u64::from(chunk.stored_len)).sum();
    progress.wait_for(|progress| progress.received_bytes == four).await.unwrap();
    assert_eq!(node.downloads.trace(&id)[0].chunk, sample.map.chunks[1].digest.as_bytes());
    assert_eq!(node.downloads.profile(&id).unwrap(), sample.profile([1]));
    node.stop().await;
}

#[tokio::test]
async fn what_is_planned_without_a_background_brings_its_list_alone() {
    let site = Site::new(1).await;
    let (planned, other) = (site.sample(1, 8, 0).await, site.sample(2, 8, 0).await);
    let node = TestNode::start(&site, eager());
    let mut new = new_image(
        "planned".into(),
        &planned,
        Profile::default(),
        site.content(true, content::Options::default()),
    );
    new.prefetch = Prefetch { chunks: planned.profile([5, 2]).chunks, background: false, bandwidth: None };
    node.downloads.add_image(new).await.unwrap();
    // The background of an image that came later is over: the first one's would have been asked for by then.
    let id = node.add(&site, "other", &other, Profile::default()).await;
    assert!(node.downloads.completed(&id).await);
    let sent = site.replicas[0].sent();
    let of_planned: Vec<_> = sent
        .iter()
        .filter(|(chunk, _)| planned.map.chunks.iter().any(|known| known.digest == *chunk))
        .collect();
    let expected = [5, 2].map(|at| (planned.map.chunks[at].digest, Priority::Prefetch));
    assert_eq!(of_planned, expected.iter().collect::<Vec<_>>());
    node.stop().await;
}

#[tokio::test]
async fn an_images_own_bandwidth_holds_back_its_background_and_no_other() {
    let site = Site::new(1).await;
    let (slow, other) = (site.sample(1, 8, 4).await, site.sample(2, 8, 4).await);
    let node = TestNode::start(&site, eager());
    let mut new =
        new_image("slow".into(), &slow, Profile::default(), site.content(true, content::Options::default()));
    // One byte a second: the first chunk overdraws it for hours.
    new.prefetch.bandwidth = Some(1);
    node.downloads.add_image(new).await.unwrap();
    let id = node.add(&site, "other", &other, Profile::default()).await;
    assert!(node.downloads.completed(&id).await);
    assert!(!node.downloads.progress(&"slow".into()).unwrap().complete);
    let sent = site.replicas[0].sent();
    let of_slow =
        sent.iter().filter(|(chunk, _)| slow.map.chunks.iter().any(|known| known.digest == *chunk)).count();
    assert!(of_slow <= 1, "{of_slow} chunks were asked for");
    node.stop().await;
}

#[tokio::test]
async fn lower_classes_rest_while_a_quota_is_used_up_and_then_go_on_in_their_order() {
    let site = Site::new(1).await;
    let sample = site.sample(1, 12, 2).await;
    let replica = &site.replicas[0];
    replica.set(Faults { short: Some(Duration::from_millis(700)), ..Faults::default() });
    let node = TestNode::start(&site, eager());
    let order = [7, 3, 9, 1];
    let id = node.add(&site, "image", &sample, sample.profile(order)).await;
    replica.refusals(1).await;
    // One request of all that the prefetch is short of; what a read needs is asked for again and again.
    assert_eq!(replica.refused(), 1);
    let object = sample.object_at(5);
    let read = node.downloads.read(object, 0, 10);
    let allowed = async {
        replica.refusals(2).await;
        replica.set(Faults::default());
    };
    let (read, ()) = tokio::join!(read, allowed);
    assert_eq!(read.unwrap(), sample.bytes[&object][..10]);
    assert!(node.downloads.completed(&id).await);
    let prefetched: Vec<Digest> = replica
        .sent()
        .into_iter()
        .filter(|(_, class)| *class == Priority::Prefetch)
        .map(|(chunk, _)| chunk)
        .collect();
    let expected: Vec<Digest> = order.iter().map(|at| sample.map.chunks[*at].digest).collect();
    let is_expected = |chunk: &Digest| prefetched.contains(chunk);
    assert!(expected.iter().filter(|chunk| is_expected(chunk)).eq(prefetched.iter()), "{prefetched:?}");
    assert!(prefetched.len() > 1, "what was refused is not forgotten");
    node.stop().await;
}

#[tokio::test]
async fn a_read_that_stalls_is_told_once_and_goes_on() {
    let (site, bus) = (Site::new(1).await, bus::Bus::in_process());
    let sample = site.sample(1, 1, 0).await;
    let node = TestNode::start_telling(&site, demand_only(), &bus);
    let content = site.content(false, content::Options::default());
    let new = new_image(ImageId::new("sha256:m"), &sample, Profile::default(), content);
    node.downloads.add_image(new).await.unwrap();
    site.replicas[0].set(Faults { hold: Some(Priority::Demand), ..Faults::default() });
    let (object, bytes) = sample.bytes.iter().next().unwrap();
    let (downloads, object) = (node.downloads.clone(), *object);
    let reading = tokio::spawn(async move { downloads.read(object, 0, 100).await });
    let stalled = || -> Vec<proto::Event> {
        bus.events().recent().into_iter().filter(|event| event.reason == "read-stalled").collect()
    };
    let asked = Instant::now();
    while stalled().is_empty() {
        assert!(asked.elapsed() < Duration::from_secs(60), "nobody is told");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!reading.is_finished(), "it waits as long as it may");
    site.replicas[0].set(Faults::default());
    assert_eq!(reading.await.unwrap().unwrap(), bytes[..100]);
    let told = stalled();
    assert_eq!((told.len(), told[0].manifest_digest.as_str()), (1, "sha256:m"));
    assert_eq!((told[0].details["size"].as_str(), told[0].details["waited"].as_str()), ("100", "5s"));
    node.stop().await;
}
