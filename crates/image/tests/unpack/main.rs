//! The tree of a stack of layers, mounted, beside a folder that the layers were unpacked into: both must
//! show the same names, types, modes, owners, sizes, times, attributes, links and contents.
//!
//! Needs root, `fsck.erofs`, and a kernel that mounts EROFS from a file and overlayfs with data-only
//! layers (6.12).

mod facts;
mod generate;
mod mount;
mod reference;
mod stack;

use std::os::unix::fs::PermissionsExt;

use image::record::{Device, EntryKind, Mtime, Xattr};
use proptest::prelude::*;

use crate::facts::facts;
use crate::mount::Mounted;
use crate::reference::unpack;
use crate::stack::{Stack, file};

/// Mounts the stack's tree, unpacks its layers, and compares.
fn assert_equal(stack: &Stack) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let unpacked = folder.path().join("unpacked");
    std::fs::create_dir(&unpacked)?;
    std::fs::set_permissions(&unpacked, std::fs::Permissions::from_mode(0o755))?;
    unpack(stack, &unpacked)?;
    let mounted = Mounted::new(stack, folder.path())?;
    let (expected, found) = (facts(&unpacked)?, facts(mounted.path())?);
    for (path, expected) in &expected {
        assert_eq!(found.get(path), Some(expected), "{path:?} of {stack:?}");
    }
    assert_eq!(found.len(), expected.len(), "{:?}", found.keys());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn a_mounted_tree_equals_the_unpacked_layers(stack in generate::stack()) {
        assert_equal(&stack).expect("compared");
    }
}

#[test]
fn awkward_files_are_equal_too() -> anyhow::Result<()> {
    let mut layers = Stack::default();
    layers.layer();
    layers.add("usr/share", EntryKind::Directory, |_| {});
    layers.add("lib", EntryKind::Symlink(b"usr/share".to_vec()), |_| {});
    for (name, len) in [("empty", 0), ("one", 1), ("inline", 512), ("object", 513), ("large", 3_000_000)] {
        layers.add_file(&format!("lib/{name}"), &vec![b'x'; len]);
    }
    for at in 0..3000 {
        layers.add_file(&format!("many/{at:050}"), format!("{at}").repeat(at % 300).as_bytes());
    }
    for len in [1, 4000, 4031, 4032, 4033, 4095] {
        layers.add(&format!("links/{len}"), EntryKind::Symlink(vec![b'/'; len]), |_| {});
    }
    layers.add("dev/big", EntryKind::CharDevice(Device { major: 4095, minor: 1_048_575 }), |meta| {
        meta.mode = 0o600
    });
    layers.add("dev/block", EntryKind::BlockDevice(Device { major: 8, minor: 1 }), |meta| meta.gid = 6);
    layers.add("dev/pipe", EntryKind::Fifo, |_| {});
    layers.add("acl", file(b"content"), |meta| {
        // POSIX ACL, version 2: owner rw-, user 1000 r--, group r--, mask r--, others none.
        let value =
            [&[2u8, 0, 0, 0][..], &acl(1, 6, u32::MAX), &acl(2, 4, 1000), &acl(4, 4, u32::MAX)].concat();
        let value = [value.as_slice(), &acl(16, 4, u32::MAX), &acl(32, 0, u32::MAX)].concat();
        meta.mode = 0o640;
        meta.xattrs = vec![Xattr { name: b"system.posix_acl_access".to_vec(), value }].into();
    });
    layers.add("many-attributes", file(&[b'y'; 600]), |meta| {
        let xattr = |at| Xattr { name: format!("user.{at:03}").into_bytes(), value: vec![at as u8; 10] };
        meta.xattrs = (0..100).map(xattr).collect();
    });
    for (name, kind) in
        [("shared-1", file(b"s")), ("shared-2", file(&[b's'; 3000])), ("shared-3", EntryKind::Fifo)]
    {
        // Of the fifo the one of the user's is left out.
        let xattr = |name: &str, len| Xattr { name: name.into(), value: vec![b'v'; len] };
        let xattrs = vec![xattr("security.sluice", 100), xattr("trusted.t", 3), xattr("user.u", 2000)];
        layers.add(name, kind, |meta| meta.xattrs = xattrs.into());
    }
    layers.add("old", file(b"old"), |meta| meta.mtime = Mtime { secs: -1_000_000, nanos: 999_999_999 });
    assert_equal(&layers)
}

/// One entry of a POSIX ACL: tag, permissions, who.
fn acl(tag: u16, permissions: u16, id: u32) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
}

#[test]
fn attributes_of_overlayfs_in_a_layer_change_nothing_and_are_still_there() -> anyhow::Result<()> {
    let mut layers = Stack::default();
    layers.layer();
    layers.add_file("d/hidden-if-opaque-worked", b"1");
    layers.add_file("target", &[b't'; 2000]);
    layers.layer();
    let overlay = |name: &str, value: &str| Xattr {
        name: format!("trusted.overlay.{name}").into_bytes(),
        value: value.into(),
    };
    layers.add("d", EntryKind::Directory, |meta| meta.xattrs = vec![overlay("opaque", "y")].into());
    layers.add("small", file(b"own"), |meta| {
        meta.xattrs = vec![overlay("metacopy", ""), overlay("redirect", "/target")].into();
    });
    layers.add("large", file(&[b'o'; 2000]), |meta| {
        meta.xattrs = vec![overlay("metacopy", ""), overlay("redirect", "/target")].into();
    });
    layers.add("whiteout", file(b""), |meta| meta.xattrs = vec![overlay("whiteout", "")].into());
    assert_equal(&layers)
}
