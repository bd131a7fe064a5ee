//! A file of JSON lines that is kept within a bound, and in which no event stands twice.
//!
//! ```text
//! PATH --> PATH.1 --> PATH.2 --> (gone)        three files
//! ```
//!
//! When it is opened its end is read: a line that was cut off when a process or the machine died is taken away, and what stands
//! there is not written again. A batch is acknowledged once it is on the disk, so what may come again is at most one batch.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Nobody else's: events name images, and who asked for them.
const MODE: u32 = 0o600;
/// Of folders that are made for it.
const FOLDER_MODE: u32 = 0o700;
/// How much of the end of a file is read for the ids in it: a batch of the longest events and more.
const TAIL: u64 = 8 * 1024 * 1024;
/// Ids that are remembered while the file is open. More are not in one batch, nor in several.
const IDS_MAX: usize = 65_536;

#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    /// In bytes.
    pub(super) size: u64,
    pub(super) files: u32,
}

#[derive(Debug)]
pub(super) struct Line {
    pub(super) id: String,
    /// With its end.
    pub(super) text: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Lines {
    place: Place,
    file: File,
    /// A pipe or a device is neither read nor renamed.
    regular: bool,
    len: u64,
    ids: HashSet<String>,
}

#[derive(Deserialize)]
struct Id {
    id: String,
}

impl Lines {
    pub(super) fn open(place: Place) -> io::Result<Lines> {
        let mut ids = HashSet::new();
        if let Some(folder) = place.path.parent() {
            fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
        }
        let mut file = create(&place.path)?;
        let regular = file.metadata()?.is_file();
        let mut len = 0;
        if regular {
            if let Ok(mut before) = File::open(numbered(&place.path, 1)) {
                read_ids(&tail(&mut before)?, &mut ids);
            }
            let end = tail(&mut file)?;
            let whole = end.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
            len = file.metadata()?.len();
            let torn = (end.len() - whole) as u64;
            if torn > 0 {
                tracing::warn!(path = %place.path.display(), bytes = torn, "a line was cut off: it is taken away");
                len -= torn;
                file.set_len(len)?;
            }
            read_ids(&end[..whole], &mut ids);
        }
        Ok(Lines { place, file, regular, len, ids })
    }

    /// Returns when all lines are on the disk, each once.
    pub(super) fn append(&mut self, lines: &[Line]) -> io::Result<()> {
        if self.ids.len() + lines.len() > IDS_MAX {
            self.ids.clear();
        }
        for line in lines {
            if self.ids.contains(&line.id) {
                continue;
            }
            self.make_room(line.text.len() as u64)?;
            self.file.write_all(&line.text)?;
            self.len += line.text.len() as u64;
            self.ids.insert(line.id.clone());
        }
        if self.regular {
            self.file.sync_data()?;
        }
        Ok(())
    }

    fn make_room(&mut self, len: u64) -> io::Result<()> {
        if !self.regular || self.len == 0 || self.len + len <= self.place.size {
            return Ok(());
        }
        self.file.sync_data()?;
        let path = &self.place.path;
        unless_absent(fs::remove_file(numbered(path, self.place.files - 1)))?;
        for number in (1..self.place.files).rev() {
            unless_absent(fs::rename(numbered(path, number - 1), numbered(path, number)))?;
        }
        self.file = create(path)?;
        self.len = 0;
        Ok(())
    }
}

fn create(path: &Path) -> io::Result<File> {
    match File::options().read(true).append(true).create(true).mode(MODE).open(path) {
        // A device that cannot be read.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => File::options().append(true).open(path),
        opened => opened,
    }
}

fn tail(file: &mut File) -> io::Result<Vec<u8>> {
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL)))?;
    let mut end = Vec::new();
    file.take(TAIL).read_to_end(&mut end)?;
    Ok(end)
}

fn read_ids(text: &[u8], ids: &mut HashSet<String>) {
    let lines = text.split(|byte| *byte == b'\n');
    // The first line may be the rest of one.
    ids.extend(lines.filter_map(|line| serde_json::from_slice::<Id>(line).ok()).map(|line| line.id));
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    match number {
        0 => path.to_owned(),
        number => path.with_added_extension(number.to_string()),
    }
}

fn unless_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(folder: &tempfile::TempDir, size: u64, files: u32) -> Place {
        Place { path: folder.path().join("events.json"), size, files }
    }

    fn line(id: &str) -> Line {
        Line { id: id.to_owned(), text: format!("{{\"id\":\"{id}\"}}\n").into_bytes() }
    }

    fn lines(ids: &[&str]) -> Vec<Line> {
        ids.iter().map(|id| line(id)).collect()
    }

    #[test]
    fn what_is_there_is_not_written_again_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut place = place(&folder, 1 << 20, 3);
        // Nobody has made its folder.
        place.path = folder.path().join("sub/folder/events.json");
        let mut file = Lines::open(place.clone()).unwrap();
        file.append(&lines(&["a", "b", "a"])).unwrap();
        drop(file);
        Lines::open(place.clone()).unwrap().append(&lines(&["b", "c"])).unwrap();
        let text = fs::read_to_string(&place.path).unwrap();
        assert_eq!(text, "{\"id\":\"a\"}\n{\"id\":\"b\"}\n{\"id\":\"c\"}\n");
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&place.path).unwrap().permissions().mode() & 0o777, MODE);
    }

    #[test]
    fn a_line_that_was_cut_off_is_written_whole() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(&folder, 1 << 20, 3);
        fs::write(&place.path, "{\"id\":\"a\"}\n{\"id\":\"b\"").unwrap();
        Lines::open(place.clone()).unwrap().append(&lines(&["a", "b"])).unwrap();
        assert_eq!(fs::read_to_string(&place.path).unwrap(), "{\"id\":\"a\"}\n{\"id\":\"b\"}\n");
    }

    #[test]
    fn so_many_files_of_such_a_size_are_kept_and_none_has_an_event_of_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(&folder, 25, 3);
        let mut file = Lines::open(place.clone()).unwrap();
        file.append(&lines(&["1", "2", "3", "4", "5"])).unwrap();
        drop(file);
        // "4" stands in the file before.
        Lines::open(place.clone()).unwrap().append(&lines(&["4", "5", "6", "7"])).unwrap();
        let text = |number| fs::read_to_string(numbered(&place.path, number)).unwrap();
        let of = |ids: &[&str]| ids.iter().map(|id| format!("{{\"id\":\"{id}\"}}\n")).collect::<String>();
        assert_eq!([text(0), text(1), text(2)], [of(&["7"]), of(&["5", "6"]), of(&["3", "4"])]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_device_is_written_to_and_nothing_else() {
        let place = Place { path: "/dev/null".into(), size: 1, files: 2 };
        let mut file = Lines::open(place).unwrap();
        file.append(&lines(&["a"])).unwrap();
        file.append(&lines(&["b"])).unwrap();
        assert!(!Path::new("/dev/null.1").exists());
        let full = Place { path: "/dev/full".into(), size: 1, files: 2 };
        assert!(Lines::open(full).unwrap().append(&lines(&["a"])).is_err());
    }
}
