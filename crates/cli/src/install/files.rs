//! Reads and writes whole small files, so that a crash leaves the old one or the new one.

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

/// No configuration is longer.
const LENGTH_MAX: u64 = 16 * 1024 * 1024;
/// Of a file that is new.
const MODE: u32 = 0o644;

/// Where a path of the node stands on this machine: below `root`.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    pub fn new(root: &Path) -> anyhow::Result<Root> {
        Ok(Root(std::path::absolute(root).with_context(|| format!("find {}", root.display()))?))
    }

    /// Whether it is this machine itself.
    pub fn is_machine(&self) -> bool {
        self.0 == Path::new("/")
    }

    pub fn path(&self, path: &Path) -> PathBuf {
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The same path as the node sees it.
    pub fn within(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.0).map_or_else(|_| path.to_owned(), |rest| Path::new("/").join(rest))
    }

    /// Files of the node whose paths are as the pattern says, in order.
    pub fn matching(&self, pattern: &str) -> anyhow::Result<Vec<PathBuf>> {
        let below = glob::Pattern::escape(&self.path(Path::new("/")).to_string_lossy());
        let pattern = format!("{}/{}", below.trim_end_matches('/'), pattern.trim_start_matches('/'));
        let found = glob::glob(&pattern).with_context(|| format!("look for {pattern}"))?;
        let mut paths = Vec::new();
        for path in found {
            paths.push(self.within(&path.with_context(|| format!("look for {pattern}"))?));
        }
        Ok(paths)
    }

    /// The file's text; none: there is no such file.
    pub fn read(&self, path: &Path) -> anyhow::Result<Option<String>> {
        read(&self.path(path))
    }

    /// Puts `text` in the file's place, with its owner and mode, or takes the file away.
    pub fn write(&self, path: &Path, text: Option<&str>) -> anyhow::Result<()> {
        let target = self.target(path)?;
        match text {
            Some(text) => replace(&target, text, MODE).with_context(|| format!("write {}", target.display())),
            None => remove(&target).with_context(|| format!("remove {}", target.display())),
        }
    }

    /// A link is followed: what it points to is what its owner edits.
    fn target(&self, path: &Path) -> anyhow::Result<PathBuf> {
        let path = self.path(path);
        let is_link = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_symlink());
        if !is_link {
            return Ok(path);
        }
        if !self.is_machine() {
            bail!("{} is a link, which may lead out of {}", path.display(), self.0.display());
        }
        fs::canonicalize(&path).with_context(|| format!("follow the link {}", path.display()))
    }
}

pub fn read(path: &Path) -> anyhow::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
    };
    let mut text = String::new();
    file.take(LENGTH_MAX + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("read {}", path.display()))?;
    ensure!(text.len() as u64 <= LENGTH_MAX, "{} is longer than {LENGTH_MAX} bytes", path.display());
    Ok(Some(text))
}

/// Written beside it and renamed. The name beside is always the same, so that a crash leaves one such file at most,
/// which the next run takes.
pub fn replace(target: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let (folder, name) = (target.parent().context("no folder")?, target.file_name().context("no name")?);
    fs::create_dir_all(folder)?;
    let beside = folder.join(format!(".{}.sluice-new", name.to_string_lossy()));
    remove(&beside)?;
    let mut file = File::options().write(true).create_new(true).mode(mode).open(&beside)?;
    match fs::metadata(target) {
        Ok(old) => {
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
            file.set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
        }
        // Whatever the umask says.
        Err(_) => file.set_permissions(Permissions::from_mode(mode))?,
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, target)?;
    File::open(folder)?.sync_all()?;
    Ok(())
}

pub fn remove(target: &Path) -> anyhow::Result<()> {
    match fs::remove_file(target) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    if let Some(folder) = target.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_its_mode_and_a_link_stays_one() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("a/file"), folder.path().join("link"));
        let machine = Root::new(Path::new("/")).unwrap();
        machine.write(&file, Some("one")).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        machine.write(&link, Some("two")).unwrap();
        assert_eq!(machine.read(&file).unwrap().as_deref(), Some("two"));
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "something stays beside it");
        machine.write(&file, None).unwrap();
        machine.write(&file, None).unwrap();
        assert_eq!(machine.read(&file).unwrap(), None);
    }

    #[test]
    fn below_another_root_nothing_leads_out_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path()).unwrap();
        root.write(Path::new("/etc/x/y.toml"), Some("text")).unwrap();
        let path = folder.path().join("etc/x/y.toml");
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
        assert_eq!(root.within(&path), Path::new("/etc/x/y.toml"));
        assert_eq!(root.matching("/etc/*/*.toml").unwrap(), [Path::new("/etc/x/y.toml")]);
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("etc/x/z.toml")).unwrap();
        assert!(root.write(Path::new("/etc/x/z.toml"), Some("text")).is_err());
    }

    #[test]
    fn what_is_no_text_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"a = \"\xff\"").unwrap();
        let error = format!("{:#}", read(&file).unwrap_err());
        assert!(error.contains("UTF-8"), "{error}");
    }
}
