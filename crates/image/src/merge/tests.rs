//! Stacks of layers written as lines: `KIND PATH [DETAIL] [@MODE]`, the kinds being d(irectory),
//! f(ile), s(ymlink), h(ard link), p(ipe), w(hiteout) and o(paque). `/` is the root.

use super::*;
use crate::limits::{DEPTH_MAX, INLINE_MAX};
use crate::record::{Content, Meta, Xattr};

const MODE: u32 = 0o644;

fn entry(line: &str) -> Entry {
    let (line, mode) = match line.split_once(" @") {
        Some((line, mode)) => (line, u32::from_str_radix(mode, 8).expect("an octal mode")),
        None => (line, MODE),
    };
    let mut words = line.split(' ');
    let kind = words.next().expect("a kind");
    let path = words.next().expect("a path").trim_matches('/').as_bytes().to_vec();
    let detail = words.next().unwrap_or_default().as_bytes().to_vec();
    let kind = match kind {
        "d" => EntryKind::Directory,
        "f" => EntryKind::File(Content::Inline(detail)),
        "s" => EntryKind::Symlink(detail),
        "h" => EntryKind::Hardlink(detail),
        "p" => EntryKind::Fifo,
        "w" => EntryKind::Whiteout,
        "o" => EntryKind::Opaque,
        other => panic!("kind {other:?}"),
    };
    Entry { path, kind, meta: Meta { mode, ..Meta::default() } }
}

fn stack(layers: &[&[&str]]) -> Vec<LayerRecord> {
    let layer = |lines: &&[&str]| LayerRecord {
        entries: lines.iter().map(|line| entry(line)).collect(),
        ..LayerRecord::default()
    };
    layers.iter().map(layer).collect()
}

/// A tree in the same notation; modes other than 644 and more than one link are shown.
fn listing(tree: &FileTree) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![(tree.root(), String::new())];
    while let Some((id, path)) = pending.pop() {
        let inode = tree.inode(id);
        let mut line = match &inode.node {
            Node::Directory(_) => format!("d {path}"),
            Node::File(Content::Inline(bytes)) => format!("f {path} {}", text(bytes)),
            Node::Symlink(target) => format!("s {path} {}", text(target)),
            Node::Fifo => format!("p {path}"),
            other => panic!("{other:?}"),
        };
        if inode.meta.mode != MODE {
            line += &format!(" @{:o}", inode.meta.mode);
        }
        if !inode.is_directory() && inode.nlink != 1 {
            line += &format!(" x{}", inode.nlink);
        }
        if !path.is_empty() || inode.meta.mode != 0o755 {
            lines.push(line);
        }
        let below = |name: &[u8]| format!("{path}{}{}", if path.is_empty() { "" } else { "/" }, text(name));
        pending.extend(inode.children().iter().rev().map(|child| (child.id, below(&child.name))));
    }
    lines
}

#[test]
fn layers_become_the_tree_that_an_unpacker_would_leave() {
    type Case = (&'static str, &'static [&'static [&'static str]], &'static [&'static str]);
    let cases: &[Case] = &[
        ("nothing", &[], &[]),
        ("empty layers", &[&[], &[]], &[]),
        ("given twice", &[&["f a 1", "f a 2"]], &["f a 2"]),
        ("upper wins", &[&["f a 1"], &["f a 2"]], &["f a 2"]),
        ("missing parents", &[&["f a/b/c 1"]], &["d a @755", "d a/b @755", "f a/b/c 1"]),
        ("parent told later", &[&["f a/b 1", "d a @700"]], &["d a @700", "f a/b 1"]),
        ("root", &[&["d / @700"], &["f a 1"]], &["d  @700", "f a 1"]),
        ("directory over directory", &[&["d x", "f x/a 1"], &["d x @700"]], &["d x @700", "f x/a 1"]),
        ("directory over file", &[&["f x 1"], &["d x", "f x/a 1"]], &["d x", "f x/a 1"]),
        ("file over directory", &[&["d x", "f x/a 1"], &["f x 1"]], &["f x 1"]),
        ("symlink over directory", &[&["d x", "f x/a 1"], &["s x y"]], &["s x y"]),
        ("directory over symlink", &[&["d y", "s x y"], &["d x", "f x/a 1"]], &["d x", "f x/a 1", "d y"]),
        ("whiteout", &[&["f a 1", "f b 1"], &["w a"]], &["f b 1"]),
        ("whiteout of a directory", &[&["f d/a 1", "f b 1"], &["w d"]], &["f b 1"]),
        ("whiteout of nothing", &[&["f a 1"], &["w x/y", "w a/z", "w b"]], &["f a 1"]),
        ("whiteout after its sibling", &[&["f a 1"], &["f a 2", "w a"]], &["f a 2"]),
        ("whiteout before its sibling", &[&["f a 1"], &["w a", "f a 2"]], &["f a 2"]),
        ("whiteout around own content", &[&["f d/a 1"], &["f d/b 2", "w d"]], &["d d @755", "f d/b 2"]),
        ("whiteout of a later layer", &[&["f a 1"], &["w a"], &["f a 3"]], &["f a 3"]),
        ("whiteout of a symlink", &[&["f d/a 1", "s l d"], &["w l"]], &["d d @755", "f d/a 1"]),
        ("whiteout through a symlink", &[&["f d/a 1", "s l d"], &["w l/a"]], &["d d @755", "s l d"]),
        ("opaque first", &[&["f d/a 1"], &["o d", "f d/b 2"]], &["d d @755", "f d/b 2"]),
        (
            "opaque last",
            &[&["f d/a 1", "f d/s/a 1"], &["f d/b 2", "f d/s/b 2", "o d"]],
            &["d d @755", "f d/b 2", "d d/s @755", "f d/s/b 2"],
        ),
        ("opaque root", &[&["f d/a 1"], &["o /", "f b 2"]], &["f b 2"]),
        ("opaque file or nothing", &[&["f a 1"], &["o a", "o b"]], &["f a 1"]),
        (
            "opaque where a link was",
            &[&["f e/a 1", "s d e"], &["d d", "o d", "f d/b 2"]],
            &["d d", "f d/b 2", "d e @755", "f e/a 1"],
        ),
        ("hard link", &[&["f a 1", "h b a"]], &["f a 1 x2", "f b 1 x2"]),
        ("hard link below", &[&["f a 1"], &["h d/b a"]], &["f a 1 x2", "d d @755", "f d/b 1 x2"]),
        ("hard link's metadata", &[&["f a 1"], &["h b a @600"]], &["f a 1 @600 x2", "f b 1 @600 x2"]),
        ("hard links in a row", &[&["f a 1", "h b a", "h c b"]], &["f a 1 x3", "f b 1 x3", "f c 1 x3"]),
        ("hard link to a symlink", &[&["s a t", "h b a"]], &["s a t x2", "s b t x2"]),
        (
            "hard link through a symlink",
            &[&["f d/a 1", "s l d", "h b l/a"]],
            &["f b 1 x2", "d d @755", "f d/a 1 x2", "s l d"],
        ),
        ("hard link to itself", &[&["f a 1", "h a a"]], &["f a 1"]),
        ("hard link over a file", &[&["f a 1", "f b 2", "h b a"]], &["f a 1 x2", "f b 1 x2"]),
        ("one name replaced", &[&["f a 1", "h b a"], &["f a 2"]], &["f a 2", "f b 1"]),
        ("one name hidden", &[&["f a 1", "h b a"], &["w a"]], &["f b 1"]),
        ("hidden with its directory", &[&["f d/a 1", "h b d/a"], &["w d"]], &["f b 1"]),
        (
            "parent is a symlink",
            &[&["d usr/lib", "s lib usr/lib"], &["f lib/x 1"]],
            &["s lib usr/lib", "d usr @755", "d usr/lib", "f usr/lib/x 1"],
        ),
        (
            "parents through symlinks stay inside",
            &[&["s a /../../b", "f a/x 1", "s c ../..", "f c/y 2"]],
            &["s a /../../b", "d b @755", "f b/x 1", "s c ../..", "f y 2"],
        ),
        ("pipe", &[&["p d/a"], &["p b"]], &["p b", "d d @755", "p d/a"]),
    ];
    for (what, layers, expected) in cases {
        let records = stack(layers);
        let tree =
            merge(&records.iter().collect::<Vec<_>>()).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(listing(&tree), *expected, "{what}: {layers:?}");
    }
}

#[test]
fn what_makes_no_tree_is_refused_with_its_place() {
    let long = format!("f a/x 1|s a {}", "n".repeat(NAME_MAX + 1));
    let (file, link) = long.split_once('|').expect("two lines");
    let long = [link, file];
    let cases: &[(&[&[&str]], usize, &str, Problem)] = &[
        (&[&["h b a"]], 0, "b", Problem::LinkToNothing("a".into())),
        (&[&["f a 1"], &["w a", "h b a"]], 1, "b", Problem::LinkToNothing("a".into())),
        (&[&["h b x/y/a"]], 0, "b", Problem::LinkToNothing("x/y/a".into())),
        (&[&["f a/b 1"], &["h a a/b"]], 1, "a", Problem::LinkToNothing("a/b".into())),
        (&[&["d a", "h b a"]], 0, "b", Problem::LinkToDirectory("a".into())),
        (&[&["f a 1", "f a/b 1"]], 0, "a/b", Problem::ParentNotDirectory("a".into())),
        (&[&["p a"], &["d a/b/c"]], 1, "a/b/c", Problem::ParentNotDirectory("a".into())),
        (&[&["s a b", "s b a", "f a/x 1"]], 0, "a/x", Problem::SymlinkLoop),
        (&[&["s a a/a", "f a/x 1"]], 0, "a/x", Problem::SymlinkLoop),
        (&[&["f / 1"]], 0, "", Problem::BadRoot),
        (&[&["w /"]], 0, "", Problem::BadRoot),
        (&[&["f a/../b 1"]], 0, "a/../b", Problem::BadPath(PathError::DotDot)),
        (&[&long], 0, "a/x", Problem::NameTooLong),
    ];
    for (layers, layer, path, problem) in cases {
        let records = stack(layers);
        let error =
            merge(&records.iter().collect::<Vec<_>>()).map(|tree| listing(&tree)).expect_err("refused");
        assert_eq!((error.layer, error.path.as_str(), &error.problem), (*layer, *path, problem));
    }
}

#[test]
fn depth_is_bounded_though_every_path_is_short() {
    // Each step goes through the link to the directory made last, and one deeper.
    let mut entries = Vec::new();
    let mut here = String::from("d");
    for _ in 0..2 * DEPTH_MAX {
        entries.push(entry(&format!("s l {here}")));
        entries.push(entry("d l/d"));
        here += "/d";
        if here.len() > 4000 {
            break;
        }
    }
    let record = LayerRecord { entries, ..LayerRecord::default() };
    let error = merge(&[&record]).map(|tree| tree.inodes().len()).expect_err("refused");
    assert_eq!(error.problem, Problem::TooDeep);
}

#[test]
fn files_that_no_tree_can_hold_are_refused() {
    let mut record = stack(&[&["f a 1"]]).remove(0);
    let digest = crate::Digest::of(b"");
    for (len, refused) in [(FILE_MAX, false), (FILE_MAX + 1, true), (u64::MAX, true)] {
        record.entries[0].kind = EntryKind::File(Content::Object { digest, len });
        assert_eq!(merge(&[&record]).is_err(), refused, "{len}");
    }
}

#[test]
fn the_table_lists_what_stands_together() {
    let records = stack(&[&["f b/x 1", "f a/y/z 1", "f a/x 1", "f c 1", "h d c"]]);
    let tree = merge(&[&records[0]]).expect("a tree");
    let names: Vec<_> = ["", "a", "b", "c", "a/x", "a/y", "a/y/z", "b/x"].to_vec();
    let found: Vec<_> = names.iter().map(|name| tree.find(name.as_bytes()).map(InodeId::index)).collect();
    assert_eq!(found, (0..names.len()).map(Some).collect::<Vec<_>>());
    assert_eq!(tree.inode(tree.root()).nlink, 4);
    assert_eq!(tree.files(), 4);
    assert_eq!(tree.find(b"a/none"), None);
}

#[test]
fn a_replaced_directory_has_only_its_new_attributes() {
    let mut records = stack(&[&["d a"], &["d a"]]);
    let xattr = Xattr { name: b"user.a".to_vec(), value: vec![1; INLINE_MAX] };
    records[0].entries[0].meta.xattrs = vec![xattr].into();
    let layers: Vec<_> = records.iter().collect();
    let tree = merge(&layers).expect("a tree");
    assert!(tree.inodes()[1].meta.xattrs.is_empty());
}
