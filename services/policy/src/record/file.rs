//! The file that decisions are written to.
//!
//! Processes of one machine may share a file. Each line is one write; a file that is full becomes `FILE.1`, in the place of the
//! one before, so that both together stay within the configured size.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, ensure};
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::Entry;
use crate::meters;

/// Both files together: a few thousand decisions at least.
const SIZE_DEFAULT: ByteSize = ByteSize::mib(64);
/// Room for one decision about the largest image, in each of the two files.
const SIZE_MIN: ByteSize = ByteSize::mib(4);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordConfig {
    pub file: PathBuf,
    /// The most that the file and the one before it take together.
    #[serde(default = "size_default")]
    pub size: ByteSize,
}

fn size_default() -> ByteSize {
    SIZE_DEFAULT
}

/// Writes decisions down in a file.
#[derive(Debug)]
pub(super) struct Recorder {
    config: RecordConfig,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// The last write failed, and that was said.
    failing: bool,
}

impl Recorder {
    pub(super) fn new(config: RecordConfig) -> anyhow::Result<Recorder> {
        ensure!(
            config.size >= SIZE_MIN,
            "policy.record.size is {}, at least {SIZE_MIN} are needed",
            config.size
        );
        let opening = || format!("opening policy.record.file {}", config.file.display());
        let file = open(&config).with_context(opening)?;
        Ok(Recorder { open: Mutex::new(Open { file, failing: false }), config })
    }

    /// A decision stands, whether or not it can be written down.
    pub(super) fn note(&self, entry: &Entry) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match self.write(&mut open.file, entry) {
            Ok(()) => open.failing = false,
            Err(error) => {
                meters::unrecorded();
                if !std::mem::replace(&mut open.failing, true) {
                    let (file, error) = (self.config.file.display(), format!("{error:#}"));
                    tracing::warn!(%file, error, "decisions cannot be written down");
                }
            }
        }
    }

    fn write(&self, file: &mut File, entry: &Entry) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        let (length, most) = (line.len() as u64, self.config.size.as_u64() / 2);
        ensure!(length <= most, "one decision has {length} bytes, more than half of policy.record.size");
        // Somebody else may have moved it, or deleted it.
        if !self.is_current(file) {
            *file = open(&self.config)?;
        }
        if file.metadata()?.len().saturating_add(length) > most {
            *file = self.rotate(file)?;
        }
        Ok(file.write_all(&line)?)
    }

    /// Puts the full file aside. Who else is just doing that has the lock: then this line goes where it would have gone.
    fn rotate(&self, full: &File) -> io::Result<File> {
        match full.try_lock() {
            Ok(()) if self.is_current(full) => {
                let mut aside = self.config.file.clone().into_os_string();
                aside.push(".1");
                fs::rename(&self.config.file, aside)?;
                open(&self.config)
            }
            Ok(()) => open(&self.config),
            Err(TryLockError::WouldBlock) => full.try_clone(),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn is_current(&self, file: &File) -> bool {
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let (ours, there) = (file.metadata().map(identity), fs::metadata(&self.config.file).map(identity));
        matches!((ours, there), (Ok(ours), Ok(there)) if ours == there)
    }
}

/// For its owner alone: what runs where is nobody else's business.
fn open(config: &RecordConfig) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(&config.file)
}

#[cfg(test)]
mod tests {
    use proto::{Decision, Facts, JudgeReply, Verdict};

    use super::super::Judgement;
    use super::*;

    fn entry(number: usize) -> Entry {
        let image = proto::ImageFacts { reference: format!("app:{number}"), ..proto::ImageFacts::default() };
        let facts = Facts { image: Some(image), ..Facts::default() };
        let verdict = Verdict {
            policy: "mine".to_owned(),
            decision: Decision::Refuse.into(),
            reason: "x".repeat(10_000),
            ..Verdict::default()
        };
        let reply = JudgeReply { decision: Decision::Refuse.into(), verdicts: vec![verdict], generation: 3 };
        Entry::Judged { facts, said: Judgement::from(&reply) }
    }

    fn read(file: &std::path::Path) -> Vec<Entry> {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn several_who_write_share_a_file_within_its_size_and_lose_no_recent_line() {
        let folder = tempfile::tempdir().unwrap();
        let config = RecordConfig { file: folder.path().join("decisions"), size: SIZE_MIN };
        let recorders = [(); 3].map(|()| Recorder::new(config.clone()).unwrap());
        const LINES: usize = 1_000;
        for number in 0..LINES {
            recorders[number % 3].note(&entry(number));
        }
        let aside = folder.path().join("decisions.1");
        let mut kept = read(&aside);
        kept.extend(read(&config.file));
        let last: Vec<Entry> = (LINES - kept.len()..LINES).map(entry).collect();
        assert_eq!(kept, last, "the newest are there, in order");
        let size = |file| fs::metadata(file).unwrap().len();
        let (older, newer) = (size(&aside), size(&config.file));
        assert!(older + newer <= SIZE_MIN.as_u64(), "{older} + {newer}");
        assert!(older > SIZE_MIN.as_u64() / 2 - 20_000, "only a full file is put aside: {older}");
        assert_eq!(fs::metadata(&config.file).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_somebody_deleted_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let config = RecordConfig { file: folder.path().join("decisions"), size: SIZE_MIN };
        let recorder = Recorder::new(config.clone()).unwrap();
        recorder.note(&entry(1));
        fs::remove_file(&config.file).unwrap();
        recorder.note(&entry(2));
        assert_eq!(read(&config.file), [entry(2)]);
    }

    #[test]
    fn what_cannot_be_written_down_is_counted_and_hurts_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let config = RecordConfig { file: folder.path().join("decisions"), size: SIZE_MIN };
        let recorder = Recorder::new(config.clone()).unwrap();
        fs::remove_dir_all(folder.path()).unwrap();
        recorder.note(&entry(1));
        fs::create_dir(folder.path()).unwrap();
        recorder.note(&entry(2));
        assert_eq!(read(&config.file), [entry(2)]);
        let small = RecordConfig { size: ByteSize::kib(1), ..config };
        assert!(format!("{:#}", Recorder::new(small).unwrap_err()).contains("at least 4.0 MiB"));
    }
}
