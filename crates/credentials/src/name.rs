//! The name of an image, as far as a credential depends on it.
//!
//! By hand, though the library for OCI's formats has it: its regular expression takes 10 MiB of memory when it is first used
//! (`\w`, of all scripts, 128 times), a quarter of what a small node sets aside for the whole frontend. Tests compare the two.

/// What a name without a registry means, what it was called once, and where its official images stand.
const HUB: &str = "docker.io";
const HUB_ONCE: &str = "index.docker.io";
const OFFICIAL: &str = "library";
/// In bytes.
const TAG_MAX: usize = 128;
const REPOSITORY_MAX: usize = 255;
/// The algorithms of digests, and how many digits they give.
const DIGESTS: [(&str, usize); 3] = [("sha256", 64), ("sha384", 96), ("sha512", 128)];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) registry: String,
    pub(crate) repository: String,
    /// `:TAG`, `@DIGEST` or both.
    suffix: String,
}

/// The host of the registry that an image is of, as docker's configuration names it; none when it is no image's name.
pub fn registry_of(image: &str) -> Option<String> {
    Some(Name::parse(image)?.registry)
}

/// A registry reference with everything that a short name leaves out; none: this names no image of a registry.
pub fn whole_name(text: &str) -> Option<String> {
    Name::parse(text).map(|name| name.whole())
}

impl Name {
    /// None: this names no image of a registry.
    pub(crate) fn parse(text: &str) -> Option<Name> {
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
        let suffix = match (tag, digest) {
            (None, None) => ":latest".to_owned(),
            (Some(tag), None) => format!(":{tag}"),
            (None, Some(digest)) => format!("@{digest}"),
            (Some(tag), Some(digest)) => format!(":{tag}@{digest}"),
        };
        Some(Name { registry: registry.to_owned(), repository, suffix })
    }

    /// With everything that a short name leaves out.
    pub(crate) fn whole(&self) -> String {
        format!("{}/{}{}", self.registry, self.repository, self.suffix)
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

fn is_digest(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, digits)| {
        let known = DIGESTS.iter().any(|(name, len)| *name == algorithm && *len == digits.len());
        known && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use oci_spec::distribution::Reference;

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
                let (ours, theirs) = (Name::parse(&text), text.parse::<Reference>().ok());
                assert_eq!(ours.is_some(), theirs.is_some(), "{text:?}: {ours:?}, {theirs:?}");
                let (Some(ours), Some(theirs)) = (ours, theirs) else { continue };
                assert_eq!(
                    (&*ours.registry, &*ours.repository),
                    (theirs.registry(), theirs.repository()),
                    "{text:?}"
                );
                assert_eq!(ours.whole(), theirs.whole(), "{text:?}");
                understood += 1;
            }
        }
        assert!(understood > 100);
    }
}
