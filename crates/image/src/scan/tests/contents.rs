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

#[test]
fn holes_count_as_zeros() {
    let len = 3 << 20;
    let size = len.to_string();
    let records: &[(&str, &[u8])] =
        &[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", b"1000,3,2000000,2")];
    let scan = scan(&Archive::default().pax(b'x', records).file("sparse", b"abcde").end()).unwrap();
    let mut expected = vec![0; len];
    expected[1000..1003].copy_from_slice(b"abc");
    expected[2_000_000..2_000_002].copy_from_slice(b"de");
    assert!(scan.files() == [("sparse".to_owned(), expected)]);
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
