//! Which manifest a name meant when it was last resolved, so that an image can be mounted again while
//! the mesh is away.
//!
//! `<state>/names/<BLAKE3 of project, reference, platform>` holds the manifest's digest. Written beside and
//! renamed. Blocks on the disk: only small files, read once per mount.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use image::Digest;
use lifecycle::private;
use names::{ManifestDigest, Project};
use proto::ResolveRequest;

#[derive(Debug)]
pub(super) struct Names {
    folder: PathBuf,
}

impl Names {
    pub(super) fn open(state: &Path) -> io::Result<Names> {
        let folder = state.join("names");
        private::folder(&folder)?;
        Ok(Names { folder })
    }

    /// The manifest digest that this name meant last.
    pub(super) fn recall(&self, request: &ResolveRequest) -> io::Result<Option<ManifestDigest>> {
        match fs::read_to_string(self.path(request)) {
            Ok(text) => Ok(text.parse().ok()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn keep(&self, request: &ResolveRequest, manifest: &str) -> io::Result<()> {
        let path = self.path(request);
        if fs::read_to_string(&path).is_ok_and(|kept| kept == manifest) {
            // When it was used last is all that is new. A disk that cannot take that either loses an order of evictions.
            let touched =
                File::options().write(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
            return touched.or(Ok(()));
        }
        let beside = path.with_extension("new");
        fs::write(&beside, manifest).and_then(|()| fs::rename(&beside, &path)).inspect_err(|_| {
            // What was written of it would take an inode that others need.
            fs::remove_file(&beside).ok();
        })
    }

    /// When a name of the manifest was last resolved to it.
    pub(super) fn last_used(&self, manifest: &str) -> Option<SystemTime> {
        let kept = self.of(manifest).ok()?;
        kept.iter().filter_map(|path| fs::metadata(path).ok()?.modified().ok()).max()
    }

    /// Forgets every name of a manifest.
    pub(super) fn forget(&self, manifest: &str) -> io::Result<()> {
        self.of(manifest)?.iter().try_for_each(fs::remove_file)
    }

    fn of(&self, manifest: &str) -> io::Result<Vec<PathBuf>> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if fs::read_to_string(&path).is_ok_and(|text| text == manifest) {
                kept.push(path);
            }
        }
        Ok(kept)
    }

    fn path(&self, request: &ResolveRequest) -> PathBuf {
        let platform = request.platform.clone().unwrap_or_default();
        let project = Project::named(&request.project);
        let layers = if request.layers == 0 { String::new() } else { request.layers.to_string() };
        let parts = [
            project.as_ref().map_or(&*request.project, Project::as_str),
            &request.reference,
            &platform.os,
            &platform.architecture,
            &platform.variant,
            &layers,
        ];
        // A zero byte stands in none of them: no two names run into one.
        self.folder.join(Digest::of(parts.join("\0").as_bytes()).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_the_last_meaning_of_each_name() {
        let folder = tempfile::tempdir().unwrap();
        let names = Names::open(folder.path()).unwrap();
        let request = |project: &str, reference: &str| ResolveRequest {
            project: project.to_owned(),
            reference: reference.to_owned(),
            ..ResolveRequest::default()
        };
        let manifest = |digit: &str| format!("sha256:{}", digit.repeat(64));
        assert_eq!(names.recall(&request("", "a")).unwrap(), None);
        names.keep(&request("", "a"), &manifest("1")).unwrap();
        names.keep(&request("", "a"), &manifest("2")).unwrap();
        names.keep(&request("", "b"), &manifest("2")).unwrap();
        assert_eq!(names.recall(&request("default", "a")).unwrap(), manifest("2").parse().ok());
        assert_eq!(names.recall(&request("other", "a")).unwrap(), None);
        names.forget(&manifest("2")).unwrap();
        assert_eq!(names.recall(&request("", "b")).unwrap(), None);
    }

    #[test]
    fn a_broken_file_is_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let names = Names::open(folder.path()).unwrap();
        names.keep(&ResolveRequest::default(), "../../etc/passwd").unwrap();
        assert_eq!(names.recall(&ResolveRequest::default()).unwrap(), None);
    }
}
