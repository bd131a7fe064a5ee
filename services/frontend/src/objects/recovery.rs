//! What survives what.
//!
//! | happened | then |
//! |---|---|
//! | this process was killed | everything under `objects/` and every mark in `partial/` is good |
//! | the machine went down | what is younger than the last completed sync is hashed again |
//!
//! `synced` holds the boot that wrote it and when the last completed sync began. Another boot id
//! than the kernel's own means that the page cache is gone. Files are aged by ctime, which no
//! writer can set; [`CLOCK_SLACK`] covers clocks that were set back.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;

use super::partial::hash_file;
use super::{Objects, note_held};

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
        let marker = self.read_marker()?;
        if marker.as_ref().is_some_and(|(boot, _)| *boot == self.boot) {
            return Ok(Recovered::default());
        }
        let synced = marker.map_or(0, |(_, synced)| synced);
        let recovered = self.check_younger(synced.saturating_sub(CLOCK_SLACK.as_secs()))?;
        self.distrust_partials()?;
        self.sync_all()?;
        Ok(recovered)
    }

    /// Hashes all objects that changed at or after `since` and drops those that do not match.
    fn check_younger(&self, since: u64) -> io::Result<Recovered> {
        let mut recovered = Recovered { power_loss: true, ..Recovered::default() };
        for shard in fs::read_dir(self.local_dir())? {
            let shard = shard?;
            for entry in fs::read_dir(shard.path())? {
                let entry = entry?;
                if u64::try_from(entry.metadata()?.ctime()).unwrap_or(0) < since {
                    continue;
                }
                recovered.checked += 1;
                if !is_good(&shard, &entry)? {
                    fs::remove_file(entry.path())?;
                    recovered.dropped += 1;
                }
            }
        }
        Ok(recovered)
    }

    fn distrust_partials(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.root.join("partial"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "have") {
                fs::rename(&path, path.with_extension("unverified"))?;
            }
        }
        Ok(())
    }

    /// The boot that last synced, and when it began to, in seconds since 1970.
    fn read_marker(&self) -> io::Result<Option<(String, u64)>> {
        let text = match fs::read_to_string(self.root.join("synced")) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let mut lines = text.lines();
        // A marker that does not parse vouches for nothing.
        Ok(lines
            .next()
            .zip(lines.next().and_then(|line| line.parse().ok()))
            .map(|(boot, at)| (boot.to_owned(), at)))
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
    for folder in ["objects", "incoming", "partial", "trees", "maps", "records"] {
        fs::create_dir_all(root.join(folder))?;
    }
    // Whoever has a grant may read the image's content.
    DirBuilder::new().recursive(true).mode(0o700).create(root.join("grants"))?;
    // All shards stand before any mount: overlayfs sees a lower layer that only gains files.
    for shard in 0..=255u8 {
        fs::create_dir_all(root.join("objects").join(format!("{shard:02x}")))?;
    }
    Ok(())
}

fn clear(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}

fn is_good(shard: &fs::DirEntry, entry: &fs::DirEntry) -> io::Result<bool> {
    let mut named = Vec::new();
    let hex = [shard.file_name(), entry.file_name()].map(|part| part.to_string_lossy().into_owned());
    note_held(&mut named, &hex.concat(), entry, false)?;
    let Some(held) = named.first() else { return Ok(false) };
    Ok(hash_file(&entry.path())?.0 == held.digest)
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
