//! How people name images.
//!
//! `REFERENCE` (a registry's), `oci:DIR[:TAG]` (a layout folder) or `docker-archive:FILE`
//! (what `docker save` wrote). Short names mean Docker Hub, as everywhere.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use oci_spec::distribution::{ParseError, Reference};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ImageName {
    Registry(Reference),
    Layout { dir: PathBuf, tag: Option<String> },
    Archive { file: PathBuf },
}

/// What of a registry one permission is for: who may read one repository may read all of it, and nothing of another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Empty: this machine's disk.
    pub registry: String,
    /// With its registry.
    pub repository: String,
    /// Other names of the registry.
    pub also: Vec<String>,
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
            ImageName::Layout { dir, .. } => Some(format!("oci:{}", dir.display())),
            ImageName::Archive { .. } => None,
        }
    }

    /// Where its blobs are.
    pub fn place(&self) -> Place {
        match self {
            ImageName::Registry(name) => Place {
                registry: name.registry().to_owned(),
                repository: format!("{}/{}", name.registry(), name.repository()),
                also: Vec::new(),
            },
            ImageName::Layout { dir, .. } => Place::on_disk(format!("oci:{}", dir.display())),
            ImageName::Archive { file } => Place::on_disk(format!("docker-archive:{}", file.display())),
        }
    }

    /// Read from this machine's disk, not through a registry.
    pub fn is_local(&self) -> bool {
        !matches!(self, ImageName::Registry(_))
    }
}

impl Place {
    fn on_disk(repository: String) -> Place {
        Place { registry: String::new(), repository, also: Vec::new() }
    }

    /// Its files are read for its owner, who reads them anyway.
    pub fn is_on_disk(&self) -> bool {
        self.registry.is_empty()
    }

    /// Whether an image of that name, in full, is of here.
    pub fn holds(&self, reference: &str) -> bool {
        let rest = reference.strip_prefix(&*self.repository);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '@']))
    }

    /// Whether that is a name of its registry.
    pub fn is_of_registry(&self, registry: &str) -> bool {
        !self.is_on_disk() && (self.registry == registry || self.also.iter().any(|also| also == registry))
    }

    /// Whether an image of that name, in full, is of the same registry.
    pub fn is_registry_of(&self, reference: &str) -> bool {
        reference.split_once('/').is_some_and(|(registry, _)| self.is_of_registry(registry))
    }
}

impl FromStr for ImageName {
    type Err = NotAnImageName;

    fn from_str(text: &str) -> Result<ImageName, NotAnImageName> {
        let refuse = |hint: &str| NotAnImageName { name: text.to_owned(), hint: hint.to_owned() };
        if text.trim() != text || text.contains(|character: char| character.is_control()) {
            return Err(refuse("it holds blanks or control characters"));
        }
        if let Some(place) = text.strip_prefix("oci:") {
            return layout(place).ok_or_else(|| refuse("write oci:DIR or oci:DIR:TAG"));
        }
        if let Some(file) = text.strip_prefix("docker-archive:") {
            if file.is_empty() {
                return Err(refuse("write docker-archive:FILE"));
            }
            return Ok(ImageName::Archive { file: file.into() });
        }
        if let Some((_, hint)) = FOREIGN_TRANSPORTS.iter().find(|(prefix, _)| text.starts_with(prefix)) {
            return Err(refuse(hint));
        }
        registry(text).map_err(|hint| refuse(&hint))
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

fn registry(text: &str) -> Result<ImageName, String> {
    let reference: Reference = text.parse().map_err(|error: ParseError| hint(text, &error))?;
    if let Some(digest) = reference.digest() {
        digest.parse::<super::BlobDigest>().map_err(|error| error.to_string())?;
    }
    Ok(ImageName::Registry(reference))
}

fn hint(text: &str, error: &ParseError) -> String {
    let name = text.split('@').next().unwrap_or(text);
    match error {
        ParseError::NameEmpty => {
            "it is empty; write for example alpine:3.20 or registry.example/team/app:tag".into()
        }
        ParseError::ReferenceInvalidFormat if name.starts_with(['/', '.']) => {
            "it looks like a path; write oci:DIR for a layout folder or docker-archive:FILE for an archive"
                .into()
        }
        ParseError::ReferenceInvalidFormat if repository(name).contains(|c: char| c.is_ascii_uppercase()) => {
            "a repository is written in lower case".into()
        }
        ParseError::ReferenceInvalidFormat if text.contains("@sha256:") => {
            "a digest is sha256: and 64 hexadecimal digits".into()
        }
        other => format!("{other}; write [HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]"),
    }
}

/// The part of a reference that must be lower case.
fn repository(name: &str) -> &str {
    let (path, last) = name.rsplit_once('/').unwrap_or(("", name));
    let last = last.split(':').next().unwrap_or(last);
    if last.contains(|c: char| c.is_ascii_uppercase()) {
        last
    } else {
        path.split_once('/').map_or("", |(_, rest)| rest)
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageName::Registry(reference) => write!(formatter, "{reference}"),
            ImageName::Layout { dir, tag: None } => write!(formatter, "oci:{}", dir.display()),
            ImageName::Layout { dir, tag: Some(tag) } => write!(formatter, "oci:{}:{tag}", dir.display()),
            ImageName::Archive { file } => write!(formatter, "docker-archive:{}", file.display()),
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
            ("alpine@sha256:12", "64 hexadecimal digits"),
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
    fn a_place_is_a_repository_whatever_the_tag() {
        let place = |text: &str| text.parse::<ImageName>().unwrap().place();
        let app = place("localhost:5000/team/app:1");
        assert_eq!((app.registry.as_str(), app.repository.as_str()), ("localhost:5000", "localhost:5000/team/app"));
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (reference, holds, registry) in [
            ("localhost:5000/team/app:1".to_owned(), true, true),
            (format!("localhost:5000/team/app@{digest}"), true, true),
            (format!("localhost:5000/team/app:2@{digest}"), true, true),
            ("localhost:5000/team/app2:1".to_owned(), false, true),
            ("localhost:5000/team/app/more:1".to_owned(), false, true),
            ("localhost:50000/team/app:1".to_owned(), false, false),
            ("oci:/localhost:5000/team/app:1".to_owned(), false, false),
        ] {
            assert_eq!((app.holds(&reference), app.is_registry_of(&reference)), (holds, registry), "{reference}");
        }
        let layout = place("oci:/srv/layout:v1");
        assert!(layout.is_on_disk() && layout.holds("oci:/srv/layout") && layout.holds("oci:/srv/layout:v2"));
        assert!(!layout.is_registry_of("oci:/srv/layout") && !layout.is_registry_of("/x"));
        let renamed = Place { also: vec!["other.example".to_owned()], ..app };
        assert!(renamed.is_registry_of("other.example/team/app:1") && !renamed.holds("other.example/team/app:1"));
    }
}
