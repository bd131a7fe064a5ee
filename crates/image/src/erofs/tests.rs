use std::process::Command;

use super::*;
use crate::Digest;
use crate::limits::{INLINE_MAX, XATTR_VALUE_MAX};
use crate::merge::merge;
use crate::record::{Entry, EntryKind, LayerRecord, Meta, Mtime, Xattr, Xattrs};

fn layer(entries: impl IntoIterator<Item = (Vec<u8>, EntryKind)>) -> LayerRecord {
    let meta = Meta { mode: 0o644, ..Meta::default() };
    let entries = entries.into_iter().map(|(path, kind)| Entry { path, kind, meta: meta.clone() }).collect();
    LayerRecord { entries, ..LayerRecord::default() }
}

fn object(len: u64) -> EntryKind {
    EntryKind::File(Content::Object { digest: Digest::of(&len.to_le_bytes()), len })
}

fn image(record: &LayerRecord) -> Vec<u8> {
    write(&merge(&[record]).expect("a tree")).expect("an image")
}

/// `fsck.erofs` reads every inode, directory and attribute.
fn assert_accepted(image: &[u8], what: &str) {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), image).expect("the image written");
    let output = Command::new("fsck.erofs").arg(file.path()).output().expect("fsck.erofs (erofs-utils)");
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_checker_accepts_every_shape() {
    let names = |count: usize, len: usize| {
        (0..count).map(move |at| (format!("d/{at:0len$}").into_bytes(), EntryKind::Fifo))
    };
    let xattr = |name: &str, len| Xattr { name: name.into(), value: vec![7; len] };
    let mut with_xattrs = layer((0..20).map(|at| (vec![b'a' + at], object(1000))));
    for (at, entry) in with_xattrs.entries.iter_mut().enumerate() {
        entry.meta.xattrs = vec![xattr("security.x", at), xattr("user.y", at * 2000)].into();
    }
    let mut largest_xattr = layer([(b"a".to_vec(), object(1)), (b"d".to_vec(), EntryKind::Directory)]);
    for entry in &mut largest_xattr.entries {
        entry.meta.xattrs = vec![xattr("user.y", XATTR_VALUE_MAX)].into();
    }
    let mut shared =
        layer((0..40).map(|at| (vec![b'A' + at], if at % 2 == 0 { object(1000) } else { EntryKind::Fifo })));
    let many: Xattrs = (0..300).map(|at| xattr(&format!("security.{at:03}"), 100 + at)).collect();
    let few: Xattrs = vec![xattr("user.shared", 30_000), xattr("user.small", 3)].into();
    for (at, entry) in shared.entries.iter_mut().enumerate() {
        entry.meta.xattrs = if at % 4 < 2 { many.clone() } else { few.clone() };
    }
    let cases = [
        ("shared attributes", shared),
        ("nothing", layer([])),
        (
            "links of every length",
            layer((1..4096).map(|len| (format!("l{len}").into(), EntryKind::Symlink(vec![b'x'; len])))),
        ),
        (
            "small files",
            layer(
                (0..=INLINE_MAX)
                    .map(|len| (format!("f{len}").into(), EntryKind::File(Content::Inline(vec![1; len])))),
            ),
        ),
        ("large files", layer((0..=43).map(|bits| (format!("f{bits}").into(), object(1 << bits))))),
        ("a directory of many blocks", layer(names(10_000, 20))),
        ("names that fill a block exactly", layer(names(16, 244))),
        ("longest names", layer(names(100, 255))),
        ("one name per inode short of a block", layer(names(200, 1).chain(names(120, 3)))),
        ("attributes", with_xattrs),
        ("largest attribute", largest_xattr),
        (
            "names before the dots",
            layer([
                (b"!".to_vec(), EntryKind::Fifo),
                (b"-".to_vec(), EntryKind::Fifo),
                (b"..a".to_vec(), EntryKind::Fifo),
            ]),
        ),
    ];
    for (what, record) in &cases {
        let image = image(record);
        assert_eq!(image.len() % BLOCK, 0, "{what}");
        assert_accepted(&image, what);
    }
}

#[test]
fn the_checker_accepts_an_image_that_ends_anywhere() {
    for count in 0..2 * BLOCK / format::INODE_LEN {
        let names = (0..count).map(|at| (at.to_string().into_bytes(), EntryKind::Fifo));
        assert_accepted(&image(&layer(names)), &format!("{count} inodes"));
    }
}

#[test]
fn a_directory_is_as_long_as_it_says() {
    for count in [0, 1, 2, 15, 16, 17, 150, 1000] {
        for len in [1, 5, 100, 243, 244, 255] {
            let record = layer((0..count).map(|at| (format!("{at:0len$}").into_bytes(), EntryKind::Fifo)));
            let tree = merge(&[&record]).expect("a tree");
            let directory = Directory::new(&tree, tree.children(tree.root()));
            let encoded = directory.encode(1, 2, |at| at as u64);
            assert_eq!(encoded.len(), directory.len(), "{count} names of {len} bytes");
        }
    }
}

#[test]
fn the_same_tree_gives_the_same_bytes_in_any_order_of_entries() {
    let forward =
        layer((0..1000u32).map(|at| (format!("{}/{at}", at % 7).into(), object(u64::from(at) + 600))));
    let mut backward = forward.clone();
    backward.entries.reverse();
    assert_eq!(Digest::of(&image(&forward)), Digest::of(&image(&backward)));
}

#[test]
fn attributes_of_overlayfs_in_the_image_mean_nothing() {
    let mut record = layer([(b"a".to_vec(), EntryKind::File(Content::Inline(b"x".to_vec())))]);
    let xattr = |name: &str| Xattr { name: name.into(), value: b"/else".to_vec() };
    record.entries[0].meta.xattrs =
        vec![xattr("system.unknown"), xattr("trusted.overlay.redirect"), xattr("trusted.plain")].into();
    let tree = merge(&[&record]).expect("a tree");
    let mut encoded = Vec::new();
    xattr::encode(&tree.inodes()[1], &[], &mut encoded).expect("attributes");
    let expected = [
        [0; 12].as_slice(),
        &[24, 4, 5, 0],
        b"overlay.overlay.redirect/else\0\0\0",
        &[5, 4, 5, 0],
        b"plain/else\0\0",
    ];
    assert_eq!(encoded, expected.concat());
}

#[test]
fn a_hole_covers_the_whole_object() {
    for (size, bits) in [(1, 0), (4096, 0), (4097, 1), (1 << 20, 8), ((1 << 20) + 1, 9), (1 << 43, 31)] {
        assert_eq!(format::hole_bits(size), bits, "{size}");
    }
}

#[test]
fn numbers_stand_where_the_kernel_looks() {
    let mut record = layer([(b"a".to_vec(), EntryKind::CharDevice(Device { major: 0xabc, minor: 0xdef12 }))]);
    record.entries[0].meta = Meta {
        mode: 0o4755,
        uid: 1,
        gid: 0xffff_fffe,
        mtime: Mtime { secs: -2, nanos: 999_999_999 },
        xattrs: Default::default(),
    };
    let image = image(&record);
    let field = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().expect("four bytes"));
    let root = usize::from(u16::from_le_bytes([image[1024 + 14], image[1024 + 15]])) * 32;
    // The root's entries fit behind it.
    let device = (root + 64 + 3 * 12 + 4usize).next_multiple_of(32);
    assert_eq!(field(1024), 0xe0f5_e1e2);
    assert_eq!(field(device) as u16, 1);
    assert_eq!(field(device + 4), 0o024_755);
    assert_eq!(field(device + 16), 0xdefa_bc12);
    assert_eq!((field(device + 24), field(device + 28)), (1, 0xffff_fffe));
    assert_eq!(
        (field(device + 32), field(device + 36), field(device + 40)),
        (0xffff_fffe, 0xffff_ffff, 999_999_999)
    );
    assert_eq!(field(device + 44), 1);
}
