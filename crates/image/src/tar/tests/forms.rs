//! Every form a member can have, written byte by byte.

use super::archive::{Archive, Block};
use super::*;
use crate::record::{Mtime, Xattr};

/// As [`Archive::pax`] takes them.
type Records<'a> = &'a [(&'a str, &'a [u8])];

/// The only member of an archive.
fn only(archive: Archive) -> Unpacked {
    let mut members = unpack_both_ways(&archive.end());
    assert_eq!(members.len(), 1, "{members:?}");
    members.remove(0)
}

#[test]
fn every_type_of_member() {
    let device = |name, flag| Block::ustar(name, flag).field(329, b"0000010\0").field(337, b"0000003\0");
    let archive = Archive::default()
        .member(Block::ustar("dir/", b'5').field(100, b"0040755\0"), b"")
        .file("dir/file", b"content")
        .member(Block::ustar("dir/hard", b'1').link("dir/file"), b"")
        .member(Block::ustar("dir/soft", b'2').link("../file"), b"")
        .member(device("char", b'3'), b"")
        .member(device("block", b'4'), b"")
        .member(Block::ustar("fifo", b'6'), b"")
        .member(Block::ustar("contiguous", b'7'), b"contiguous")
        .end();
    let number = Device { major: 8, minor: 3 };
    let kinds: Vec<_> =
        unpack_both_ways(&archive).into_iter().map(|each| (each.path(), each.member.kind)).collect();
    let expected = [
        ("dir/", MemberKind::Directory),
        ("dir/file", MemberKind::File(7)),
        ("dir/hard", MemberKind::Hardlink(b"dir/file".to_vec())),
        ("dir/soft", MemberKind::Symlink(b"../file".to_vec())),
        ("char", MemberKind::CharDevice(number)),
        ("block", MemberKind::BlockDevice(number)),
        ("fifo", MemberKind::Fifo),
        ("contiguous", MemberKind::File(10)),
    ];
    assert_eq!(kinds, expected.map(|(path, kind)| (path.to_owned(), kind)));
}

#[test]
fn owners_modes_and_times_of_the_header() {
    let header = Block::ustar("a", b'0').field(100, b"0104755\0").field(136, b"14371573400\0");
    let meta = only(Archive::default().member(header, b"x")).member.meta;
    assert_eq!((meta.mode, meta.uid, meta.gid), (0o4755, 0o1750, 0o144));
    assert_eq!(meta.mtime, Mtime { secs: 0o14371573400, nanos: 0 });
}

#[test]
fn dialects_find_the_name_where_it_stands() {
    let long = "d/".repeat(40);
    let ustar = Block::ustar("name", b'0').field(345, long.trim_end_matches('/').as_bytes());
    assert_eq!(only(Archive::default().member(ustar, b"")).path(), format!("{long}name"));
    // Star cuts the prefix short for times of its own.
    let star =
        Block::ustar("name", b'0').field(345, &[b'p'; 131]).field(476, b"14371573400\0").field(508, b"tar\0");
    assert_eq!(only(Archive::default().member(star, b"")).path(), format!("{}/name", "p".repeat(131)));
    // GNU keeps times where ustar has its prefix, v7 has nothing there.
    let gnu = Block::gnu("name", b'0').field(345, b"14371573400\0");
    assert_eq!(only(Archive::default().member(gnu, b"")).path(), "name");
    let v7 = Block::v7("name", 0).field(345, b"junk");
    assert_eq!(only(Archive::default().member(v7, b"")).path(), "name");
    // A name may fill its field, and need not be UTF-8.
    let full = Block::ustar(&"n".repeat(100), b'0');
    assert_eq!(only(Archive::default().member(full, b"")).path().len(), 100);
    let bytes = Block::ustar("", b'0').field(0, b"\xff\xfe");
    assert_eq!(only(Archive::default().member(bytes, b"")).member.path, b"\xff\xfe");
}

#[test]
fn v7_directories_are_files_with_a_slash() {
    let member = only(Archive::default().member(Block::v7("dir/", 0), b""));
    assert_eq!(member.member.kind, MemberKind::Directory);
    let member = only(Archive::default().member(Block::v7("file", 0), b"abc"));
    assert_eq!((member.member.kind, &member.content[..]), (MemberKind::File(3), &b"abc"[..]));
}

#[test]
fn checksums_of_both_kinds() {
    let block = || Block::ustar("", b'0').field(0, b"\xe9t\xe9").size(0);
    assert_ne!(block().checked(), block().checked_signed());
    for header in [block().checked(), block().checked_signed()] {
        assert_eq!(only(Archive::default().raw(&header, b"")).member.path, b"\xe9t\xe9");
    }
}

#[test]
fn gnu_long_names() {
    let (path, target) = ("p/".repeat(200) + "file", "t/".repeat(300));
    let archive = Archive::default()
        .member(Block::gnu("././@LongLink", b'K'), format!("{target}\0").as_bytes())
        .member(Block::gnu("././@LongLink", b'L'), format!("{path}\0").as_bytes())
        .member(Block::gnu("p/p/p", b'2').link("t/t/t"), b"")
        .file("after", b"");
    let members = unpack_both_ways(&archive.end());
    assert_eq!(members[0].path(), path);
    assert_eq!(members[0].member.kind, MemberKind::Symlink(target.into_bytes()));
    assert_eq!(members[1].path(), "after");
}

#[test]
fn base256_numbers() {
    let before_1970 = [&[0xff; 11][..], &[0x9c]].concat();
    let header =
        Block::gnu("a", b'0').field(136, &before_1970).field(108, &[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff]);
    let meta = only(Archive::default().member(header, b"")).member.meta;
    assert_eq!((meta.mtime.secs, meta.uid), (-100, 0x7fff_ffff));
    let size = [&[0x80][..], &[0; 10], &[3]].concat();
    let header = Block::gnu("a", b'0').field(124, &size).checked();
    assert_eq!(only(Archive::default().raw(&header, b"abc")).content, b"abc");
}

#[test]
fn pax_records_win_over_the_header() {
    let archive = Archive::default()
        .pax(
            b'x',
            &[
                ("path", "sp\u{e4}t/\u{1f980}".as_bytes()),
                ("size", b"4"),
                ("uid", b"4294967294"),
                ("gid", b"100000"),
                ("mtime", b"-1.25"),
                ("comment", b"two\nlines = fine"),
            ],
        )
        .raw(&Block::ustar("short", b'0').size(0).checked(), b"data")
        .file("after", b"");
    let members = unpack_both_ways(&archive.end());
    let Unpacked { member, content } = &members[0];
    assert_eq!(members[0].path(), "sp\u{e4}t/\u{1f980}");
    assert_eq!((member.meta.uid, member.meta.gid), (4_294_967_294, 100_000));
    assert_eq!(member.meta.mtime, Mtime { secs: -2, nanos: 750_000_000 });
    assert_eq!(content, b"data");
    // For one member only.
    assert_eq!((members[1].path().as_str(), members[1].member.meta.uid), ("after", 0o1750));
}

#[test]
fn global_records_hold_until_they_are_taken_back() {
    let archive = Archive::default()
        .pax(b'g', &[("uid", b"77"), ("mtime", b"5"), ("comment", b"a commit")])
        .file("global", b"")
        .pax(b'x', &[("uid", b"78")])
        .file("local", b"")
        .pax(b'g', &[("uid", b"")])
        .file("header", b"");
    let members = unpack_both_ways(&archive.end());
    let found: Vec<_> =
        members.iter().map(|each| (each.member.meta.uid, each.member.meta.mtime.secs)).collect();
    assert_eq!(found, [(77, 5), (78, 5), (0o1750, 5)]);
}

#[test]
fn the_last_extension_of_a_kind_counts() {
    let archive = Archive::default()
        .pax(b'x', &[("path", b"first"), ("uid", b"1")])
        .pax(b'x', &[("path", b"second"), ("path", b"third")])
        .file("header", b"");
    let member = only(archive);
    assert_eq!((member.path().as_str(), member.member.meta.uid), ("third", 0o1750));
    let archive = Archive::default()
        .member(Block::gnu("././@LongLink", b'L'), b"long\0")
        .pax(b'x', &[("path", b"pax")])
        .file("header", b"");
    assert_eq!(only(archive).path(), "long");
}

#[test]
fn extended_attributes_of_both_forms() {
    let archive = Archive::default()
        .pax(
            b'x',
            &[
                ("SCHILY.xattr.user.b", b"\x00\x01\xff="),
                ("SCHILY.xattr.user.a", b""),
                ("LIBARCHIVE.xattr.user.%61%20name", b"AAH/"),
                ("LIBARCHIVE.xattr.user.padded", b"AA=="),
                ("LIBARCHIVE.xattr.user.b", b"b3RoZXI"),
                ("SCHILY.xattr.security.capability", b"old"),
                ("SCHILY.xattr.security.capability", b"new"),
            ],
        )
        .file("a", b"");
    let member = only(archive);
    assert_eq!(member.xattr("user.b"), Some(&b"\x00\x01\xff="[..]));
    assert_eq!(member.xattr("user.a"), Some(&b""[..]));
    assert_eq!(member.xattr("user.a name"), Some(&b"\x00\x01\xff"[..]));
    assert_eq!(member.xattr("user.padded"), Some(&b"\x00"[..]));
    assert_eq!(member.xattr("security.capability"), Some(&b"new"[..]));
    let xattrs: &[Xattr] = &member.member.meta.xattrs;
    assert!(xattrs.is_sorted_by(|one, other| one.name < other.name));
}

/// `ab` at 1 MiB and `cde` at 2 MiB, of 3 MiB.
const REAL_SIZE: usize = 3 << 20;
fn sparse_content() -> Vec<u8> {
    let mut content = vec![0; REAL_SIZE];
    content[1 << 20..][..2].copy_from_slice(b"ab");
    content[2 << 20..][..3].copy_from_slice(b"cde");
    content
}

#[test]
fn sparse_files_in_all_pax_forms() {
    let forms: [(Records, &[u8]); 4] = [
        // 0.0
        (
            &[
                ("GNU.sparse.size", b"3145728"),
                ("GNU.sparse.numblocks", b"3"),
                ("GNU.sparse.offset", b"1048576"),
                ("GNU.sparse.numbytes", b"2"),
                ("GNU.sparse.offset", b"2097152"),
                ("GNU.sparse.numbytes", b"3"),
                ("GNU.sparse.offset", b"3145728"),
                ("GNU.sparse.numbytes", b"0"),
                ("path", b"real"),
            ],
            b"abcde",
        ),
        // 0.1
        (
            &[
                ("GNU.sparse.size", b"3145728"),
                ("GNU.sparse.numblocks", b"3"),
                ("GNU.sparse.name", b"real"),
                ("GNU.sparse.map", b"1048576,2,2097152,3,3145728,0"),
            ],
            b"abcde",
        ),
        // 1.0
        (
            &[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"real"),
                ("GNU.sparse.realsize", b"3145728"),
            ],
            &[&b"3\n1048576\n2\n2097152\n3\n3145728\n0\n"[..], &[0; 480], b"abcde"].concat(),
        ),
        // 1.0, one extent less
        (
            &[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"real"),
                ("GNU.sparse.realsize", b"3145728"),
            ],
            &[&b"2\n1048576\n2\n2097152\n3\n"[..], &[0; 490], b"abcde"].concat(),
        ),
    ];
    for (records, stored) in forms {
        let archive =
            Archive::default().pax(b'x', records).file("GNUSparseFile.0/real", stored).file("after", b"!");
        let archive = archive.end();
        let members = unpack(&archive, archive.len()).unwrap();
        assert_eq!(unpack(&archive, 99).unwrap(), members);
        assert_eq!((members[0].path().as_str(), members[1].path().as_str()), ("real", "after"));
        assert!(members[0].content == sparse_content(), "{records:?}");
        assert_eq!(members[1].content, b"!");
    }
}

#[test]
fn sparse_files_that_are_all_hole() {
    let records: [Records; 2] = [
        &[("GNU.sparse.size", b"70000"), ("GNU.sparse.numblocks", b"0"), ("GNU.sparse.map", b"")],
        &[("GNU.sparse.size", b"70000"), ("GNU.sparse.numblocks", b"0")],
    ];
    for records in records {
        assert_eq!(only(Archive::default().pax(b'x', records).file("a", b"")).content, vec![0; 70_000]);
    }
}

#[test]
fn sparse_files_of_old_gnu_with_a_continued_map() {
    let entry = |offset: u64, len: u64| format!("{offset:011o}\0{len:011o}\0").into_bytes();
    // One byte at every 1000: 4 extents in the header, 21 and 5 in two more blocks.
    let extents: Vec<_> = (0..30).map(|index| entry(index * 1000, 1)).collect();
    let header = Block::gnu("sparse", b'S')
        .field(386, &extents[..4].concat())
        .field(482, b"\x01")
        .field(483, format!("{:011o}\0", 40_000).as_bytes())
        .size(30)
        .checked();
    let mut more = extents[4..25].concat();
    more.resize(504, 0);
    more.extend_from_slice(b"\x01\0\0\0\0\0\0\0");
    let mut last = extents[25..].concat();
    last.resize(512, 0);
    let archive =
        Archive::default().raw(&[&header[..], &more, &last].concat(), &[b'x'; 30]).file("after", b"!");
    let members = unpack_both_ways(&archive.end());
    let expected: Vec<u8> =
        (0..40_000).map(|at| if at < 30_000 && at % 1000 == 0 { b'x' } else { 0 }).collect();
    assert_eq!(members[0].content, expected);
    assert_eq!((members[1].path().as_str(), &members[1].content[..]), ("after", &b"!"[..]));
}

#[test]
fn links_that_declare_a_size() {
    let link = Block::ustar("link", b'1').link("file").size(600).checked();
    // Most writers repeat the file's size and write nothing.
    let without = Archive::default().file("file", &[b'f'; 600]).raw(&link, b"").file("after", b"!");
    // POSIX lets the bytes stand there once more.
    let with = Archive::default().file("file", &[b'f'; 600]).raw(&link, &[b'f'; 600]).file("after", b"!");
    for archive in [without, with] {
        let members = unpack_both_ways(&archive.end());
        let paths: Vec<_> = members.iter().map(Unpacked::path).collect();
        assert_eq!(paths, ["file", "link", "after"]);
        assert_eq!(members[2].content, b"!");
    }
    let last = Archive::default().raw(&link, b"");
    assert_eq!(unpack_both_ways(&last.clone().end()).len(), 1);
    assert_eq!(unpack_both_ways(&last.without_end()).len(), 1);
}

#[test]
fn what_has_no_content_may_declare_a_size() {
    for flag in [b'2', b'3', b'4', b'5', b'6'] {
        let header = Block::ustar("sized", flag).link("target").size(1000).checked();
        let archive = Archive::default().raw(&header, b"").file("after", b"!").end();
        assert_eq!(unpack_both_ways(&archive)[1].content, b"!", "{flag}");
    }
}

#[test]
fn ends_of_every_kind() {
    let archive = || Archive::default().file("a", &[b'x'; 100]);
    let whole = archive().end();
    let unpadded = archive().without_end()[..612].to_vec();
    let one_block = [&archive().without_end()[..], &[0; 512]].concat();
    let record = [&whole[..], &[0; 8192]].concat();
    let followed = [&whole[..], b"anything"].concat();
    for bytes in [whole, archive().without_end(), unpadded, one_block, record, followed] {
        assert_eq!(unpack_both_ways(&bytes)[0].content, [b'x'; 100], "{} bytes", bytes.len());
    }
    assert!(unpack_both_ways(&[]).is_empty());
    assert!(unpack_both_ways(&[0; 1024]).is_empty());
}
