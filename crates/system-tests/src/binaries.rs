//! Finds the workspace's own binaries: they stand beside this one, or above it when this is a test.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};

/// The path of the workspace binary `name`.
pub fn path(name: &str) -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe()?;
    let beside = this.parent().context("a program stands in a folder")?;
    let folder = if beside.ends_with("deps") { beside.parent().unwrap_or(beside) } else { beside };
    let path = folder.join(name);
    ensure!(path.exists(), "{} is missing: `cargo build --workspace --bins` makes it", path.display());
    Ok(path)
}

/// A command that runs the workspace binary `name`.
pub fn command(name: &str) -> anyhow::Result<Command> {
    Ok(Command::new(path(name)?))
}

/// A plugin that `./just plugins` built, by its path below the folder of all of them.
pub fn plugin(name: &str) -> anyhow::Result<PathBuf> {
    let folder = match std::env::var_os("SLUICE_PLUGINS") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target-plugins")),
    };
    let path = folder.join(name);
    path.canonicalize().with_context(|| format!("{} is missing: `./just plugins` makes it", path.display()))
}
