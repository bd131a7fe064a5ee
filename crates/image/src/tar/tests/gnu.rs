//! Archives written by GNU tar, in all its formats, read back.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::*;
use crate::record::Mtime;

/// The archive that `tar --create OPTIONS .` makes of `dir`.
fn tar(dir: &Path, options: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new("tar")
        .args(["--create", "--sort=name", "--file=-", "--directory"])
        .arg(dir)
        .args(options)
        .arg(".")
        .output()
        .context("run tar")?;
    ensure!(output.status.success(), "tar {options:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

fn find<'a>(members: &'a [Unpacked], path: &str) -> &'a Unpacked {
    members.iter().find(|each| each.path() == path).unwrap_or_else(|| panic!("no {path} in {members:?}"))
}

/// A directory with everything that all formats can hold.
fn make_files(dir: &Path) -> Result<()> {
    fs::create_dir(dir.join("dir"))?;
    fs::write(dir.join("dir/file"), b"content")?;
    fs::write(dir.join("dir/\u{fc}mlaut"), vec![7; 70_000])?;
    fs::hard_link(dir.join("dir/file"), dir.join("dir/hard"))?;
    symlink("../else", dir.join("soft"))?;
    std::os::unix::fs::chown(dir.join("dir/file"), Some(123), Some(456))?;
    fs::set_permissions(dir.join("dir/file"), fs::Permissions::from_mode(0o4711))?;
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_234_567_890, 123_456_789);
    File::options().write(true).open(dir.join("dir/file"))?.set_modified(time)?;
    ensure!(Command::new("mkfifo").arg(dir.join("fifo")).status()?.success(), "mkfifo");
    ensure!(Command::new("mknod").arg(dir.join("null")).args(["c", "1", "3"]).status()?.success(), "mknod");
    Ok(())
}

#[test]
fn all_formats_hold_the_same_tree() -> Result<()> {
    let dir = tempfile::tempdir()?;
    make_files(dir.path())?;
    for format in ["v7", "oldgnu", "gnu", "ustar", "pax"] {
        // v7 refuses what it cannot hold.
        let options: &[&str] = match format {
            "v7" => &["--format=v7", "--exclude=./fifo", "--exclude=./null"],
            _ => &[&format!("--format={format}")],
        };
        let members = unpack_both_ways(&tar(dir.path(), options)?);
        let file = find(&members, "./dir/file");
        assert_eq!(file.content, b"content", "{format}");
        let meta = &file.member.meta;
        assert_eq!((meta.mode, meta.uid, meta.gid), (0o4711, 123, 456), "{format}");
        let nanos = if format == "pax" { 123_456_789 } else { 0 };
        assert_eq!(meta.mtime, Mtime { secs: 1_234_567_890, nanos }, "{format}");
        assert_eq!(find(&members, "./dir/\u{fc}mlaut").content, vec![7; 70_000], "{format}");
        assert_eq!(find(&members, "./dir/hard").member.kind, MemberKind::Hardlink(b"./dir/file".to_vec()));
        assert_eq!(find(&members, "./soft").member.kind, MemberKind::Symlink(b"../else".to_vec()));
        assert_eq!(find(&members, "./dir/").member.kind, MemberKind::Directory);
        if format != "v7" {
            let null = MemberKind::CharDevice(Device { major: 1, minor: 3 });
            assert_eq!(find(&members, "./null").member.kind, null);
            assert_eq!(find(&members, "./fifo").member.kind, MemberKind::Fifo);
        }
        let expected = fs::metadata(dir.path().join("dir"))?;
        assert_eq!(find(&members, "./dir/").member.meta.mtime.secs, expected.mtime(), "{format}");
    }
    Ok(())
}

#[test]
fn long_names_and_links() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let long = ["d".repeat(90), "e".repeat(90), "f".repeat(200)].join("/");
    let path = dir.path().join(&long);
    fs::create_dir_all(path.parent().context("no parent")?)?;
    fs::write(&path, b"deep")?;
    symlink(&long, dir.path().join("soft"))?;
    fs::hard_link(&path, dir.path().join("z-hard"))?;
    for format in ["gnu", "oldgnu", "pax"] {
        let members = unpack_both_ways(&tar(dir.path(), &[&format!("--format={format}")])?);
        assert_eq!(find(&members, &format!("./{long}")).content, b"deep", "{format}");
        assert_eq!(find(&members, "./soft").member.kind, MemberKind::Symlink(long.clone().into_bytes()));
        let target = format!("./{long}").into_bytes();
        assert_eq!(find(&members, "./z-hard").member.kind, MemberKind::Hardlink(target), "{format}");
    }
    Ok(())
}

#[test]
fn sparse_files_of_all_versions() -> Result<()> {
    let dir = tempfile::tempdir()?;
    const LEN: u64 = 8 << 20;
    let file = File::create(dir.path().join("sparse"))?;
    file.set_len(LEN)?;
    // More extents than a header holds.
    for index in 0..40_u64 {
        file.write_all_at(&[index as u8 + 1; 4096], index * 128 * 1024 + 65_536)?;
    }
    let hole = File::create(dir.path().join("z-hole"))?;
    hole.set_len(1 << 20)?;
    let expected = fs::read(dir.path().join("sparse"))?;
    let forms: [&[&str]; 5] = [
        &["--format=gnu"],
        &["--format=oldgnu"],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ];
    for form in forms {
        let archive = tar(dir.path(), &[&["--sparse"], form].concat())?;
        assert!(archive.len() < LEN as usize / 4, "{form:?}: not written as sparse");
        for piece in [archive.len(), 333] {
            let members = unpack(&archive, piece)?;
            assert!(find(&members, "./sparse").content == expected, "{form:?}");
            assert!(find(&members, "./z-hole").content == vec![0; 1 << 20], "{form:?}");
        }
    }
    Ok(())
}

#[test]
fn extended_attributes_and_old_times() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("file");
    fs::write(&path, b"")?;
    let set = |name: &str, value: &str| -> Result<()> {
        let status = Command::new("setfattr").args(["-n", name, "-v", value]).arg(&path).status()?;
        ensure!(status.success(), "setfattr {name}");
        Ok(())
    };
    set("user.note", "text")?;
    set("trusted.overlay.opaque", "y")?;
    set("security.capability", "0x0100000200200000000000000000000000000000")?;
    File::options()
        .write(true)
        .open(&path)?
        .set_modified(std::time::UNIX_EPOCH - std::time::Duration::from_millis(1_500))?;
    let options = ["--format=pax", "--xattrs", "--xattrs-include=*"];
    let members = unpack_both_ways(&tar(dir.path(), &options)?);
    let file = find(&members, "./file");
    assert_eq!(file.xattr("user.note"), Some(&b"text"[..]));
    assert_eq!(file.xattr("trusted.overlay.opaque"), Some(&b"y"[..]));
    assert_eq!(file.xattr("security.capability").map(<[u8]>::len), Some(20));
    assert_eq!(file.member.meta.mtime, Mtime { secs: -2, nanos: 500_000_000 });
    let members = unpack_both_ways(&tar(dir.path(), &["--format=gnu"])?);
    assert_eq!(find(&members, "./file").member.meta.mtime.secs, -2);
    Ok(())
}
