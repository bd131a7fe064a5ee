use std::ops::Range;

use super::*;
use crate::limits::CHUNK_PLAIN_MAX;
use crate::merge::merge;
use crate::record::{Content, Entry, EntryKind, LayerRecord, Meta};
use crate::sparse::{Extent, Sparse};

fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn chunk(name: &str, plain_len: u32) -> ChunkRef {
    ChunkRef { digest: digest(name), plain_len, stored_len: plain_len / 2 + 1 }
}

fn place(name: &str, len: u64, (first_chunk, chunk_count): (u32, u32), offset: u32) -> ObjectPlace {
    ObjectPlace { digest: digest(name), len, first_chunk, chunk_count, offset }
}

fn layer(files: &[(&str, &str)], chunks: &[ChunkRef], objects: &[ObjectPlace]) -> LayerRecord {
    let entry = |(path, object): &(&str, &str)| {
        let known = objects.iter().find(|place| place.digest == digest(object));
        let content = Content::Object { digest: digest(object), len: known.map_or(9, |place| place.len) };
        Entry { path: path.as_bytes().to_vec(), kind: EntryKind::File(content), meta: Meta::default() }
    };
    LayerRecord {
        entries: files.iter().map(entry).collect(),
        chunks: chunks.to_vec(),
        objects: objects.to_vec(),
        ..LayerRecord::default()
    }
}

/// The lower layer's `one` shares a chunk with `two` and is replaced; `large` fills three.
fn layers() -> [LayerRecord; 2] {
    let lower = layer(
        &[("a", "one"), ("b", "two"), ("gone", "gone"), ("d/large", "large")],
        &[chunk("p0", 100), chunk("p1", 50), chunk("l0", 1000), chunk("l1", 2000), chunk("l2", 10)],
        &[
            place("one", 40, (0, 1), 0),
            place("two", 60, (0, 1), 40),
            place("gone", 50, (1, 1), 0),
            place("large", 3010, (2, 3), 0),
        ],
    );
    let upper = layer(
        &[("a", "new"), ("gone", "new"), ("again", "two")],
        &[chunk("q0", 30), chunk("q1", 60)],
        &[place("new", 20, (0, 1), 10), place("two", 60, (1, 1), 0)],
    );
    [lower, upper]
}

fn build(layers: &[LayerRecord]) -> Result<Map, MapError> {
    let layers: Vec<_> = layers.iter().collect();
    Map::build(&merge(&layers).expect("a tree"), &layers)
}

#[test]
fn only_what_the_tree_names_is_mapped() {
    let map = build(&layers()).expect("a map");
    let chunks: Vec<_> = map.chunks.iter().map(|chunk| chunk.digest).collect();
    assert_eq!(chunks, ["p0", "l0", "l1", "l2", "q0"].map(digest));
    assert_eq!(map.objects.len(), 3);
    assert_eq!(map.place(&digest("two")), Some(&place("two", 60, (0, 1), 40)));
    assert_eq!(map.place(&digest("large")), Some(&place("large", 3010, (1, 3), 0)));
    assert_eq!(map.place(&digest("new")), Some(&place("new", 20, (4, 1), 10)));
    assert_eq!(map.place(&digest("one")), None);
    assert_eq!(map.plain_bytes(), 60 + 3010 + 20);
    assert_eq!(map.stored_bytes(), (50 + 500 + 1000 + 5 + 15) + 5);
    assert_eq!(Map::decode(&map.encode().expect("encoded")).expect("decoded"), map);
}

#[test]
fn bytes_of_an_object_are_found_in_its_chunks() {
    let map = build(&layers()).expect("a map");
    let slices = |name: &str, bytes: Range<u64>| -> Vec<_> {
        let place = map.place(&digest(name)).expect("a place");
        map.slices(place, bytes).map(|s| (s.chunk, s.chunk_offset, s.object_offset, s.len)).collect()
    };
    assert_eq!(slices("two", 0..60), [(0, 40, 0, 60)]);
    assert_eq!(slices("two", 50..1000), [(0, 90, 50, 10)]);
    assert_eq!(slices("two", 60..61), []);
    assert_eq!(slices("large", 0..u64::MAX), [(1, 0, 0, 1000), (2, 0, 1000, 2000), (3, 0, 3000, 10)]);
    assert_eq!(slices("large", 999..1001), [(1, 999, 999, 1), (2, 0, 1000, 1)]);
    assert_eq!(slices("large", 1000..3000), [(2, 0, 1000, 2000)]);
    assert_eq!(slices("large", 5..5), []);
    assert_eq!(slices("large", u64::MAX - 1..u64::MAX), []);
}

#[test]
fn a_chunk_brings_the_objects_that_have_bytes_in_it() {
    let map = build(&layers()).expect("a map");
    let arrivals = Arrivals::of(&map);
    let brought: Vec<Vec<_>> = (0..=map.chunks.len() as u32)
        .map(|chunk| arrivals.objects_in(chunk).iter().map(|at| map.objects[*at as usize].digest).collect())
        .collect();
    let [two, large, new] = ["two", "large", "new"].map(digest);
    assert_eq!(brought, [vec![two], vec![large], vec![large], vec![large], vec![new], vec![]]);
}

#[test]
fn records_that_do_not_hold_the_tree_are_refused() {
    type Break = fn(&mut LayerRecord);
    let cases: &[(&str, Break)] = &[
        ("stands in no layer", |lower| lower.objects.retain(|place| place.digest != digest("large"))),
        ("bytes where the tree says", |lower| lower.objects[3].len -= 1),
        ("chunks that are not there", |lower| lower.objects[3].first_chunk = u32::MAX),
        ("chunks that are not there", |lower| lower.objects[1].chunk_count = 0),
        ("do not fit", |lower| lower.objects[1].offset = 41),
    ];
    for (expected, damage) in cases {
        let whole = layers();
        let mut damaged = layers();
        damage(&mut damaged[0]);
        let whole: Vec<_> = whole.iter().collect();
        let tree = merge(&whole).expect("a tree");
        let error = Map::build(&tree, &damaged.iter().collect::<Vec<_>>()).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}, not {expected}");
    }
}

#[test]
fn maps_that_break_a_rule_are_refused() {
    type Break = fn(&mut Map);
    let cases: &[Break] = &[
        |map| map.objects.swap(0, 1),
        |map| map.objects[1] = map.objects[0],
        |map| map.objects[0].len = 0,
        |map| map.objects[0].len += 1,
        |map| map.objects[0].chunk_count = 0,
        |map| map.objects[0].chunk_count = u32::MAX,
        |map| map.objects[0].first_chunk = u32::MAX,
        |map| map.objects[0].offset = u32::MAX,
        |map| map.chunks.truncate(2),
        |map| map.chunks[0].plain_len = 0,
        |map| map.chunks[0].stored_len = 0,
        |map| map.chunks[0].plain_len = CHUNK_PLAIN_MAX as u32 + 1,
    ];
    let whole = build(&layers()).expect("a map");
    for (number, damage) in cases.iter().enumerate() {
        let mut map = whole.clone();
        damage(&mut map);
        let encoded = map.encode().expect("encoded");
        assert!(Map::decode(&encoded).is_err(), "case {number}");
    }
}

/// `holed` has two chunks of data in three extents of its ten blocks; `hollow` has none.
fn with_holes() -> Map {
    let extent = |offset: u64, len: u64| Extent { offset: offset * 4096, len };
    let layer = LayerRecord {
        sparse: vec![
            Sparse {
                object: digest("holed"),
                extents: vec![extent(1, 4096), extent(3, 8192), extent(9, 100)],
            },
            Sparse { object: digest("hollow"), extents: Vec::new() },
        ],
        ..layer(
            &[("a", "holed"), ("b", "hollow"), ("c", "other")],
            &[chunk("other", 50), chunk("h0", 6000), chunk("h1", 6388)],
            &[
                place("other", 50, (0, 1), 0),
                place("hollow", 1 << 40, (1, 0), 0),
                place("holed", 9 * 4096 + 100, (1, 2), 0),
            ],
        )
    };
    let mut layer = layer;
    layer.sparse.sort_by_key(|sparse| sparse.object);
    build(&[layer]).expect("a map")
}

#[test]
fn slices_leave_holes_out() {
    let map = with_holes();
    assert_eq!(Map::decode(&map.encode().expect("encoded")).expect("decoded"), map);
    let slices = |name: &str, bytes: Range<u64>| -> Vec<_> {
        let place = map.place(&digest(name)).expect("a place");
        map.slices(place, bytes).map(|s| (s.chunk, s.chunk_offset, s.object_offset, s.len)).collect()
    };
    assert_eq!(slices("hollow", 0..u64::MAX), []);
    let all = [(1, 0, 4096, 4096), (1, 4096, 12_288, 1904), (2, 0, 14_192, 6288), (2, 6288, 36_864, 100)];
    assert_eq!(slices("holed", 0..u64::MAX), all);
    assert_eq!(slices("holed", 0..4096), []);
    assert_eq!(slices("holed", 8000..12_289), [(1, 3904, 8000, 192), (1, 4096, 12_288, 1)]);
    assert_eq!(slices("holed", 14_191..14_193), [(1, 5999, 14_191, 1), (2, 0, 14_192, 1)]);
    assert_eq!(slices("holed", 20_480..36_864), []);
    assert_eq!(slices("other", 10..20), [(0, 10, 10, 10)]);
    let place = map.place(&digest("holed")).expect("a place");
    let extent = |offset, len| Extent { offset, len };
    assert_eq!(map.runs(place, 0..6000), [extent(4096, 4096), extent(12_288, 1904)]);
    assert_eq!(map.runs(place, 6000..12_388), [extent(14_192, 6288), extent(36_864, 100)]);
    assert_eq!(map.plain_bytes(), 50 + 12_388);
}

#[test]
fn holes_that_break_a_rule_are_refused() {
    type Break = fn(&mut Map);
    let cases: &[Break] = &[
        |map| map.sparse.swap(0, 1),
        |map| map.sparse.truncate(1),
        |map| map.sparse[0].object = digest("nothing"),
        |map| holed(map).extents[0].offset += 1,
        |map| holed(map).extents[0].len -= 1,
        |map| holed(map).extents[1].offset = 8192,
        |map| holed(map).extents.swap(0, 1),
        |map| holed(map).extents[2].len = 4096,
        |map| holed(map).extents[2].offset = u64::MAX / 4096 * 4096,
        |map| holed(map).extents.truncate(2),
        |map| map.objects.iter_mut().for_each(|place| place.len = place.len.max(u64::MAX / 2)),
    ];
    for (number, damage) in cases.iter().enumerate() {
        let mut map = with_holes();
        damage(&mut map);
        let encoded = map.encode().expect("encoded");
        assert!(Map::decode(&encoded).is_err(), "case {number}");
    }
}

fn holed(map: &mut Map) -> &mut Sparse {
    map.sparse.iter_mut().find(|sparse| !sparse.extents.is_empty()).expect("one with data")
}

#[test]
fn a_map_of_before_there_were_holes_is_still_read() {
    let map = build(&layers()).expect("a map");
    let before = encoding::Format { version: 1, ..encoding::MAP };
    let encoded = encoding::encode(before, &(&map.chunks, &map.objects)).expect("encoded");
    assert_eq!(Map::decode(&encoded).expect("decoded"), map);
    let unknown = encoding::Format { version: 3, ..encoding::MAP };
    let encoded = encoding::encode(unknown, &(&map.chunks, &map.objects)).expect("encoded");
    assert!(matches!(Map::decode(&encoded), Err(EncodingError::Version { found: 3, known: 2, .. })));
}

#[test]
fn extents_of_all_objects_together_are_bounded() {
    let each = crate::limits::SPARSE_EXTENTS_MAX;
    let decode = |objects: usize| {
        let mut map = Map::default();
        for number in 0..objects {
            // Every other block.
            let extents = (0..each as u64).map(|at| Extent { offset: at * 8192, len: 4096 }).collect();
            let object = digest(&number.to_string());
            let first_chunk = map.chunks.len() as u32;
            map.chunks.extend((0..each / 512).map(|_| chunk("same", 2 << 20)));
            let len = each as u64 * 8192;
            let chunk_count = (each / 512) as u32;
            map.objects.push(ObjectPlace { digest: object, len, first_chunk, chunk_count, offset: 0 });
            map.sparse.push(Sparse { object, extents });
        }
        map.objects.sort_by_key(|place| place.digest);
        map.sparse.sort_by_key(|sparse| sparse.object);
        Map::decode(&map.encode().expect("encoded")).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(decode(crate::limits::EXTENTS_MAX / each), Ok(()));
    assert!(decode(crate::limits::EXTENTS_MAX / each + 1).is_err_and(|error| error.contains("extents")));
}
