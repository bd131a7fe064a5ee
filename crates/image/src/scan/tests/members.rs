//! How members become entries, and which are refused.

use super::*;
use crate::record::Mtime;

fn kinds(archive: Archive) -> Vec<(String, EntryKind)> {
    let scan = scan(&archive.end()).unwrap();
    scan.check_that_it_decodes();
    scan.record.entries.into_iter().map(|entry| (lossy(&entry.path), entry.kind)).collect()
}

fn refusal(archive: Archive) -> ScanError {
    scan(&archive.end()).unwrap_err()
}

#[test]
fn members_become_entries() {
    let device = Block::ustar("dev/null", b'3').field(329, b"0000001\0").field(337, b"0000003\0");
    let archive = Archive::default()
        .member(Block::ustar("./", b'5'), b"")
        .member(Block::ustar("./etc//", b'5'), b"")
        .file("./etc/name", b"x")
        .member(Block::ustar("hard", b'1').link("/etc/name"), b"")
        .member(Block::ustar("soft", b'2').link("/etc/../name"), b"")
        .member(device, b"")
        .member(Block::ustar("fifo", b'6'), b"");
    let expected = [
        ("", EntryKind::Directory),
        ("etc", EntryKind::Directory),
        ("etc/name", EntryKind::File(Content::Inline(b"x".to_vec()))),
        ("hard", EntryKind::Hardlink(b"etc/name".to_vec())),
        ("soft", EntryKind::Symlink(b"/etc/../name".to_vec())),
        ("dev/null", EntryKind::CharDevice(Device { major: 1, minor: 3 })),
        ("fifo", EntryKind::Fifo),
    ];
    assert_eq!(kinds(archive), expected.map(|(path, kind)| (path.to_owned(), kind)));
}

#[test]
fn absolute_names_begin_at_the_images_root() {
    let archive = Archive::default()
        .member(Block::ustar("/", b'5').field(100, b"0000700\0"), b"")
        .file("/etc/name", b"x")
        .file("//etc/.wh.gone", b"");
    let expected = [
        ("", EntryKind::Directory),
        ("etc/name", EntryKind::File(Content::Inline(b"x".to_vec()))),
        ("etc/gone", EntryKind::Whiteout),
    ];
    assert_eq!(kinds(archive), expected.map(|(path, kind)| (path.to_owned(), kind)));
}

#[test]
fn whiteouts_become_marks_whatever_they_hold() {
    let archive = Archive::default()
        .file("a/.wh.gone", b"ignored")
        .file(".wh..wh..opq", b"")
        .file("a/.wh..wh..opq", &[1; 2000])
        .member(Block::ustar(".wh..wh.plnk/", b'5'), b"")
        .file(".wh..wh.plnk/12.34", &[2; 2000])
        .file("kept", b"kept");
    let expected = [
        ("a/gone", EntryKind::Whiteout),
        ("", EntryKind::Opaque),
        ("a", EntryKind::Opaque),
        ("kept", EntryKind::File(Content::Inline(b"kept".to_vec()))),
    ];
    assert_eq!(kinds(archive), expected.map(|(path, kind)| (path.to_owned(), kind)));
}

#[test]
fn metadata_is_kept() {
    let archive = Archive::default()
        .pax(
            b'x',
            &[
                ("mtime", b"12.5"),
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("SCHILY.xattr.security.capability", b"\x01"),
            ],
        )
        .member(Block::ustar("a", b'0').field(100, b"0006755\0"), b"x");
    let scan = scan(&archive.end()).unwrap();
    scan.check_that_it_decodes();
    let meta = &scan.record.entries[0].meta;
    assert_eq!((meta.mode, meta.uid, meta.gid), (0o6755, 0o1750, 0o144));
    assert_eq!(meta.mtime, Mtime { secs: 12, nanos: 500_000_000 });
    let names: Vec<_> = meta.xattrs.iter().map(|xattr| lossy(&xattr.name)).collect();
    assert_eq!(names, ["security.capability", "trusted.overlay.opaque"]);
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let cases = [
        ("/../etc/passwd", PathError::DotDot),
        ("../etc/passwd", PathError::DotDot),
        ("a/../../b", PathError::DotDot),
        ("a/.wh...", PathError::DotDot),
        (".wh.", PathError::NotNormal),
    ];
    for (name, error) in cases {
        assert_eq!(
            refusal(Archive::default().file(name, b"")),
            ScanError::Name { name: name.into(), error },
            "{name}"
        );
    }
}

#[test]
fn members_that_cannot_be_are_refused() {
    let device = |major: &str, minor: &str| {
        let block = Block::ustar("dev", b'3');
        block.field(329, format!("{major:0>7}\0").as_bytes()).field(337, format!("{minor:0>7}\0").as_bytes())
    };
    let many: Vec<String> =
        (0..=crate::limits::XATTRS_MAX).map(|index| format!("SCHILY.xattr.user.{index}")).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|key| (key.as_str(), &b""[..])).collect();
    let cases = [
        ("0:0", Archive::default().member(device("0", "0"), b"")),
        ("out of range", Archive::default().member(device("10000", "0"), b"")),
        ("out of range", Archive::default().member(device("0", "4000000"), b"")),
        ("root", Archive::default().file("./", b"")),
        ("root", Archive::default().member(Block::ustar(".", b'2').link("x"), b"")),
        ("target", Archive::default().member(Block::ustar("a", b'2'), b"")),
        ("hard link", Archive::default().member(Block::ustar("a", b'1').link("../b"), b"")),
        ("hard link", Archive::default().member(Block::ustar("a", b'1'), b"")),
        ("xattrs", Archive::default().pax(b'x', &many).file("a", b"")),
    ];
    for (reason, archive) in cases {
        let found = refusal(archive).to_string();
        assert!(found.contains(reason), "{found}");
    }
}

#[test]
fn limits_hold_before_anything_is_kept() {
    let limits = ScanLimits { plain_max: 10_000, entries_max: 3 };
    let try_scan = |archive: Vec<u8>| scan_with(limits, &archive, 512).map(|scan| scan.record.entries.len());
    let files = |count| (0..count).fold(Archive::default(), |archive, _| archive.file("a", b"x"));
    assert_eq!(try_scan(files(3).end()), Ok(3));
    assert_eq!(try_scan(files(4).end()), Err(ScanError::TooManyMembers(3)));
    assert_eq!(try_scan(Archive::default().file("a", &[0; 10_000]).end()), Err(ScanError::TooLong(10_000)));
    // A few bytes that declare a terabyte.
    let bomb = Block::ustar("a", b'0').field(124, b"\x80\0\0\0\0\0\x01\0\0\0\0\0").checked();
    assert_eq!(try_scan(Archive::default().raw(&bomb, b"").end()), Err(ScanError::TooLong(10_000)));
    let hole = |size: &str, map: &str, data: &[u8]| {
        let records: &[(&str, &[u8])] =
            &[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())];
        try_scan(Archive::default().pax(b'x', records).file("a", data).end())
    };
    // What is not there does not count, as long as any file system could hold the file.
    assert_eq!(hole("8796093022208", "", b""), Ok(1));
    let refused = hole("8796093022209", "", b"").unwrap_err().to_string();
    assert!(refused.contains("at most 8796093022208"), "{refused}");
    // But a byte in a hole is a block of data.
    assert_eq!(hole("999999", "100000,1,200000,1,300000,1", b"abc"), Err(ScanError::TooLong(10_000)));
}

/// Attributes of a global header, and files under it.
fn under_one_header(header: usize, files: usize, own: bool) -> Archive {
    let value = vec![b'x'; header];
    let archive = Archive::default().pax(b'g', &[("SCHILY.xattr.user.x", &value)]);
    (0..files).fold(archive, |archive, number| {
        let name = number.to_string();
        let archive = match own {
            true => archive.pax(b'x', &[("SCHILY.xattr.user.own", name.as_bytes())]),
            false => archive,
        };
        archive.file(&name, b"")
    })
}

#[test]
fn attributes_that_members_share_are_kept_and_counted_once() {
    let scan = |archive: Archive, max: u64| {
        let budget = RecordBudget::new(max);
        let mut scanner = LayerScanner::within(ScanLimits::default(), budget.clone());
        let mut emit = |_| Ok::<_, ScanError>(());
        scanner.push(&archive.end(), &mut emit)?;
        Ok::<_, ScanError>((scanner.finish(&mut emit)?, budget))
    };
    let (record, budget) = scan(under_one_header(60_000, 2000, false), 2_000_000).unwrap();
    let encoded = record.encode().unwrap();
    let decoded = LayerRecord::decode(&encoded).unwrap();
    assert_eq!(decoded, record);
    for record in [&record, &decoded] {
        let first = record.entries[0].meta.xattrs.address();
        assert!(record.entries.iter().all(|entry| entry.meta.xattrs.address() == first));
        assert_eq!(record.entries[7].meta.xattrs[0].value.len(), 60_000);
    }
    // Taken from the store, it costs the same.
    assert_eq!(record_bytes(&decoded), budget.used());
    // The tree has them once, too.
    let tree = crate::merge::merge(&[&record]).unwrap();
    assert!(crate::erofs::write(&tree).unwrap().len() < 1_000_000);
    // Where each differs from all others they all count.
    let error = scan(under_one_header(60_000, 2000, true), 2_000_000).unwrap_err();
    assert_eq!(error, ScanError::OverBudget(2_000_000));
    assert!(error.to_string().contains("fetcher.limits.image_records"));
}

#[test]
fn layers_of_an_image_share_its_budget() {
    let budget = RecordBudget::new(1_000_000);
    let files = (0..1500).fold(Archive::default(), |archive, number| archive.file(&number.to_string(), b""));
    let tar = files.end();
    let mut emit = |_| Ok::<_, ScanError>(());
    let mut push = || LayerScanner::within(ScanLimits::default(), budget.clone()).push(&tar, &mut emit);
    assert_eq!(push(), Ok(()));
    assert_eq!(push(), Err(ScanError::OverBudget(1_000_000)));
}

#[test]
fn a_truncated_tar_is_refused() {
    let archive = Archive::default().file("a", &[1; 3000]).without_end();
    let refusal = scan(&archive[..2000]).unwrap_err();
    assert_eq!(refusal.to_string(), "read tar, header at byte 0: the archive ends inside a member");
}

#[test]
fn the_caller_s_error_stops_the_scan() {
    #[derive(Debug, PartialEq)]
    enum Stop {
        Scan(ScanError),
        Full,
    }
    impl From<ScanError> for Stop {
        fn from(error: ScanError) -> Stop {
            Stop::Scan(error)
        }
    }
    let archive = Archive::default().file("a", &noise(1, 5 << 20)).end();
    let mut given = 0;
    let stopped = LayerScanner::new(ScanLimits::default()).push(&archive, &mut |_| {
        given += 1;
        if given == 2 { Err(Stop::Full) } else { Ok(()) }
    });
    assert_eq!((stopped, given), (Err(Stop::Full), 2));
}
