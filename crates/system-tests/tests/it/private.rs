//! What a node keeps is its owner's: no other user of the machine reads a byte of it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use system_tests::{Numbered, Scratch};
use testkit::LayoutWriter;

const NOBODY: u32 = 65534;

/// All that root finds below a folder, the folder first.
fn all_below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (mut found, mut open) = (vec![folder.to_owned()], vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            found.push(entry.path());
            // What is read of remote objects would be fetched.
            if entry.file_type()?.is_dir() && entry.file_name() != "remote" {
                open.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// Those of the paths, one a line, that a user without any rights can read, or enter.
fn open_to_nobody(paths: &[PathBuf]) -> anyhow::Result<String> {
    let script = r#"for path; do
        if [ -d "$path" ]; then ls "$path" && echo "$path"; else head -c 1 "$path" && echo "$path"; fi
    done 2> /dev/null; exit 0"#;
    let mut opened = String::new();
    for paths in paths.chunks(1000) {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh"]).args(paths).current_dir("/").uid(NOBODY).gid(NOBODY);
        let output = command.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        opened.push_str(&String::from_utf8_lossy(&output.stdout));
    }
    Ok(opened)
}

fn set_mode(path: &Path, mode: u32) -> anyhow::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(|| path.display().to_string())
}

#[test]
fn nobody_else_reads_what_a_node_keeps_not_even_what_an_earlier_version_left_open() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    // Its parents let everybody pass.
    set_mode(&scratch.path(""), 0o755)?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    let numbered = Numbered { files: 6, len: 300_000, seed: 80 };
    layout.image("app", &numbered.image()?)?;
    let root = scratch.mount_point("root")?;
    let mount = |name: &str| -> anyhow::Result<()> {
        let target = scratch.mount_point(name)?;
        scratch.succeed([
            "mount",
            "--complete",
            &layout.reference("app"),
            target.to_str().context("UTF-8")?,
        ])?;
        Ok(())
    };
    mount("root")?;
    let all = all_below(&scratch.state())?;
    for part in ["objects/", "store/", "serve.log", "records/", "mnt/tree/"] {
        let path = scratch.state().join(part);
        assert!(all.iter().any(|found| found.starts_with(&path)), "{part} is not there: this tested nothing");
    }
    assert_eq!(open_to_nobody(&all)?, "");

    // As earlier versions made it.
    scratch.kill_node()?;
    for path in all.iter().filter(|path| !path.starts_with(scratch.state().join("mnt/"))) {
        let kind = fs::symlink_metadata(path)?.file_type();
        if kind.is_dir() || kind.is_file() {
            set_mode(path, if kind.is_dir() { 0o755 } else { 0o644 })?;
        }
    }
    assert_ne!(open_to_nobody(&all)?, "");
    mount("second")?;
    assert_eq!(open_to_nobody(&all_below(&scratch.state())?)?, "");
    let closed = ["", "objects", "records", "store", "serve.log"].map(|name| scratch.state().join(name));
    for path in closed {
        let mode = fs::metadata(&path)?.permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
    }
    // What the containers of a machine see is not ours to close.
    assert_eq!(fs::metadata(root.join("data"))?.permissions().mode() & 0o777, 0o755);
    Ok(())
}
