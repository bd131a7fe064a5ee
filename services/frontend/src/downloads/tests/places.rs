//! Where the bytes of a download go: disks that fill up, chunks that stand at many places, objects with holes.

use super::*;

#[tokio::test]
async fn on_a_full_disk_reads_go_on_and_the_background_rests() {
    let site = Site::new(1).await;
    let sample = site.sample(1, 20, 0).await;
    let state = site.folder.path().join("state");
    let disk = SmallDisk::mount(&state);
    let node = TestNode::start(&site, eager());
    let id = node.add(&site, "image", &sample, Profile::default()).await;
    node.check_reads(&sample).await;
    node.downloads.settled().await;
    let progress = node.downloads.progress(&id).unwrap();
    assert!(progress.objects_local > 0 && !progress.complete, "{progress:?}");
    // What is there is whole.
    for held in (0..=u8::MAX).flat_map(|shard| node.downloads.objects().held_in(shard).unwrap()) {
        let kept = std::fs::read(node.downloads.objects().path(&held.digest)).unwrap();
        assert!(kept == sample.bytes[&held.digest]);
    }
    node.stop().await;
    drop(disk);
}

/// A file system of 400 KiB.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: &std::path::Path) -> SmallDisk {
        std::fs::create_dir_all(at).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("sluice-test", at, "tmpfs", flags, Some(c"size=400k")).unwrap();
        SmallDisk(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

/// One object of `count` chunks, all of them the same.
async fn repeated(site: &Site, count: u32) -> Sample {
    let chunk = crate::content::testing::noise([7, 7, 7], 100_000);
    let chunk_ref = site.keep(&chunk).await;
    let whole = chunk.repeat(count as usize);
    let (digest, len) = (Digest::of(&whole), whole.len() as u64);
    let place = ObjectPlace { digest, len, first_chunk: 0, chunk_count: count, offset: 0 };
    let map = Map { chunks: vec![chunk_ref; count as usize], objects: vec![place], ..Map::default() };
    Sample { map: Arc::new(map), bytes: HashMap::from([(digest, whole)]) }
}

const REPEATED: u32 = 400;

#[tokio::test]
async fn of_a_chunk_that_stands_at_many_places_a_read_writes_the_one_that_it_needs() {
    let site = Site::new(1).await;
    let sample = repeated(&site, REPEATED).await;
    let node = TestNode::start(&site, demand_only());
    let id = node.add(&site, "image", &sample, Profile::default()).await;
    let object = sample.map.objects[0].digest;
    let read = node.downloads.read(object, 20_000_007, 1).await.unwrap();
    assert_eq!(read[..], sample.bytes[&object][20_000_007..20_000_008]);
    node.downloads.settled().await;
    // What is local is told once the disk was looked through.
    let mut progress = node.downloads.follow(&id).unwrap();
    progress.wait_for(|progress| progress.bytes_local > 0).await.unwrap();
    assert_eq!(progress.borrow().bytes_local, 100_000);
    assert!(node.downloads.objects().measure().unwrap() < 300_000);
    node.stop().await;
}

#[tokio::test]
async fn the_other_places_of_a_chunk_are_written_within_the_disk_budget_and_no_longer_than_the_image_is_here()
{
    let site = Site::new(1).await;
    let sample = repeated(&site, REPEATED).await;
    let node = TestNode::start(&site, Options { disk_budget: Some(1 << 20), ..eager() });
    let id = node.add(&site, "image", &sample, Profile::default()).await;
    let object = sample.map.objects[0].digest;
    node.downloads.read(object, 0, 1).await.unwrap();
    let mut progress = node.downloads.follow(&id).unwrap();
    progress.wait_for(|progress| progress.bytes_local >= 1 << 20).await.unwrap();
    node.downloads.settled().await;
    // One batch was begun before the budget was used up.
    let used = node.downloads.objects().measure().unwrap();
    assert!(used <= (1 << 20) + (17 << 20), "{used}");
    node.downloads.remove_image(&id);
    node.downloads.settled().await;
    let used = node.downloads.objects().measure().unwrap();
    node.downloads.settled().await;
    assert_eq!(node.downloads.objects().measure().unwrap(), used);
    node.stop().await;
}

#[tokio::test]
async fn the_background_writes_all_places_of_a_chunk_that_came_once() {
    let site = Site::new(1).await;
    let sample = repeated(&site, REPEATED).await;
    let node = TestNode::start(&site, eager());
    let id = node.add(&site, "image", &sample, Profile::default()).await;
    assert!(node.downloads.completed(&id).await);
    assert!(site.replicas[0].sent().len() <= 2, "{} times", site.replicas[0].sent().len());
    node.check_reads(&sample).await;
    node.stop().await;
}

const TERABYTE: u64 = 1 << 40;

/// An object of a terabyte with two chunks of data, and one with none.
async fn sparse(site: &Site) -> (Sample, [Digest; 2]) {
    let data = crate::content::testing::noise([1, 2, 3], 3 * 4096);
    let extent = |offset, len| Extent { offset, len };
    let extents = vec![extent(4096, 4096), extent(TERABYTE / 2, 8192)];
    let name = |parts: &[(u64, &[u8])]| {
        let mut hasher = SparseHasher::new(TERABYTE);
        for (offset, data) in parts {
            hasher.hole(offset - hasher.position());
            hasher.data(data);
        }
        hasher.hole(TERABYTE - hasher.position());
        hasher.finish()
    };
    let holed = name(&[(4096, &data[..4096]), (TERABYTE / 2, &data[4096..])]);
    let hollow = name(&[]);
    let chunks = vec![site.keep(&data[..6000]).await, site.keep(&data[6000..]).await];
    let place =
        |digest, chunk_count| ObjectPlace { digest, len: TERABYTE, first_chunk: 0, chunk_count, offset: 0 };
    let mut objects = vec![place(holed, 2), place(hollow, 0)];
    objects.sort_by_key(|place| place.digest);
    let mut sparse = vec![Sparse { object: holed, extents }, Sparse { object: hollow, extents: Vec::new() }];
    sparse.sort_by_key(|sparse| sparse.object);
    let map = Map { chunks, objects, sparse };
    let map = Arc::new(Map::decode(&map.encode().unwrap()).unwrap());
    (Sample { map, bytes: HashMap::from([(holed, data)]) }, [holed, hollow])
}

#[tokio::test]
async fn reads_of_holes_need_nobody_and_reads_beside_them_wait_for_their_bytes() {
    let site = Site::new(1).await;
    let (sample, [holed, hollow]) = sparse(&site).await;
    let data = &sample.bytes[&holed];
    let node = TestNode::start(&site, demand_only());
    node.add(&site, "image", &sample, Profile::default()).await;
    let read = async |object, offset, len| node.downloads.read(object, offset, len).await.unwrap();
    assert_eq!(read(hollow, TERABYTE - 3, 100).await[..], [0; 3]);
    assert_eq!(read(holed, TERABYTE / 4, 100).await[..], [0; 100]);
    assert!(read(holed, TERABYTE, 1).await.is_empty());
    assert!(site.replicas[0].sent().is_empty());
    let expected = [&[0; 10], &data[..4096], &[0; 10]].concat();
    assert_eq!(read(holed, 4096 - 10, 4096 + 20).await[..], expected);
    let expected = [&[0; 1], &data[4096..], &[0; 2]].concat();
    assert_eq!(read(holed, TERABYTE / 2 - 1, 8192 + 3).await[..], expected);
    for (offset, next_data, next_hole) in [
        (0, 4096, 0),
        (5000, 5000, 8192),
        (8192, TERABYTE / 2, 8192),
        (TERABYTE / 2 + 8192, TERABYTE, TERABYTE / 2 + 8192),
    ] {
        let seek = async |what| node.downloads.seek(holed, offset, what).await.unwrap();
        assert_eq!((seek(Seek::Data).await, seek(Seek::Hole).await), (next_data, next_hole), "{offset}");
    }
    // Where the bytes cannot come there are no zeros in their place.
    node.stop().await;
    let site = Site::new(1).await;
    let (sample, [holed, _]) = sparse(&site).await;
    site.replicas[0].set(Faults { refuse: true, ..Faults::default() });
    let node = TestNode::start(&site, demand_only());
    let id = ImageId::new("image");
    let new = new_image(id, &sample, Profile::default(), site.content(false, impatient()));
    node.downloads.add_image(new).await.unwrap();
    assert!(node.downloads.read(holed, 0, 10_000).await.is_err());
    assert_eq!(node.downloads.read(holed, 0, 4096).await.unwrap()[..], [0; 4096]);
    node.stop().await;
}

#[tokio::test]
async fn complete_objects_with_holes_take_the_room_of_their_data() {
    let site = Site::new(1).await;
    let (sample, objects) = sparse(&site).await;
    let node = TestNode::start(&site, eager());
    let id = node.add(&site, "image", &sample, Profile::default()).await;
    assert!(node.downloads.completed(&id).await);
    let progress = node.downloads.progress(&id).unwrap();
    assert_eq!((progress.bytes_local, progress.bytes_total), (12_288, 12_288));
    for object in objects {
        let found = std::fs::metadata(node.downloads.objects().path(&object)).unwrap();
        assert!(found.len() == TERABYTE && found.blocks() * 512 <= 65_536, "{} blocks", found.blocks());
    }
    assert!(node.downloads.objects().measure().unwrap() <= 131_072);
    node.stop().await;
}
