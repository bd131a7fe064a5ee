//! Archives nobody wrote: whatever the bytes are, the walk ends without a panic and stays inside.

use std::io::Write;

use proptest::prelude::*;

use super::*;

/// A header with a right checksum, so that hostile fields get past it.
fn header(name: &[u8], size: &[u8], kind: u8, link: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name);
    block[124..124 + size.len()].copy_from_slice(size);
    block[148..156].fill(b' ');
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..263].copy_from_slice(b"ustar\0");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

fn find(bytes: &[u8]) -> io::Result<Members> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Members::find(&file, bytes.len() as u64)
}

#[test]
fn hostile_headers_are_refused() {
    let largest = [0xff; 12];
    let base_256 = [&[0x80][..], &[0; 3], &[0xff; 8]].concat();
    for (header, expected) in [
        (header(b"a", b"77777777777", b'0', b""), "cut off"),
        (header(b"a", &largest, b'0', b""), "not a number"),
        (header(b"a", &base_256, b'0', b""), "cut off"),
        (header(b"a", b"9", b'0', b""), "not a number"),
        (header(b"a", b"00001000000", b'L', b""), "cut off"),
        (vec![1; 512], "not a tar header"),
        (vec![1; 100], "cut off"),
    ] {
        let error = find(&header).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} (expected {expected})");
    }
    let large = [header(b"a", b"00001000000", b'x', b""), vec![b'1'; 0o1_000_000]].concat();
    assert!(find(&large).unwrap_err().to_string().contains("too large"));
}

#[test]
fn names_and_links_stay_inside() {
    let archive = [
        header(b"./a//b", b"3", b'0', b""),
        [&b"abc"[..], &[0; 509]].concat(),
        header(b"../escape", b"", b'0', b""),
        header(b"d/symbolic", b"", b'2', b"../a/b"),
        header(b"outside", b"", b'2', b"../../a/b"),
        header(b"hard", b"77777777777", b'1', b"d/symbolic"),
        header(b"one", b"", b'1', b"two"),
        header(b"two", b"", b'1', b"one"),
    ]
    .concat();
    let members = find(&archive).unwrap();
    for name in ["a/b", "/a/./b", "d/symbolic", "hard"] {
        assert_eq!(members.file(name), Some(512..515), "{name}");
    }
    for name in ["escape", "../escape", "outside", "one", "two", "", "..", "absent"] {
        assert_eq!(members.file(name), None, "{name}");
    }
}

proptest! {
    #[test]
    fn any_records_end(records in prop::collection::vec(any::<u8>(), 0..200)) {
        Overrides::default().pax(&records);
    }

    #[test]
    fn any_record_lengths_end(len in any::<usize>(), rest in "[ =a-z\n]{0,20}") {
        Overrides::default().pax(format!("{len} {rest}").as_bytes());
        Overrides::default().pax(format!("{} {rest}", len % 30).as_bytes());
    }

    #[test]
    fn any_archive_ends(
        fields in prop::collection::vec((any::<[u8; 12]>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..600)), 1..6),
    ) {
        let mut archive = Vec::new();
        for (size, kind, data) in fields {
            archive.extend(header(b"name", &size, kind, b"link"));
            archive.extend(data);
        }
        if let Some(range) = find(&archive).ok().and_then(|members| members.file("name")) {
            prop_assert!(range.start <= range.end && range.end <= archive.len() as u64);
        }
    }
}
