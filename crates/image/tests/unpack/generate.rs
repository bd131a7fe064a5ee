//! Random stacks: few names, so that layers meet; entries that no tree can hold are left out.

use image::merge::merge;
use image::record::{Content, Device, Entry, EntryKind, Meta, Mtime, Xattr};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::stack::Stack;

pub(crate) fn stack() -> impl Strategy<Value = Stack> {
    vec(vec(entry(), 0..25), 1..5).prop_map(|layers| {
        let mut stack = Stack::default();
        for entries in layers {
            stack.layer();
            for entry in entries {
                stack.push(entry);
                if merge(&stack.layers.iter().collect::<Vec<_>>()).is_err() {
                    stack.pop();
                }
            }
        }
        stack
    })
}

fn entry() -> impl Strategy<Value = Entry> {
    (path(), kind(), meta()).prop_map(|(path, kind, meta)| Entry { path, kind, meta })
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    let names: Vec<&[u8]> = vec![b"a", b"b", b"c", b"-", b".x", b"\xff\xfe", &[b'n'; 200]];
    vec(select(names), 1..5).prop_map(|names| names.join(&b'/'))
}

fn kind() -> impl Strategy<Value = EntryKind> {
    let device = (1..4096u32, 0..1_048_576u32).prop_map(|(major, minor)| Device { major, minor });
    let target = (select(vec!["", "/", "../", "../../../../", "./"]), path())
        .prop_map(|(start, path)| [start.as_bytes(), &path].concat());
    let len = prop_oneof![0..600usize, 600..5000usize];
    let content = (len, any::<u8>()).prop_map(|(len, byte)| Content::Inline(vec![byte; len]));
    prop_oneof![
        4 => Just(EntryKind::Directory),
        6 => content.prop_map(EntryKind::File),
        2 => target.prop_map(EntryKind::Symlink),
        3 => path().prop_map(EntryKind::Hardlink),
        1 => device.clone().prop_map(EntryKind::CharDevice),
        1 => device.prop_map(EntryKind::BlockDevice),
        1 => Just(EntryKind::Fifo),
        2 => Just(EntryKind::Whiteout),
        1 => Just(EntryKind::Opaque),
    ]
}

fn meta() -> impl Strategy<Value = Meta> {
    let owner = || select(vec![0, 1, 1000, 70_000, u32::MAX - 1]);
    let mode = select(vec![0, 0o644, 0o755, 0o600, 0o4755, 0o2755, 0o1777, 0o7777]);
    let mtime = (-1_000_000_000..4_000_000_000i64, 0..1_000_000_000u32);
    (mode, owner(), owner(), mtime, xattrs()).prop_map(|(mode, uid, gid, (secs, nanos), xattrs)| Meta {
        mode,
        uid,
        gid,
        mtime: Mtime { secs, nanos },
        xattrs: xattrs.into(),
    })
}

fn xattrs() -> impl Strategy<Value = Vec<Xattr>> {
    // cap_net_raw+ep, as `setcap` writes it.
    let capability = [&[1u8, 0, 0, 2, 0, 32][..], &[0; 14]].concat();
    let known = [
        ("security.capability", Just(capability).boxed()),
        ("trusted.overlay.opaque", Just(b"y".to_vec()).boxed()),
        ("trusted.t", vec(any::<u8>(), 0..50).boxed()),
        ("user.u", vec(any::<u8>(), 0..300).boxed()),
    ];
    known
        .map(|(name, value)| {
            option::weighted(0.2, value)
                .prop_map(move |value| Some(Xattr { name: name.as_bytes().to_vec(), value: value? }))
        })
        .prop_map(|xattrs| xattrs.into_iter().flatten().collect())
}
