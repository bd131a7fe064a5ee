//! What survives what.
//!
//! | happened | then |
//! |---|---|
//! | this process was killed | everything under `objects/` and every mark in `partial/` is good |
//! | the machine went down | what is younger than the last completed sync is hashed again |
//!
//! `synced` holds the boot that wrote it and when the last completed sync began. Another boot id
//! than the kernel's own means that the page cache is gone. Files are aged by ctime, which no
//! writer can set; [`CLOCK_SLACK`] covers clocks that were set back. `checking` says how far a check came that
//! was broken off, since it may take longer than a start is given.
//!
//! What cannot be read is dropped like what is wrong; what does not belong here is passed over; and where a disk is too full to
//! write down that all was checked, the next start checks again.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use image::Digest;
use lifecycle::private;

use super::{Objects, hashing};

/// How far a clock may have been set back without our noticing.
const CLOCK_SLACK: Duration = Duration::from_secs(600);

/// What opening the state folder found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The machine went down since the last sync.
    pub power_loss: bool,
    /// Objects that were hashed again.
    pub checked: u64,
    /// Of those, dropped.
    pub dropped: u64,
}

impl Objects {
    pub(super) fn open_in(root: &Path, boot: String) -> anyhow::Result<Objects> {
        make_folders(root)
            .with_context(|| format!("failed to prepare the state folder {}", root.display()))?;
        let mut objects = Objects {
            root: root.to_owned(),
            boot,
            recovered: Recovered::default(),
            sequence: Default::default(),
            used: Default::default(),
            unsynced: Default::default(),
            finishing: Default::default(),
            partials: Default::default(),
        };
        objects.recovered = objects
            .recover()
            .with_context(|| format!("failed to check the state folder {}", root.display()))?;
        Ok(objects)
    }

    /// Makes everything here survive a power loss, if anything changed. Blocks for as long as the
    /// disk needs.
    pub fn sync(&self) -> anyhow::Result<()> {
        let changes = self.unsynced.swap(0, Ordering::Relaxed);
        if changes == 0 {
            return Ok(());
        }
        let synced = self.sync_all();
        if synced.is_err() {
            self.unsynced.fetch_add(changes, Ordering::Relaxed);
        }
        synced.with_context(|| format!("failed to sync {}", self.root.display()))
    }

    fn sync_all(&self) -> io::Result<()> {
        // Before the sync: what arrives while it runs is not covered by it.
        let began = unix_now();
        rustix::fs::syncfs(File::open(&self.root)?)?;
        self.write_marker(began)
    }

    fn recover(&self) -> io::Result<Recovered> {
        clear(&self.root.join("incoming"))?;
        let marker = self.read_marker();
        if marker.as_ref().is_some_and(|(boot, _)| *boot == self.boot) {
            return Ok(Recovered::default());
        }
        let synced = marker.map_or(0, |(_, synced)| synced);
        let recovered = self.check_younger(synced.saturating_sub(CLOCK_SLACK.as_secs()))?;
        self.distrust_partials()?;
        if let Err(error) = self.sync_all() {
            tracing::error!(%error, "it cannot be written down that the local objects were checked");
        }
        fs::remove_file(self.checking()).ok();
        Ok(recovered)
    }

    /// Hashes all objects that changed at or after `since` and drops those that do not match.
    fn check_younger(&self, since: u64) -> io::Result<Recovered> {
        let mut recovered = Recovered { power_loss: true, ..Recovered::default() };
        for shard in self.checked_before()..=u8::MAX {
            let shard = format!("{shard:02x}");
            for entry in fs::read_dir(self.local_dir().join(&shard))? {
                let entry = entry?;
                let changed = entry.metadata().map(|found| u64::try_from(found.ctime()).unwrap_or(0));
                if changed.is_ok_and(|changed| changed < since) {
                    continue;
                }
                recovered.checked += 1;
                let good = is_good(&shard, &entry).unwrap_or_else(|error| {
                    tracing::error!(path = %entry.path().display(), %error, "dropping an object that cannot be read");
                    false
                });
                if !good {
                    // Of what has an object's name no process may see a byte; nothing else is ever looked for.
                    match remove(&entry) {
                        Err(error) if named(&shard, &entry).is_some() => return Err(error),
                        removed => passed_over(&entry, removed),
                    }
                    recovered.dropped += 1;
                }
            }
            // Without it more is checked again.
            fs::write(self.checking(), format!("{}\n{shard}", self.boot)).ok();
        }
        Ok(recovered)
    }

    fn checking(&self) -> PathBuf {
        self.root.join("checking")
    }

    /// The first shard that this run of the kernel has not checked yet.
    fn checked_before(&self) -> u8 {
        let text = fs::read_to_string(self.checking()).unwrap_or_default();
        let last = text.split_once('\n').filter(|(boot, _)| *boot == self.boot);
        let last = last.and_then(|(_, shard)| u8::from_str_radix(shard, 16).ok());
        last.map_or(0, |last| last.saturating_add(1))
    }

    fn distrust_partials(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.root.join("partial"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "have")
                && let Err(error) = fs::rename(&path, path.with_extension("unverified"))
            {
                tracing::warn!(path = %path.display(), %error, "dropping what is known of a partial object");
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// The boot that last synced, and when it began to, in seconds since 1970.
    fn read_marker(&self) -> Option<(String, u64)> {
        let text = match fs::read_to_string(self.root.join("synced")) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    tracing::warn!(%error, "it is not known what was synced: checking everything");
                }
                return None;
            }
        };
        let mut lines = text.lines();
        // A marker that does not parse vouches for nothing.
        lines
            .next()
            .zip(lines.next().and_then(|line| line.parse().ok()))
            .map(|(boot, at)| (boot.to_owned(), at))
    }

    fn write_marker(&self, synced: u64) -> io::Result<()> {
        let mut incoming = self.incoming()?;
        writeln!(incoming, "{}\n{synced}", self.boot)?;
        incoming.sync()?;
        incoming.rename(&self.root.join("synced"))?;
        File::open(&self.root)?.sync_all()
    }
}

/// Names one run of the kernel.
pub(super) fn boot_id() -> anyhow::Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(path).with_context(|| format!("failed to read {path}"))?;
    Ok(text.trim().to_owned())
}

fn make_folders(root: &Path) -> io::Result<()> {
    // overlayfs reads with the rights of whoever mounted, so nobody else needs to look in.
    for folder in ["objects", "incoming", "partial", "trees", "maps", "records", "grants"] {
        private::folder(&root.join(folder))?;
    }
    // All shards stand before any mount: overlayfs sees a lower layer that only gains files.
    for shard in 0..=255u8 {
        fs::create_dir_all(root.join("objects").join(format!("{shard:02x}")))?;
    }
    Ok(())
}

fn clear(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        passed_over(&entry, remove(&entry));
    }
    Ok(())
}

/// Whatever it is.
fn remove(entry: &fs::DirEntry) -> io::Result<()> {
    match entry.file_type()?.is_dir() {
        true => fs::remove_dir_all(entry.path()),
        false => fs::remove_file(entry.path()),
    }
}

fn passed_over(entry: &fs::DirEntry, removed: io::Result<()>) {
    if let Err(error) = removed {
        tracing::warn!(path = %entry.path().display(), %error, "what is of no use here cannot be removed");
    }
}

fn is_good(shard: &str, entry: &fs::DirEntry) -> io::Result<bool> {
    let Some(digest) = named(shard, entry) else { return Ok(false) };
    hashing::is_named(&entry.path(), &digest)
}

/// The object that a file of a shard would be.
fn named(shard: &str, entry: &fs::DirEntry) -> Option<Digest> {
    format!("{shard}{}", entry.file_name().to_str()?).parse().ok()
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
