//! Files of secrets: whole or not at all, and nobody else's.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Writes `bytes` over what is there, at once for whoever reads it, and for its owner only.
pub fn write(path: &Path, bytes: impl AsRef<[u8]>) -> anyhow::Result<()> {
    let writing = || format!("writing {}", path.display());
    // Of a name alone it is the folder that we are in.
    let folder = match path.parent().with_context(writing)? {
        parent if parent.as_os_str().is_empty() => Path::new("."),
        parent => parent,
    };
    lifecycle::private::make(folder).with_context(writing)?;
    let draft = folder.join(format!(".{:016x}.new", rand::random::<u64>()));
    let written =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).and_then(|mut file| {
            file.write_all(bytes.as_ref())?;
            file.sync_all()?;
            fs::rename(&draft, path)
        });
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written.with_context(writing)
}

pub(crate) fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    write(path, serde_json::to_string_pretty(value)? + "\n")
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    serde_json::from_str(&read(path)?).with_context(|| format!("reading {}", path.display()))
}
