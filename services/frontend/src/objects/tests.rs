//! What is kept, what survives a crash, and what a power loss may cost.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;

use image::record::{ChunkRef, ObjectPlace};
use image::{Digest, Extent, Map, Sparse, SparseHasher};
use tempfile::TempDir;

use super::*;

fn open(folder: &TempDir, boot: &str) -> Objects {
    Objects::open_in(folder.path(), boot.to_owned()).unwrap()
}

fn put(objects: &Objects, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    objects.put(&digest, bytes).unwrap();
    digest
}

/// A large object of three chunks.
struct Large {
    bytes: Vec<u8>,
    map: Map,
    place: ObjectPlace,
}

fn large() -> Large {
    let bytes: Vec<u8> = (0..3000u32).map(|index| (index % 251) as u8).collect();
    let chunks: Vec<ChunkRef> = bytes
        .chunks(1000)
        .map(|chunk| ChunkRef { digest: Digest::of(chunk), plain_len: 1000, stored_len: 1000 })
        .collect();
    let place =
        ObjectPlace { digest: Digest::of(&bytes), len: 3000, first_chunk: 0, chunk_count: 3, offset: 0 };
    Large { bytes, map: Map { chunks, objects: vec![place], sparse: Vec::new() }, place }
}

fn piece(index: u32, offset: u64) -> Piece {
    Piece { index, runs: vec![Extent { offset, len: 1000 }] }
}

impl Large {
    fn put(&self, objects: &Objects, index: u32) -> Result<bool, PutError> {
        let offset = u64::from(index) * 1000;
        let bytes = &self.bytes[offset as usize..offset as usize + 1000];
        objects.put_piece(&self.place, Form::Plain, &piece(index, offset), bytes)
    }
}

#[test]
fn reads_what_it_kept_and_refuses_what_does_not_match() {
    let folder = TempDir::new().unwrap();
    let objects = open(&folder, "boot");
    let digest = put(&objects, b"hello world");
    assert!(objects.contains(&digest) && objects.contains_of_len(&digest, 11));
    assert!(!objects.contains_of_len(&digest, 10));
    assert_eq!(objects.read(&digest, 6, 100).unwrap().unwrap(), b"world");
    assert_eq!(objects.read(&digest, 100, 1).unwrap().unwrap(), b"");
    assert_eq!(objects.read(&Digest::of(b"other"), 0, 1).unwrap(), None);
    assert!(matches!(objects.put(&Digest::of(b"other"), b"wrong"), Err(PutError::Mismatch(_))));
    assert!(!objects.contains(&Digest::of(b"other")));
    assert_eq!(fs::read_dir(folder.path().join("incoming")).unwrap().count(), 0);
}

#[test]
fn counts_allocated_blocks() {
    let folder = TempDir::new().unwrap();
    let objects = open(&folder, "boot");
    let digest = put(&objects, &[7; 10_000]);
    let blocks = fs::metadata(objects.path(&digest)).unwrap().blocks() * 512;
    assert!(blocks >= 10_000);
    assert_eq!(objects.used(), blocks);
    assert_eq!(objects.measure().unwrap(), blocks);
    assert_eq!(objects.remove(&digest).unwrap(), blocks);
    assert_eq!((objects.used(), objects.measure().unwrap()), (0, 0));
    assert_eq!(objects.remove(&digest).unwrap(), 0);
}

#[test]
fn a_crash_of_the_process_keeps_everything_but_what_was_arriving() {
    let folder = TempDir::new().unwrap();
    let large = large();
    let digest = {
        let objects = open(&folder, "boot");
        fs::write(folder.path().join("incoming/7"), b"half").unwrap();
        assert!(!large.put(&objects, 1).unwrap());
        put(&objects, b"whole")
    };
    let objects = open(&folder, "boot");
    assert_eq!(objects.recovered(), Recovered::default());
    assert!(objects.contains(&digest));
    assert!(!folder.path().join("incoming/7").exists());
    let have = objects.load_partial(&large.map, &large.place).unwrap();
    assert_eq!([have.get(0), have.get(1), have.get(2)], [false, true, false]);
    assert!(objects.has_piece(&large.place.digest, 1));
    assert_eq!(
        objects.read_partial(&large.place.digest, 1000, 1000).unwrap().unwrap(),
        large.bytes[1000..2000]
    );
    assert!(!large.put(&objects, 2).unwrap());
    assert!(large.put(&objects, 0).unwrap());
    assert_eq!(objects.read(&large.place.digest, 0, 3000).unwrap().unwrap(), large.bytes);
    assert_eq!(fs::read_dir(folder.path().join("partial")).unwrap().count(), 0);
}

#[test]
fn writers_of_one_object_beside_each_other_finish_it_once() {
    let folder = TempDir::new().unwrap();
    let (objects, large) = (open(&folder, "boot"), large());
    for _ in 0..200 {
        let finished: u32 = std::thread::scope(|scope| {
            let (objects, large) = (&objects, &large);
            let put = |index| scope.spawn(move || u32::from(large.put(objects, index).unwrap()));
            [0, 1, 2].map(put).into_iter().map(|writer| writer.join().unwrap()).sum()
        });
        assert!(finished >= 1);
        assert!(objects.contains_of_len(&large.place.digest, 3000));
        assert!(!objects.has_piece(&large.place.digest, 0), "it is remembered as partial");
        assert_eq!(fs::read_dir(folder.path().join("partial")).unwrap().count(), 0);
        fs::remove_file(objects.path(&large.place.digest)).unwrap();
    }
}

#[test]
fn a_power_loss_costs_what_was_not_synced_and_is_wrong() {
    let folder = TempDir::new().unwrap();
    let large = large();
    let (good, emptied, named_wrong) = {
        let objects = open(&folder, "first boot");
        large.put(&objects, 0).unwrap();
        large.put(&objects, 1).unwrap();
        let emptied = put(&objects, b"will be empty");
        // As ext4 leaves a file whose data never reached the disk.
        fs::write(objects.path(&emptied), b"").unwrap();
        let stray = objects.local_dir().join("ab/not-a-digest");
        fs::write(&stray, b"stray").unwrap();
        fs::write(objects.partial_path(&large.place.digest), [&large.bytes[..1000], &[0; 1000]].concat())
            .unwrap();
        (put(&objects, b"good"), emptied, stray)
    };
    let objects = open(&folder, "second boot");
    assert_eq!(objects.recovered(), Recovered { power_loss: true, checked: 3, dropped: 2 });
    assert!(objects.contains(&good) && !objects.contains(&emptied) && !named_wrong.exists());
    let have = objects.load_partial(&large.map, &large.place).unwrap();
    assert_eq!([have.get(0), have.get(1), have.get(2)], [true, false, false]);
    // The new boot is on record: another start of this boot checks nothing.
    assert!(!open(&folder, "second boot").recovered().power_loss);
}

#[test]
fn nothing_that_lies_about_stops_a_start() {
    let folder = TempDir::new().unwrap();
    let digest = put(&open(&folder, "first boot"), b"good");
    for stray in ["objects/stray", "objects/ab/stray", "incoming/stray", "trees/stray", "partial/stray.have"]
    {
        fs::create_dir(folder.path().join(stray)).unwrap();
        fs::write(folder.path().join(stray).join("file"), b"stray").unwrap();
    }
    fs::write(folder.path().join("records/stray"), b"stray").unwrap();
    // Where it is written down that all was checked nothing can be written.
    fs::remove_file(folder.path().join("synced")).unwrap();
    fs::create_dir_all(folder.path().join("synced/stray")).unwrap();
    let objects = open(&folder, "second boot");
    assert_eq!(objects.recovered(), Recovered { power_loss: true, checked: 2, dropped: 1 });
    assert!(objects.contains(&digest) && objects.records().unwrap().is_empty());
    objects.measure().unwrap();
    assert!(open(&folder, "second boot").recovered().power_loss, "it is checked again");
}

#[test]
fn a_check_that_was_broken_off_goes_on_in_the_same_boot() {
    let folder = TempDir::new().unwrap();
    let mut digests: Vec<Digest> = (0..20u8).map(|name| put(&open(&folder, "first boot"), &[name])).collect();
    digests.sort();
    let shard = &digests[9].to_string()[..2];
    let left = digests.iter().filter(|digest| &digest.to_string()[..2] > shard).count() as u64;
    let checking = folder.path().join("checking");
    fs::write(&checking, format!("second boot\n{shard}")).unwrap();
    let recovered = open(&folder, "second boot").recovered();
    assert_eq!((recovered.checked, checking.exists()), (left, false));
    fs::write(&checking, format!("second boot\n{shard}")).unwrap();
    assert_eq!(open(&folder, "third boot").recovered().checked, 20);
}

#[test]
fn what_was_synced_long_ago_is_not_read_again() {
    let folder = TempDir::new().unwrap();
    let digest = {
        let objects = open(&folder, "first boot");
        let digest = put(&objects, b"old");
        objects.sync().unwrap();
        digest
    };
    let later = "first boot\n4000000000\n";
    fs::write(folder.path().join("synced"), later).unwrap();
    let objects = open(&folder, "second boot");
    assert_eq!(objects.recovered(), Recovered { power_loss: true, checked: 0, dropped: 0 });
    assert!(objects.contains(&digest));
}

#[test]
fn a_large_object_with_a_wrong_chunk_never_becomes_whole() {
    let folder = TempDir::new().unwrap();
    let objects = open(&folder, "boot");
    let large = large();
    large.put(&objects, 0).unwrap();
    large.put(&objects, 1).unwrap();
    let wrong = objects.put_piece(&large.place, Form::Plain, &piece(2, 2000), &[9; 1000]);
    assert!(matches!(wrong, Err(PutError::Mismatch(_))));
    assert!(!objects.contains(&large.place.digest));
    assert!(!objects.has_piece(&large.place.digest, 0), "nothing of it is believed");
}

#[test]
fn indexes_are_checked_when_they_are_loaded() {
    let folder = TempDir::new().unwrap();
    let objects = open(&folder, "boot");
    let place = ObjectPlace { digest: Digest::of(b"o"), len: 1, first_chunk: 0, chunk_count: 1, offset: 0 };
    let chunk = ChunkRef { digest: Digest::of(b"c"), plain_len: 1, stored_len: 1 };
    let map = Map { chunks: vec![chunk], objects: vec![place], sparse: Vec::new() };
    let bytes = map.encode().unwrap();
    let digest = Digest::of(&bytes);
    let incoming = || {
        let mut incoming = objects.incoming().unwrap();
        incoming.write_all(&bytes).unwrap();
        incoming
    };
    objects.keep_map(&digest, incoming()).unwrap();
    objects.keep_tree(&digest, incoming()).unwrap();
    drop(incoming());
    assert_eq!(fs::read_dir(folder.path().join("incoming")).unwrap().count(), 0);
    assert_eq!(objects.map(&digest).unwrap().unwrap(), map);
    assert!(objects.has_good_tree(&digest));
    // A map, but not the one of that name; and no map at all.
    fs::write(objects.map_path(&digest), image::Map::default().encode().unwrap()).unwrap();
    assert_eq!(objects.map(&digest).unwrap(), None);
    fs::write(objects.map_path(&digest), b"other").unwrap();
    fs::write(objects.tree_path(&digest), b"other").unwrap();
    assert_eq!(objects.map(&digest).unwrap(), None);
    assert!(!objects.has_good_tree(&digest));
    let manifest = "ab".repeat(32);
    objects.put_record(&manifest, b"signed").unwrap();
    assert_eq!(objects.record(&manifest).unwrap().unwrap(), b"signed");
    assert_eq!(objects.records().unwrap(), std::slice::from_ref(&manifest));
    for outside in ["../synced", "", "/etc/passwd"] {
        assert!(objects.put_record(outside, b"signed").is_err(), "{outside}");
    }
    objects.remove_record(&manifest).unwrap();
    assert!(objects.records().unwrap().is_empty());
}

const TERABYTE: u64 = 1 << 40;

/// A terabyte with a block at its begin, two in its middle, and some bytes at its end; in two chunks of which the first ends
/// in the middle.
struct Holed {
    map: Map,
    place: ObjectPlace,
    chunks: [Vec<u8>; 2],
}

fn holed() -> Holed {
    let data: Vec<u8> = (0..3 * 4096 + 10u32).map(|index| (index % 251) as u8 + 1).collect();
    let extent = |offset, len| Extent { offset, len };
    let extents = vec![extent(0, 4096), extent(TERABYTE / 2, 8192), extent(TERABYTE - 4096, 10)];
    let len = TERABYTE - 4096 + 10;
    let mut hasher = SparseHasher::new(len);
    let mut rest = &data[..];
    for extent in &extents {
        let (now, later) = rest.split_at(extent.len as usize);
        hasher.hole(extent.offset - hasher.position());
        hasher.data(now);
        rest = later;
    }
    let digest = hasher.finish();
    let chunks = [data[..6000].to_vec(), data[6000..].to_vec()];
    let chunk = |bytes: &Vec<u8>| ChunkRef {
        digest: Digest::of(bytes),
        plain_len: bytes.len() as u32,
        stored_len: 1,
    };
    let place = ObjectPlace { digest, len, first_chunk: 0, chunk_count: 2, offset: 0 };
    let sparse = vec![Sparse { object: digest, extents }];
    let map = Map { chunks: chunks.iter().map(chunk).collect(), objects: vec![place], sparse };
    Holed { map: Map::decode(&map.encode().unwrap()).unwrap(), place, chunks }
}

impl Holed {
    fn put(&self, objects: &Objects, index: u32) -> Result<bool, PutError> {
        let begin = if index == 0 { 0 } else { self.chunks[0].len() as u64 };
        let bytes = &self.chunks[index as usize];
        let runs = self.map.runs(&self.place, begin..begin + bytes.len() as u64);
        objects.put_piece(&self.place, Form::Sparse, &Piece { index, runs }, bytes)
    }
}

#[test]
fn an_object_with_holes_takes_the_blocks_of_its_data() {
    let folder = TempDir::new().unwrap();
    let objects = open(&folder, "boot");
    let holed = holed();
    assert!(!holed.put(&objects, 1).unwrap());
    assert!(holed.put(&objects, 0).unwrap());
    let found = fs::metadata(objects.path(&holed.place.digest)).unwrap();
    assert_eq!(found.len(), holed.place.len);
    assert!((16_384..=65_536).contains(&(found.blocks() * 512)), "{} blocks", found.blocks());
    assert_eq!(objects.read(&holed.place.digest, TERABYTE / 2 - 2, 4).unwrap().unwrap(), [0, 0, 81, 82]);
    assert!(objects.used() <= 65_536 && objects.measure().unwrap() <= 65_536);
    assert_eq!(objects.seek(&holed.place.digest, 4096, false).unwrap(), TERABYTE / 2);
    assert_eq!(objects.seek(&holed.place.digest, 10, true).unwrap(), 4096);
}

#[test]
fn a_power_loss_costs_no_reading_of_holes() {
    let folder = TempDir::new().unwrap();
    let (holed, hollow) = (holed(), hollow(TERABYTE));
    let damaged = {
        let objects = open(&folder, "first boot");
        holed.put(&objects, 0).unwrap();
        holed.put(&objects, 1).unwrap();
        objects.put_hollow(&hollow).unwrap();
        let damaged = self::hollow(TERABYTE + 1);
        objects.put_hollow(&damaged).unwrap();
        fs::File::options()
            .write(true)
            .open(objects.path(&damaged.digest))
            .unwrap()
            .set_len(TERABYTE)
            .unwrap();
        damaged
    };
    // Byte by byte each terabyte would take minutes.
    let objects = open(&folder, "second boot");
    assert_eq!(objects.recovered(), Recovered { power_loss: true, checked: 3, dropped: 1 });
    assert!(objects.contains(&holed.place.digest) && objects.contains(&hollow.digest));
    assert!(!objects.contains(&damaged.digest));
}

#[test]
fn pieces_with_holes_are_checked_after_a_power_loss() {
    let folder = TempDir::new().unwrap();
    let holed = holed();
    holed.put(&open(&folder, "first boot"), 0).unwrap();
    let objects = open(&folder, "second boot");
    let have = objects.load_partial(&holed.map, &holed.place).unwrap();
    assert_eq!([have.get(0), have.get(1)], [true, false]);
    drop(objects);
    let partial = open(&folder, "second boot").partial_path(&holed.place.digest);
    std::os::unix::fs::FileExt::write_all_at(
        &fs::File::options().write(true).open(partial).unwrap(),
        b"x",
        TERABYTE / 2,
    )
    .unwrap();
    let objects = open(&folder, "third boot");
    assert!(!objects.load_partial(&holed.map, &holed.place).unwrap().get(0));
}

fn hollow(len: u64) -> ObjectPlace {
    let mut hasher = SparseHasher::new(len);
    hasher.hole(len);
    ObjectPlace { digest: hasher.finish(), len, first_chunk: 0, chunk_count: 0, offset: 0 }
}

#[test]
fn only_what_is_all_hole_is_kept_without_data() {
    let folder = TempDir::new().unwrap();
    let objects = open(&folder, "boot");
    let place = hollow(TERABYTE);
    objects.put_hollow(&place).unwrap();
    let found = fs::metadata(objects.path(&place.digest)).unwrap();
    assert_eq!((found.len(), found.blocks()), (TERABYTE, 0));
    let wrong = ObjectPlace { len: TERABYTE - 1, ..place };
    assert!(matches!(objects.put_hollow(&wrong), Err(PutError::Mismatch(_))));
}

#[test]
fn zeros_that_a_file_system_left_out_are_no_damage() {
    let folder = TempDir::new().unwrap();
    let digest = {
        let objects = open(&folder, "first boot");
        let mut bytes = vec![0; 300_000];
        bytes[7] = 1;
        let digest = put(&objects, &bytes);
        // As ZFS keeps it.
        let file = fs::File::create(objects.path(&digest)).unwrap();
        (&file).write_all(&bytes[..100]).unwrap();
        file.set_len(300_000).unwrap();
        digest
    };
    let objects = open(&folder, "second boot");
    assert_eq!(objects.recovered().dropped, 0);
    assert!(objects.contains(&digest));
}
