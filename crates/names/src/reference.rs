//! The name of an image in a registry.
//!
//! By hand, though the library for OCI's formats has it: its regular expression takes 10 MiB of memory when it is first used
//! (`\w`, of all scripts, 128 times), a quarter of what a small node sets aside for the whole frontend. Tests compare the two.

use std::fmt;

use crate::ManifestDigest;

/// What a name without a registry means, what it was called once, and where its official images stand.
const HUB: &str = "docker.io";
const HUB_ONCE: &str = "index.docker.io";
const OFFICIAL: &str = "library";
const LATEST: &str = "latest";
/// In bytes.
const TAG_MAX: usize = 128;
const REPOSITORY_MAX: usize = 255;
/// The algorithms of digests, and how many digits they give.
const DIGESTS: [(&str, usize); 3] = [("sha256", 64), ("sha384", 96), ("sha512", 128)];

/// `HOST[:PORT]/REPOSITORY` with a tag, a digest or both: what a short name leaves out is filled in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// None: this names no image of a registry.
    pub fn parse(text: &str) -> Option<Reference> {
        let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
        let tagged = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'));
        let (name, tag) = tagged.map_or((name, None), |(name, tag)| (name, Some(tag)));
        if !tag.is_none_or(is_tag) || !digest.is_none_or(is_digest) {
            return None;
        }
        let first = name.split_once('/');
        let host = first.filter(|(host, _)| host.contains(['.', ':']) || *host == "localhost");
        let (registry, path) = host.unwrap_or((HUB, name));
        if !is_host(registry) || !path.split('/').all(is_component) {
            return None;
        }
        let registry = if registry == HUB_ONCE { HUB } else { registry };
        let repository = match registry == HUB && !path.contains('/') {
            true => format!("{OFFICIAL}/{path}"),
            false => path.to_owned(),
        };
        if repository.len() > REPOSITORY_MAX {
            return None;
        }
        let tag = tag.or_else(|| digest.is_none().then_some(LATEST));
        let (tag, digest) = (tag.map(str::to_owned), digest.map(str::to_owned));
        Some(Reference { registry: registry.to_owned(), repository, tag, digest })
    }

    /// `HOST[:PORT]`
    pub fn registry(&self) -> &str {
        &self.registry
    }

    pub fn repository(&self) -> &str {
        &self.repository
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// With its algorithm, as it was written.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// The same image by this digest, whatever becomes of its tag, which stays in the name.
    #[must_use]
    pub fn pinned(self, digest: &ManifestDigest) -> Reference {
        Reference { digest: Some(digest.to_string()), ..self }
    }

    /// As somebody asked for it: without the digest that was put behind its tag.
    #[must_use]
    pub fn as_asked(self) -> Reference {
        let digest = if self.tag.is_some() { None } else { self.digest };
        Reference { digest, ..self }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(formatter, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(formatter, "@{digest}"))
    }
}

fn is_host(host: &str) -> bool {
    let (host, port) = host.split_once(':').map_or((host, None), |(host, port)| (host, Some(port)));
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let digits = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    host.split('.').all(label) && port.is_none_or(digits)
}

/// Lower-case words, between them a dot, one or two underscores, or dashes.
fn is_component(component: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let between =
        |run: &[u8]| matches!(run, b"" | b"." | b"_" | b"__") || run.iter().all(|byte| *byte == b'-');
    let bytes = component.as_bytes();
    bytes.first().is_some_and(|first| word(*first))
        && bytes.last().is_some_and(|last| word(*last))
        && bytes.split(|byte| word(*byte)).all(between)
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= TAG_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

/// One spelling only, in lower case: digests are compared as text.
fn is_digest(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, digits)| {
        let known = DIGESTS.iter().any(|(name, len)| *name == algorithm && *len == digits.len());
        known && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

#[cfg(test)]
mod tests {
    use oci_spec::distribution;

    use super::*;

    #[test]
    fn understands_names_as_the_library_does() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let tags = ["", ":1", ":latest", ":_a.b-c", ":-a", ":", ":a/b", ":a:b"].map(str::to_owned);
        let digests = [
            "".to_owned(),
            format!("@{digest}"),
            "@sha256:ab".to_owned(),
            format!("@md5:{}", "0".repeat(32)),
        ];
        let long = "a/".repeat(128) + "a";
        let names = [
            "busybox",
            "a/b",
            "localhost/a",
            "localhost:5000/a/b",
            "r.io/a",
            "r.io:5000/team/app",
            "index.docker.io/a",
            "docker.io/a",
            "docker.io/library/a",
            "test.com",
            "Up.io/a",
            "r.io/Up",
            "a__b/c",
            "a___b",
            "a.-b",
            "a--b",
            "-a",
            "a-",
            "a//b",
            "/a",
            "a/",
            "",
            "r.io:x/a",
            "r..io/a",
            "-r.io/a",
            "oci:/srv/a",
            "1.2.3.4:5/a",
            "a b",
            "r.io:/a",
            &long[..255],
            &long,
        ];
        let mut understood = 0;
        for name in names {
            for text in
                tags.iter().flat_map(|tag| digests.iter().map(move |digest| format!("{name}{tag}{digest}")))
            {
                let (ours, theirs) = (Reference::parse(&text), text.parse::<distribution::Reference>().ok());
                assert_eq!(ours.is_some(), theirs.is_some(), "{text:?}: {ours:?}, {theirs:?}");
                let (Some(ours), Some(theirs)) = (ours, theirs) else { continue };
                assert_eq!(
                    (ours.registry(), ours.repository(), ours.tag(), ours.digest()),
                    (theirs.registry(), theirs.repository(), theirs.tag(), theirs.digest()),
                    "{text:?}"
                );
                assert_eq!(ours.to_string(), theirs.whole(), "{text:?}");
                understood += 1;
            }
        }
        assert!(understood > 100);
    }

    #[test]
    fn a_digest_is_put_behind_the_tag_and_taken_away_again() {
        let digest = |digit: &str| ManifestDigest::from_hex(&digit.repeat(64)).unwrap();
        let (one, two) = (digest("1"), digest("2"));
        for (name, pinned, asked) in [
            (
                "127.0.0.1:5000/a".to_owned(),
                format!("127.0.0.1:5000/a:latest@{two}"),
                "127.0.0.1:5000/a:latest",
            ),
            (format!("r.io/a:1@{one}"), format!("r.io/a:1@{two}"), "r.io/a:1"),
            (format!("r.io/a@{one}"), format!("r.io/a@{two}"), &format!("r.io/a@{two}")),
        ] {
            let reference = Reference::parse(&name).unwrap().pinned(&two);
            assert_eq!(reference.to_string(), pinned);
            assert_eq!(reference.as_asked().to_string(), asked);
        }
    }
}
