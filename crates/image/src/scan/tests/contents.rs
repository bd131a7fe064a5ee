//! How contents become objects and chunks.

use proptest::prelude::*;

use super::*;

#[test]
fn contents_of_every_size_come_back() {
    let small = SMALL_OBJECT_MAX as usize;
    let sizes = [
        0,
        1,
        INLINE_MAX,
        INLINE_MAX + 1,
        small - 1,
        small,
        small + 1,
        CDC_MAX as usize,
        CDC_MAX as usize + 1,
        5 * CDC_MAX as usize + 77,
    ];
    let mut archive = Archive::default();
    let mut expected = Vec::new();
    for (seed, size) in sizes.into_iter().enumerate() {
        let content = noise(seed as u64, size);
        archive = archive.file(&format!("f{seed}"), &content);
        expected.push((format!("f{seed}"), content));
    }
    let tar = archive.end();
    let scan = scan(&tar).unwrap();
    assert!(scan.files() == expected);
    assert_eq!(scan.record.tar_len, tar.len() as u64);
    assert!(scan.chunks.iter().all(|chunk| chunk.plain.len() <= CHUNK_PLAIN_MAX));
    let inline = |entry: &Entry| matches!(entry.kind, EntryKind::File(Content::Inline(_)));
    assert_eq!(scan.record.entries.iter().filter(|entry| inline(entry)).count(), 3);
}

#[test]
fn small_neighbours_share_a_chunk_across_large_ones() {
    let archive = Archive::default()
        .file("a", &noise(1, 1000))
        .file("large", &noise(2, SMALL_OBJECT_MAX as usize))
        .file("b", &noise(3, 2000))
        .end();
    let scan = scan(&archive).unwrap();
    scan.objects();
    let places = &scan.record.objects;
    assert_eq!(scan.record.chunks.iter().map(|chunk| chunk.plain_len).collect::<Vec<_>>(), [131_072, 3000]);
    let place = |index: usize| (places[index].first_chunk, places[index].chunk_count, places[index].offset);
    assert_eq!([place(0), place(1), place(2)], [(1, 1, 0), (0, 1, 0), (1, 1, 1000)]);
}

#[test]
fn packs_close_once_they_are_full() {
    let count = 3 * PACK_TARGET / 10_000;
    let archive = (0..count).fold(Archive::default(), |archive, index| {
        archive.file(&format!("f{index}"), &noise(index as u64, 10_000))
    });
    let scan = scan(&archive.end()).unwrap();
    assert_eq!(scan.objects().len(), count);
    let (last, full) = scan.record.chunks.split_last().unwrap();
    let room = PACK_TARGET..PACK_TARGET + 10_000;
    assert!(full.iter().all(|chunk| room.contains(&(chunk.plain_len as usize))), "{full:?}");
    assert!((last.plain_len as usize) < room.end);
}

#[test]
fn the_same_content_is_kept_once() {
    let (small, large) = (noise(1, 5000), noise(2, 3_000_000));
    let archive = Archive::default()
        .file("small", &small)
        .file("large", &large)
        .file("small again", &small)
        .file("large again", &large)
        .file("other", &noise(3, 600));
    let once = Archive::default().file("small", &small).file("large", &large).file("other", &noise(3, 600));
    let (scan, once) = (scan(&archive.end()).unwrap(), super::scan(&once.end()).unwrap());
    assert_eq!(scan.files().len(), 5);
    assert_eq!(scan.record.objects, once.record.objects);
    assert_eq!(scan.record.chunks, once.record.chunks);
    assert_eq!(scan.chunks, once.chunks);
}

#[test]
fn repeated_chunks_stand_in_a_row_but_are_given_once() {
    let zeros = vec![0; 5 * CDC_MAX as usize];
    let scan = scan(&Archive::default().file("zeros", &zeros).end()).unwrap();
    assert_eq!(scan.files()[0].1, zeros);
    assert!(scan.record.chunks.len() >= 5);
    assert!(scan.chunks.len() < scan.record.chunks.len());
}

#[test]
fn large_objects_share_chunks_when_they_share_content() {
    let one = noise(1, 8 << 20);
    let mut other = one.clone();
    other.splice(1_000_000..1_000_000, *b"inserted");
    let archive = Archive::default().file("one", &one).file("other", &other).end();
    let scan = scan(&archive).unwrap();
    assert_eq!(scan.files().len(), 2);
    let repeated = scan.record.chunks.len() - scan.chunks.len();
    assert!(repeated * 2 > scan.record.chunks.len() / 2, "{repeated} of {}", scan.record.chunks.len());
}

/// A sparse file of PAX form 0.1.
fn sparse(archive: Archive, name: &str, size: u64, map: &str, data: &[u8]) -> Archive {
    let size = size.to_string();
    let records: &[(&str, &[u8])] =
        &[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())];
    archive.pax(b'x', records).file(name, data)
}

#[test]
fn holes_stay_holes_and_their_ragged_ends_are_zeros() {
    let len = 3 << 20;
    let tar = sparse(Archive::default(), "sparse", len, "1000,3,2000000,2", b"abcde").end();
    let scan = scan(&tar).unwrap();
    let mut expected = vec![0; len as usize];
    expected[1000..1003].copy_from_slice(b"abc");
    expected[2_000_000..2_000_002].copy_from_slice(b"de");
    assert!(scan.files() == [("sparse".to_owned(), expected)]);
    let extent = |offset| Extent { offset, len: 4096 };
    assert_eq!(scan.record.sparse[0].extents, [extent(0), extent(2_000_000 / 4096 * 4096)]);
    assert_eq!(scan.record.chunks.iter().map(|chunk| chunk.plain_len).collect::<Vec<_>>(), [8192]);
}

#[test]
fn a_terabyte_of_hole_is_neither_hashed_nor_cut() {
    const LEN: u64 = 1 << 40;
    let archive = sparse(Archive::default(), "hollow", LEN, "", b"");
    let archive = sparse(archive, "ends", LEN, "0,5,1099511623680,4096", &[&[1; 5][..], &[2; 4096]].concat());
    // GNU tar ends the map with an extent of nothing.
    let archive = sparse(archive, "hollow too", LEN, "1099511627776,0", b"");
    let scan = scan(&archive.end()).unwrap();
    scan.check_that_it_decodes();
    let given: usize = scan.chunks.iter().map(|chunk| chunk.plain.len()).sum();
    assert_eq!((given, scan.record.objects.len(), scan.record.sparse.len()), (8192, 2, 2));
    let place = |at: usize| (scan.record.objects[at].len, scan.record.objects[at].chunk_count);
    assert_eq!([place(0), place(1)], [(LEN, 0), (LEN, 1)]);
}

#[test]
fn small_files_with_holes_are_packed_with_their_zeros() {
    let scan = scan(&sparse(Archive::default(), "small", 100_000, "50000,3", b"abc").end()).unwrap();
    let mut expected = vec![0; 100_000];
    expected[50_000..50_003].copy_from_slice(b"abc");
    assert!(scan.files() == [("small".to_owned(), expected)]);
    assert!(scan.record.sparse.is_empty());
}

#[test]
fn a_file_with_holes_shares_its_chunks_with_others_and_its_name_with_its_like() {
    let data = noise(1, 4 << 20);
    let map = |extents: &[(usize, usize)]| {
        let numbers: Vec<_> = extents.iter().map(|(offset, len)| format!("{offset},{len}")).collect();
        numbers.join(",")
    };
    let size = 64 << 20;
    let archive = Archive::default().file("dense", &data);
    let archive = sparse(archive, "one", size, &map(&[(1 << 20, 4 << 20)]), &data);
    let halves = map(&[(1 << 20, 1 << 20), (2 << 20, 3 << 20)]);
    let scan = scan(&sparse(archive, "two", size, &halves, &data).end()).unwrap();
    let names: Vec<_> = scan.record.objects.iter().map(|place| place.digest).collect();
    assert_eq!((names.len(), names[0]), (2, Digest::of(&data)));
    let repeated = scan.record.chunks.len() - scan.chunks.len();
    assert_eq!(repeated * 2, scan.record.chunks.len());
    assert_eq!(scan.files().len(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn slices_change_nothing(
        files in prop::collection::vec((0..6_u64, prop_oneof![0..2000_usize, 100_000..200_000_usize, 0..9_000_000_usize]), 0..7),
        cuts in prop::collection::vec(1..3_000_000_usize, 1..20),
    ) {
        let archive = files.iter().enumerate().fold(Archive::default(), |archive, (index, (seed, len))| {
            archive.file(&format!("f{index}"), &noise(*seed, *len))
        });
        let tar = archive.end();
        let whole = scan(&tar).unwrap();
        whole.objects();
        let mut chunks = Vec::new();
        let mut emit = |chunk| { chunks.push(chunk); Ok::<_, ScanError>(()) };
        let mut scanner = LayerScanner::new(ScanLimits::default());
        let (mut rest, mut cut) = (&tar[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(rest.len().min(*cut.next().unwrap()));
            scanner.push(piece, &mut emit).unwrap();
            rest = later;
        }
        let record = scanner.finish(&mut emit).unwrap();
        let sliced = Scan { record, chunks };
        prop_assert!(sliced == whole, "the same bytes in other slices gave another scan");
    }
}
