//! Archives that nobody should have written: each must end in the right error, none in a panic.

use proptest::prelude::*;

use super::archive::{Archive, Block};
use super::*;

#[test]
fn broken_archives_are_refused() {
    use Fault::*;
    let file = || Block::ustar("a", b'0');
    let sparse = |size: &[u8], map: &[u8]| {
        Archive::default()
            .pax(b'x', &[("GNU.sparse.size", size), ("GNU.sparse.map", map)])
            .file("a", b"abc")
            .end()
    };
    let data_map = |map: &str, len: usize| {
        let map = [map.as_bytes(), &vec![0; len - map.len()]].concat();
        let records: &[(&str, &[u8])] =
            &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9")];
        Archive::default().pax(b'x', records).file("a", &map).end()
    };
    let pax = |key, value| Archive::default().pax(b'x', &[(key, value)]).file("a", b"").end();
    let many: String = (0..65_537).map(|at| format!("{},1,", at * 2)).collect();
    let name = "user.".to_owned() + &"x".repeat(251);
    let cases = [
        (
            "wrong sum",
            Archive::default().raw(&file().size(0).field(148, b"0000001\0").0, b"").end(),
            Checksum,
        ),
        ("no archive", vec![b'x'; 4096], Checksum),
        ("cut header", Archive::default().file("a", b"").without_end()[..500].to_vec(), Truncated),
        ("cut content", Archive::default().file("a", &[1; 600]).without_end()[..1024].to_vec(), Truncated),
        (
            "cut extension",
            Archive::default().pax(b'x', &[("path", b"b")]).without_end()[..515].to_vec(),
            Truncated,
        ),
        ("extension of nothing", Archive::default().pax(b'x', &[("path", b"b")]).without_end(), Truncated),
        ("extension of the end", Archive::default().pax(b'x', &[("path", b"b")]).end(), Truncated),
        ("lone zero block", Archive::default().raw(&[0; 512], b"").file("a", b"").end(), LoneZeroBlock),
        ("unknown type", Archive::default().member(Block::ustar("a", b'V'), b"").end(), UnknownType('V')),
        (
            "sparse outside GNU",
            Archive::default().member(Block::ustar("a", b'S'), b"").end(),
            UnknownType('S'),
        ),
        (
            "octal",
            Archive::default().raw(&file().field(124, b"0000000009\0").checked(), b"").end(),
            Number("size"),
        ),
        (
            "negative size",
            Archive::default().raw(&file().field(124, &[0xff; 12]).checked(), b"").end(),
            Number("size"),
        ),
        (
            "huge size",
            Archive::default().raw(&file().field(124, &[0x90; 12]).checked(), b"").end(),
            Number("size"),
        ),
        (
            "negative uid",
            Archive::default().raw(&file().field(108, &[0xff; 8]).checked(), b"").end(),
            Number("uid"),
        ),
        (
            "long extension",
            Archive::default().raw(&Block::ustar("x", b'x').size(1 << 33).checked(), b"").end(),
            ExtensionTooLong(1 << 33),
        ),
        (
            "long name",
            Archive::default().raw(&Block::gnu("x", b'L').size(TAR_EXTENSION_MAX + 1).checked(), b"").end(),
            ExtensionTooLong(TAR_EXTENSION_MAX + 1),
        ),
        (
            "record",
            Archive::default().member(Block::ustar("x", b'x'), b"9999 path=a\n").end(),
            Record("length"),
        ),
        ("path", pax("path", b"a\0b"), Record("path")),
        ("linkpath", pax("linkpath", b"a\0b"), Record("linkpath")),
        ("size", pax("size", b"9223372036854775808"), Number("pax size")),
        ("uid", pax("uid", b"4294967296"), Number("pax uid")),
        ("xattr name", pax("LIBARCHIVE.xattr.user.%6", b"AA"), Record("LIBARCHIVE.xattr name")),
        ("xattr value", pax("LIBARCHIVE.xattr.user.a", b"?"), Record("LIBARCHIVE.xattr value")),
        ("sparse overlap", sparse(b"9", b"0,2,1,1"), Sparse("extents that overlap")),
        ("sparse beyond", sparse(b"9", b"7,3"), Sparse("an extent beyond the file's end")),
        (
            "sparse overflow",
            sparse(b"9", b"9223372036854775807,9223372036854775807,1,1"),
            Sparse("extents that overlap"),
        ),
        ("sparse data missing", sparse(b"9", b"0,4"), Sparse("more or less data than its extents name")),
        ("sparse data left over", sparse(b"9", b"0,2"), Sparse("more or less data than its extents name")),
        ("sparse odd", sparse(b"9", b"0,2,1"), Sparse("an extent without its length")),
        ("sparse number", sparse(b"9", b"0,-2"), Number("GNU.sparse.map")),
        ("sparse extents", sparse(b"999999", many.trim_end_matches(',').as_bytes()), TooManyExtents),
        ("sparse without size", pax("GNU.sparse.map", b"0,0"), Sparse("no real size")),
        ("sparse form", pax("GNU.sparse.major", b"2"), Sparse("a form that is not known")),
        ("sparse offset alone", pax("GNU.sparse.offset", b"2"), Sparse("an extent without its length")),
        ("sparse length alone", pax("GNU.sparse.numbytes", b"2"), Sparse("an extent without its offset")),
        ("map is text", data_map("an enormous number of\n", 512), Sparse("a map that is not decimal")),
        ("map too long", data_map("2\n0\n1\n", 500), Sparse("a map longer than the member")),
        ("map of many", data_map("65537\n", 512), TooManyExtents),
    ];
    for (case, archive, fault) in cases {
        let found = unpack(&archive, archive.len()).unwrap_err();
        assert_eq!(found.fault, fault, "{case}");
        assert_eq!(unpack(&archive, 1).unwrap_err(), found, "{case}");
    }
    let long_xattr = pax(&format!("SCHILY.xattr.{name}"), b"");
    assert!(matches!(unpack(&long_xattr, 512).unwrap_err().fault, Xattrs(_)));
}

#[test]
fn an_error_names_where_the_member_begins() {
    let archive = Archive::default()
        .file("a", b"content")
        .pax(b'x', &[("path", b"long")])
        .member(Block::ustar("b", b'Z'), b"")
        .end();
    assert_eq!(unpack(&archive, 100).unwrap_err(), TarError { at: 1024, fault: Fault::UnknownType('Z') });
}

/// Archives of several forms, for damage to be done to.
fn specimen() -> Vec<u8> {
    Archive::default()
        .pax(b'g', &[("comment", b"c")])
        .pax(b'x', &[("path", b"long"), ("SCHILY.xattr.user.a", b"1"), ("mtime", b"1.5")])
        .file("short", &[b'x'; 700])
        .member(Block::gnu("././@LongLink", b'L'), b"gnu\0")
        .member(Block::gnu("g", b'1').link("long"), b"")
        .pax(b'x', &[("GNU.sparse.size", b"5000"), ("GNU.sparse.map", b"10,2,20,3")])
        .file("sparse", b"abcde")
        .member(
            Block::gnu("old", b'S').field(386, b"00000000012\x0000000000002\0").field(483, b"0000100\0"),
            b"ab",
        )
        .end()
}

proptest! {
    #[test]
    fn damaged_archives_never_break_the_reader(
        damage in prop::collection::vec((0..specimen().len(), any::<u8>(), any::<bool>()), 1..8),
        cut in 0..specimen().len(),
        piece in 1..2000_usize,
    ) {
        let mut archive = specimen();
        for (at, byte, _) in &damage {
            archive[*at] = *byte;
        }
        // Half of the time the sums are made to match again, so that more than the sum is tried.
        if damage[0].2 {
            mend_sums(&mut archive);
        }
        archive.truncate(archive.len() - cut / 4);
        prop_assert_eq!(count(&archive, piece), count(&archive, archive.len().max(1)));
    }
}

fn mend_sums(archive: &mut [u8]) {
    for block in archive.as_chunks_mut::<BLOCK>().0 {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

/// How many members and bytes an archive has, holes not written out: they may be absurd here.
fn count(archive: &[u8], piece: usize) -> Result<(usize, u64), TarError> {
    let mut reader = Reader::new();
    let (mut members, mut bytes) = (0, 0_u64);
    for piece in archive.chunks(piece) {
        let mut rest = piece;
        while let Some(event) = reader.next(&mut rest)? {
            match event {
                Event::Member(_) => members += 1,
                Event::Data(data) => bytes += data.len() as u64,
                Event::Hole(len) => bytes = bytes.checked_add(len).unwrap(),
                Event::End => {}
            }
        }
    }
    reader.finish()?;
    Ok((members, bytes))
}
