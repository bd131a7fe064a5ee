//! How people name images.
//!
//! `REFERENCE` (a registry's), `oci:DIR[:TAG]` (a layout folder) or `docker-archive:FILE`
//! (what `docker save` wrote). Short names mean Docker Hub, as everywhere.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::Reference;

const LAYOUT: &str = "oci:";
const ARCHIVE: &str = "docker-archive:";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ImageName {
    Registry(Reference),
    Layout { dir: PathBuf, tag: Option<String> },
    Archive { file: PathBuf },
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{name:?} does not name an image: {hint}")]
pub struct NotAnImageName {
    pub name: String,
    pub hint: String,
}

/// Other tools' transports: named, so that the answer can say what to use instead.
const FOREIGN_TRANSPORTS: [(&str, &str); 6] = [
    ("docker://", "write the reference without docker://"),
    ("https://", "write the reference without https://"),
    ("http://", "write the reference without http://, and ask for plain HTTP"),
    ("docker-daemon:", "save the image with docker save -o FILE, then name it docker-archive:FILE"),
    ("containers-storage:", "copy the image with skopeo copy to oci:DIR, then name it oci:DIR"),
    ("oci-archive:", "unpack the archive into a folder, then name it oci:DIR"),
];

impl ImageName {
    /// What images are tagged in: the name without tag and digest. An archive is its own and only one.
    pub fn repository(&self) -> Option<String> {
        match self {
            ImageName::Registry(name) => Some(format!("{}/{}", name.registry(), name.repository())),
            ImageName::Layout { dir, .. } => Some(format!("{LAYOUT}{}", dir.display())),
            ImageName::Archive { .. } => None,
        }
    }

    /// Of a registry; none: a file or folder of a machine.
    pub fn reference(&self) -> Option<&Reference> {
        match self {
            ImageName::Registry(reference) => Some(reference),
            ImageName::Layout { .. } | ImageName::Archive { .. } => None,
        }
    }

    /// Read from a machine's disk, not through a registry.
    pub fn is_local(&self) -> bool {
        self.reference().is_none()
    }

    /// `text` with a file or folder of the caller made absolute, since who reads it may have another working directory. What
    /// names no image stays as it is: whoever reads it says what is wrong.
    pub fn absolute(text: &str, working_dir: &Path) -> String {
        let local =
            [LAYOUT, ARCHIVE].into_iter().find_map(|scheme| Some((scheme, text.strip_prefix(scheme)?)));
        match local {
            Some((scheme, path)) if !path.is_empty() && !path.starts_with('/') => {
                format!("{scheme}{}/{path}", working_dir.display())
            }
            _ => text.to_owned(),
        }
    }

    /// `text` with all that a short name leaves out; as it is when it names no image.
    pub fn in_full(text: &str) -> String {
        text.parse::<ImageName>().map_or_else(|_| text.to_owned(), |name| name.to_string())
    }
}

impl FromStr for ImageName {
    type Err = NotAnImageName;

    fn from_str(text: &str) -> Result<ImageName, NotAnImageName> {
        let refuse = |hint: &str| NotAnImageName { name: text.to_owned(), hint: hint.to_owned() };
        if text.trim() != text || text.contains(|character: char| character.is_control()) {
            return Err(refuse("it holds blanks or control characters"));
        }
        if let Some(place) = text.strip_prefix(LAYOUT) {
            return layout(place).ok_or_else(|| refuse("write oci:DIR or oci:DIR:TAG"));
        }
        if let Some(file) = text.strip_prefix(ARCHIVE) {
            if file.is_empty() {
                return Err(refuse("write docker-archive:FILE"));
            }
            return Ok(ImageName::Archive { file: file.into() });
        }
        if let Some((_, hint)) = FOREIGN_TRANSPORTS.iter().find(|(prefix, _)| text.starts_with(prefix)) {
            return Err(refuse(hint));
        }
        Reference::parse(text).map(ImageName::Registry).ok_or_else(|| refuse(hint(text)))
    }
}

/// The last colon separates the tag, unless a slash follows it.
fn layout(place: &str) -> Option<ImageName> {
    let (dir, tag) = match place.rsplit_once(':') {
        Some((dir, tag)) if !tag.contains('/') => (dir, Some(tag.to_owned())),
        _ => (place, None),
    };
    if dir.is_empty() || tag.as_deref() == Some("") {
        return None;
    }
    Some(ImageName::Layout { dir: dir.into(), tag })
}

/// What to write instead of a name that is none.
fn hint(text: &str) -> &'static str {
    let name = text.split('@').next().unwrap_or(text);
    if text.is_empty() {
        return "it is empty; write for example alpine:3.20 or registry.example/team/app:tag";
    }
    if name.starts_with(['/', '.']) {
        return "it looks like a path; write oci:DIR for a layout folder or docker-archive:FILE for an archive";
    }
    if repository(name).contains(|letter: char| letter.is_ascii_uppercase()) {
        return "a repository is written in lower case";
    }
    if text.contains("@sha256:") {
        return "a digest is sha256: and 64 lower-case hexadecimal digits";
    }
    "write [HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]"
}

/// The part of a reference that must be lower case.
fn repository(name: &str) -> &str {
    let (path, last) = name.rsplit_once('/').unwrap_or(("", name));
    let last = last.split(':').next().unwrap_or(last);
    if last.contains(|letter: char| letter.is_ascii_uppercase()) {
        last
    } else {
        path.split_once('/').map_or("", |(_, rest)| rest)
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageName::Registry(reference) => write!(formatter, "{reference}"),
            ImageName::Layout { dir, tag: None } => write!(formatter, "{LAYOUT}{}", dir.display()),
            ImageName::Layout { dir, tag: Some(tag) } => write!(formatter, "{LAYOUT}{}:{tag}", dir.display()),
            ImageName::Archive { file } => write!(formatter, "{ARCHIVE}{}", file.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, canonical: &str) {
        let name: ImageName = text.parse().unwrap();
        assert_eq!(name.to_string(), canonical);
        assert_eq!(canonical.parse(), Ok(name), "{canonical} does not stand for itself");
    }

    #[test]
    fn reads_every_kind_of_name() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        check("alpine", "docker.io/library/alpine:latest");
        check("index.docker.io/alpine", "docker.io/library/alpine:latest");
        check("team/app:1", "docker.io/team/app:1");
        check("localhost:5000/app", "localhost:5000/app:latest");
        check("registry.example/a/b/c:v1.2", "registry.example/a/b/c:v1.2");
        check(&format!("ghcr.io/a/b@{digest}"), &format!("ghcr.io/a/b@{digest}"));
        check(&format!("ghcr.io/a/b:1@{digest}"), &format!("ghcr.io/a/b:1@{digest}"));
        check("oci:/srv/layout", "oci:/srv/layout");
        check("oci:/srv/layout:v1", "oci:/srv/layout:v1");
        check("oci:/srv/a:b/layout", "oci:/srv/a:b/layout");
        check("docker-archive:/srv/a:b.tar", "docker-archive:/srv/a:b.tar");
    }

    #[test]
    fn says_how_to_write_it_instead() {
        for (text, expected) in [
            ("", "it is empty"),
            (" alpine", "blanks"),
            ("oci:", "oci:DIR"),
            ("oci:dir:", "oci:DIR"),
            ("docker-archive:", "docker-archive:FILE"),
            ("docker://alpine", "without docker://"),
            ("https://ghcr.io/a/b", "without https://"),
            ("./layout", "looks like a path"),
            ("Alpine", "lower case"),
            ("ghcr.io/Team/app:1", "lower case"),
            ("alpine@sha256:12", "64 lower-case hexadecimal digits"),
            ("alpine:a b", "HOST"),
            ("a/../../etc/passwd", "HOST"),
        ] {
            let error = text.parse::<ImageName>().unwrap_err();
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
        let upper = format!("alpine@sha256:{}", "0A".repeat(32));
        assert!(upper.parse::<ImageName>().is_err(), "a digest is compared as text: one spelling only");
    }

    #[test]
    fn only_local_relative_paths_are_made_absolute() {
        let dir = Path::new("/home/me");
        for (given, expected) in [
            ("oci:app:1", "oci:/home/me/app:1"),
            ("oci:/app:1", "oci:/app:1"),
            ("docker-archive:app.tar", "docker-archive:/home/me/app.tar"),
            ("debian:12", "debian:12"),
            ("localhost:5000/oci:1", "localhost:5000/oci:1"),
        ] {
            assert_eq!(ImageName::absolute(given, dir), expected);
        }
    }

    #[test]
    fn what_names_no_image_stays_as_it_is() {
        assert_eq!(ImageName::in_full("debian:12"), "docker.io/library/debian:12");
        assert_eq!(ImageName::in_full("oci:/srv/a:b"), "oci:/srv/a:b");
        assert_eq!(ImageName::in_full("Not An Image"), "Not An Image");
    }
}
