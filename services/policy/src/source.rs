//! Where plugins come from. What is loaded is pinned: by being part of this program, or by its digest.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, anyhow, bail};
use sha2::{Digest, Sha256};

/// The policies that come with sluice, by name.
const BUILTIN: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/builtin.rs"));

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Builtin(String),
    File { path: PathBuf, pin: String },
}

/// A plugin's bytes, and their digest: `sha256:<hex>`.
pub(crate) struct Fetched {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: String,
}

impl FromStr for Source {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Source> {
        if let Some(name) = text.strip_prefix("builtin:") {
            return Ok(Source::Builtin(name.to_owned()));
        }
        let Some(rest) = text.strip_prefix("file:") else {
            bail!("{text:?} is no source: builtin:NAME or file:PATH@sha256:HEX expected");
        };
        let (path, pin) = rest.rsplit_once('@').unwrap_or((rest, ""));
        if !is_digest(pin) {
            bail!(
                "{text:?} is not pinned: write file:PATH@sha256:HEX, with the 64 digits of `sha256sum PATH`"
            );
        }
        Ok(Source::File { path: path.into(), pin: pin.to_owned() })
    }
}

impl Source {
    /// Reads the plugin, `max` bytes at most, and checks it against its pin. `folder` is where relative paths begin.
    pub(crate) fn fetch(&self, folder: &Path, max: u64) -> anyhow::Result<Fetched> {
        match self {
            Source::Builtin(name) => {
                let found = BUILTIN.iter().find(|(builtin, _)| builtin == name);
                let bytes = found
                    .ok_or_else(|| anyhow!("there is no policy builtin:{name}; there are {}", names()))?
                    .1;
                Ok(Fetched { digest: digest(bytes), bytes: bytes.to_vec() })
            }
            Source::File { path, pin } => {
                let path = folder.join(path);
                let bytes = read(&path, max).with_context(|| format!("reading {}", path.display()))?;
                let digest = digest(&bytes);
                if digest != *pin {
                    bail!("{} is not what was pinned: it has the digest {digest}, not {pin}", path.display());
                }
                Ok(Fetched { bytes, digest })
            }
        }
    }
}

/// The source that means this file as it is now.
pub(crate) fn pinned(file: &Path, max: u64) -> anyhow::Result<String> {
    let file = std::path::absolute(file)?;
    let bytes = read(&file, max).with_context(|| format!("reading {}", file.display()))?;
    Ok(format!("file:{}@{}", file.display(), digest(&bytes)))
}

/// `sha256:<hex>`
pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

pub(crate) fn is_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or_default();
    hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn read(path: &Path, max: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        bail!("it has more than {max} bytes (policy.limits.plugin_size)");
    }
    Ok(bytes)
}

fn names() -> String {
    BUILTIN.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(source: &str, folder: &Path) -> String {
        let fetched = source.parse::<Source>().and_then(|source| source.fetch(folder, 1000));
        format!("{:#}", fetched.err().unwrap())
    }

    #[test]
    fn what_is_not_pinned_or_not_what_was_pinned_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.wasm"), b"plugin").unwrap();
        let (right, wrong) = (digest(b"plugin"), digest(b"another"));
        let source: Source = format!("file:a.wasm@{right}").parse().unwrap();
        assert_eq!(source.fetch(folder.path(), 1000).unwrap().bytes, b"plugin");
        assert!(format!("{:#}", source.fetch(folder.path(), 3).err().unwrap()).contains("more than 3 bytes"));
        let wrong = fails(&format!("file:a.wasm@{wrong}"), folder.path());
        assert!(wrong.contains("not what was pinned") && wrong.contains(&right), "{wrong}");
        for (source, expected) in [
            ("file:a.wasm", "is not pinned"),
            ("file:a.wasm@sha256:12", "is not pinned"),
            ("a.wasm", "is no source"),
            ("builtin:nothing", "there are encrypted-layers"),
            (&format!("file:absent.wasm@{right}"), "reading"),
        ] {
            let error = fails(source, folder.path());
            assert!(error.contains(expected), "{source}: {error}");
        }
    }
}
