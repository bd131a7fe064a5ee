//! Pulled plugins on the disk, so that a restart needs no registry.
//!
//! ```text
//! FOLDER/<hex of the manifest's digest>/manifest.json  plugin.wasm  signatures.json
//! ```
//!
//! Nothing here is believed: manifest and plugin are checked against the digests that led to them, signatures against
//! today's keys, each time. What is wrong is removed, and pulled again. Compiled code is never kept.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use registry::BlobDigest;
use registry::document::MANIFEST_MAX;

use super::artifact::Artifact;
use super::signature::{PAYLOAD_MAX, SIGNATURES_MAX, Signature};

/// Plugins kept: two sets of as many policies as there may be. Those used longest ago go first.
const KEPT_MAX: usize = 64;
/// All signatures of a plugin, in bytes: base64 and JSON take less than twice their size.
const SIGNATURES_SIZE_MAX: u64 = 2 * PAYLOAD_MAX * SIGNATURES_MAX as u64;
/// Of a place's name: SHA-256.
const HEX_LEN: usize = 64;
const MANIFEST: &str = "manifest.json";
const PLUGIN: &str = "plugin.wasm";
const SIGNATURES: &str = "signatures.json";

#[derive(Debug)]
pub(super) struct Kept {
    folder: PathBuf,
}

/// A plugin as it was pulled.
#[derive(Debug)]
pub(super) struct Pulled {
    pub(super) manifest: Bytes,
    pub(super) plugin: Bytes,
    /// Those that were asked for: none when nobody's signature was wanted.
    pub(super) signatures: Vec<Signature>,
}

impl Kept {
    pub(super) fn new(folder: PathBuf) -> Kept {
        Kept { folder }
    }

    /// The plugin of this manifest, checked; `max` bytes at most.
    pub(super) fn find(&self, manifest: BlobDigest, max: u64) -> Option<Pulled> {
        let place = self.place(manifest);
        match read_all(&place, manifest, max) {
            Ok(pulled) => {
                // Used just now. Where this fails the plugin only goes earlier.
                let _ = File::open(&place).and_then(|folder| folder.set_modified(SystemTime::now()));
                Some(pulled)
            }
            Err(error) if is_absent(&error) && !place.exists() => None,
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(place = %place.display(), error, "a kept plugin is not what it was: pulling it again");
                self.forget(manifest);
                None
            }
        }
    }

    pub(super) fn forget(&self, manifest: BlobDigest) {
        let place = self.place(manifest);
        if let Err(error) = fs::remove_dir_all(&place)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(place = %place.display(), %error, "a kept plugin cannot be removed");
        }
    }

    /// Keeps a plugin that was checked. A disk that does not take it is no reason not to use the plugin.
    pub(super) fn keep(&self, manifest: BlobDigest, pulled: &Pulled) {
        if let Err(error) = self.write(manifest, pulled) {
            let (folder, error) = (self.folder.display(), format!("{error:#}"));
            tracing::warn!(%folder, error, "a pulled plugin cannot be kept: the next start needs the registry");
        }
    }

    fn write(&self, manifest: BlobDigest, pulled: &Pulled) -> anyhow::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        self.make_room()?;
        let draft = self.folder.join(format!(".{}-{}", manifest.hex(), std::process::id()));
        let _ = fs::remove_dir_all(&draft);
        DirBuilder::new().mode(0o700).create(&draft)?;
        let signatures = serde_json::to_vec(&pulled.signatures)?;
        for (name, bytes) in
            [(MANIFEST, &pulled.manifest[..]), (PLUGIN, &pulled.plugin[..]), (SIGNATURES, &signatures[..])]
        {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft.join(name))?;
            file.write_all(bytes)?;
        }
        self.forget(manifest);
        let moved = fs::rename(&draft, self.place(manifest));
        if moved.is_err() {
            // Another process was faster.
            let _ = fs::remove_dir_all(&draft);
        }
        Ok(())
    }

    /// Removes those used longest ago, and what a killed process left; nothing that is not ours.
    fn make_room(&self) -> io::Result<()> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if is_ours(&entry.file_name()) && entry.file_type()?.is_dir() {
                kept.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        kept.sort();
        let surplus = (kept.len() + 1).saturating_sub(KEPT_MAX);
        for (_, path) in kept.into_iter().take(surplus) {
            fs::remove_dir_all(path)?;
        }
        Ok(())
    }

    fn place(&self, manifest: BlobDigest) -> PathBuf {
        self.folder.join(manifest.hex())
    }
}

/// A plugin's place, or a draft of one: `.<hex>-<process>`.
fn is_ours(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    let hex = match name.strip_prefix('.').and_then(|rest| rest.rsplit_once('-')) {
        Some((hex, process)) if process.parse::<u32>().is_ok() => hex,
        _ => name,
    };
    hex.len() == HEX_LEN && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn read_all(place: &Path, digest: BlobDigest, max: u64) -> anyhow::Result<Pulled> {
    let manifest = read(&place.join(MANIFEST), MANIFEST_MAX)?;
    ensure!(BlobDigest::of(&manifest) == digest, "{MANIFEST} is another one");
    let component = Artifact::read(&manifest)?.component;
    let plugin = read(&place.join(PLUGIN), max)?;
    if let Err(reason) = component.check(&plugin) {
        bail!("{PLUGIN}: {reason}");
    }
    let signatures = read(&place.join(SIGNATURES), SIGNATURES_SIZE_MAX)?;
    let signatures = serde_json::from_slice(&signatures).with_context(|| format!("reading {SIGNATURES}"))?;
    Ok(Pulled { manifest, plugin, signatures })
}

fn read(path: &Path, max: u64) -> anyhow::Result<Bytes> {
    let reading = || format!("reading {}", path.display());
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(reading)?;
    file.take(max.saturating_add(1)).read_to_end(&mut bytes).with_context(reading)?;
    ensure!(bytes.len() as u64 <= max, "{}: it has more than {max} bytes", reading());
    Ok(bytes.into())
}

fn is_absent(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::super::artifact::pack;
    use super::*;
    use crate::Outline;

    const MAX: u64 = 1_000;

    fn pulled(plugin: &'static str) -> (BlobDigest, Pulled) {
        let manifest = pack(plugin.as_bytes(), "a.wasm", &Outline::default()).manifest;
        let signatures = vec![Signature { payload: b"payload".to_vec(), signature: b"signature".to_vec() }];
        (BlobDigest::of(&manifest), Pulled { manifest, plugin: plugin.into(), signatures })
    }

    #[test]
    fn what_was_kept_is_found_until_somebody_changes_it() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::new(folder.path().join("plugins"));
        let (digest, plugin) = pulled("plugin");
        assert!(kept.find(digest, MAX).is_none());
        for name in [MANIFEST, PLUGIN, SIGNATURES] {
            kept.keep(digest, &plugin);
            let found = kept.find(digest, MAX).unwrap();
            assert_eq!((found.plugin, found.signatures.len()), (plugin.plugin.clone(), 1));
            fs::write(kept.place(digest).join(name), b"changed").unwrap();
            assert!(kept.find(digest, MAX).is_none(), "{name}");
            assert!(!kept.place(digest).exists(), "{name} stays");
        }
        kept.keep(digest, &plugin);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&kept.folder), mode(&kept.place(digest).join(PLUGIN))), (0o700, 0o600));
        assert!(kept.find(digest, 3).is_none(), "the limit was lowered");
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::new(folder.path().to_owned());
        let (used, plugin) = pulled("used");
        kept.keep(used, &plugin);
        let (unused, plugin) = pulled("unused");
        kept.keep(unused, &plugin);
        let long_ago = SystemTime::now() - Duration::from_secs(60);
        for digest in [used, unused] {
            File::open(kept.place(digest)).unwrap().set_modified(long_ago).unwrap();
        }
        assert!(kept.find(used, MAX).is_some());
        for number in 0..KEPT_MAX - 2 {
            fs::create_dir(folder.path().join(format!("{number:064x}"))).unwrap();
        }
        let (new, plugin) = pulled("new");
        kept.keep(new, &plugin);
        let there = [used, unused, new].map(|digest| kept.place(digest).exists());
        assert_eq!(there, [true, false, true]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), KEPT_MAX);
    }

    #[test]
    fn nothing_is_removed_that_is_somebody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::new(folder.path().to_owned());
        let hex = "a".repeat(HEX_LEN);
        let others = ["notes".to_owned(), format!("{hex}0"), format!(".{hex}-mine"), hex.to_uppercase()];
        for name in &others {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("b".repeat(HEX_LEN)), b"a file").unwrap();
        let draft = folder.path().join(format!(".{hex}-4711"));
        fs::create_dir(&draft).unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(60);
        for entry in fs::read_dir(folder.path()).unwrap() {
            File::open(entry.unwrap().path()).unwrap().set_modified(long_ago).unwrap();
        }
        for number in 0..KEPT_MAX - 1 {
            fs::create_dir(folder.path().join(format!("{number:064x}"))).unwrap();
        }
        let (new, plugin) = pulled("new");
        kept.keep(new, &plugin);
        assert!(kept.place(new).exists() && !draft.exists(), "what a killed process left goes first");
        for name in others {
            assert!(folder.path().join(&name).exists(), "{name}");
        }
        assert!(folder.path().join("b".repeat(HEX_LEN)).exists());
    }

    #[test]
    fn a_folder_that_cannot_be_written_hinders_nobody() {
        let kept = Kept::new(PathBuf::from("/proc/nonexistent"));
        let (digest, plugin) = pulled("plugin");
        kept.keep(digest, &plugin);
        assert!(kept.find(digest, MAX).is_none());
    }
}
