//! Standard error as a file that is kept within a bound: it is renamed when it is large enough, and a new one begun.
//!
//! ```text
//! LOG --> LOG.1 --> LOG.2 --> (gone)        three files
//! ```
//!
//! The new file takes the place of standard output and standard error, so that nothing of what the process writes misses it.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Nobody else's: logs name images, and who asked for them.
const MODE: u32 = 0o600;

#[derive(Debug)]
pub(super) struct Rotation {
    file: PathBuf,
    size: u64,
    files: u32,
    /// The one that is written, under whichever name.
    current: File,
}

impl Rotation {
    /// Standard error and output go to `file` from here on.
    pub(super) fn begin(file: &Path, size: u64, files: u32) -> io::Result<Rotation> {
        let current = File::options().append(true).create(true).mode(MODE).open(file)?;
        let rotation = Rotation { file: file.to_owned(), size, files, current };
        redirect(&rotation.current)?;
        Ok(rotation)
    }

    /// An error: there is no room within the bound, as no new file can be begun.
    pub(super) fn make_room(&mut self, len: u64) -> io::Result<()> {
        // Others write to it as well: what a library prints, a message of the runtime.
        let used = self.current.metadata()?.len();
        if used == 0 || used + len <= self.size {
            return Ok(());
        }
        self.turn()?;
        redirect(&self.current)
    }

    fn turn(&mut self) -> io::Result<()> {
        // First, as a disk without room may have room then.
        unless_absent(fs::remove_file(self.numbered(self.files.max(1) - 1)))?;
        let new = self.file.with_added_extension("new");
        let next = File::options().append(true).create(true).mode(MODE).open(&new)?;
        next.set_len(0)?;
        for number in (1..self.files).rev() {
            unless_absent(fs::rename(self.numbered(number - 1), self.numbered(number)))?;
        }
        fs::rename(&new, &self.file)?;
        self.current = next;
        Ok(())
    }

    fn numbered(&self, number: u32) -> PathBuf {
        match number {
            0 => self.file.clone(),
            number => self.file.with_added_extension(number.to_string()),
        }
    }
}

fn redirect(file: &File) -> io::Result<()> {
    rustix::stdio::dup2_stdout(file)?;
    rustix::stdio::dup2_stderr(file)?;
    Ok(())
}

fn unless_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// As [`Rotation::begin`], without this process's own output.
    fn rotation(file: &Path, size: u64, files: u32) -> Rotation {
        let current = File::options().append(true).create(true).open(file).unwrap();
        Rotation { file: file.to_owned(), size, files, current }
    }

    fn write(rotation: &mut Rotation, line: &str) {
        let used = rotation.current.metadata().unwrap().len();
        if used > 0 && used + line.len() as u64 > rotation.size {
            rotation.turn().unwrap();
        }
        rotation.current.write_all(line.as_bytes()).unwrap();
    }

    #[test]
    fn keeps_so_many_files_of_such_a_size() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log");
        let mut log = rotation(&file, 10, 3);
        for number in 0..10 {
            write(&mut log, &format!("{number:04}\n"));
        }
        let text = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(
            [text("log"), text("log.1"), text("log.2")],
            ["0008\n0009\n", "0006\n0007\n", "0004\n0005\n"]
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn one_file_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log");
        let mut log = rotation(&file, 10, 1);
        for number in 0..5 {
            write(&mut log, &format!("{number:04}\n"));
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "0004\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
