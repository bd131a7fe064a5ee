//! How plugins in registries are named: `oci://HOST[:PORT]/REPOSITORY[:TAG][@sha256:HEX]`.

use std::fmt;
use std::str::FromStr;

use anyhow::{anyhow, bail};
use names::Reference;
use registry::BlobDigest;

pub(crate) const SCHEME: &str = "oci://";

/// A plugin in a registry, by tag or by digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteName {
    reference: Reference,
    pin: Option<BlobDigest>,
}

impl RemoteName {
    pub(crate) fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The digest of the manifest that it means, whatever becomes of its tag.
    pub fn pin(&self) -> Option<BlobDigest> {
        self.pin
    }

    pub fn tag(&self) -> Option<&str> {
        self.reference.tag()
    }

    /// `HOST[:PORT]`
    pub fn registry(&self) -> &str {
        self.reference.registry()
    }

    /// `HOST[:PORT]/REPOSITORY`
    pub(crate) fn repository(&self) -> String {
        format!("{}/{}", self.reference.registry(), self.reference.repository())
    }

    /// The same plugin, by this digest.
    pub(crate) fn pinned(&self, pin: BlobDigest) -> RemoteName {
        RemoteName { reference: self.reference.clone().pinned(&pin.into()), pin: Some(pin) }
    }
}

impl FromStr for RemoteName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<RemoteName> {
        let Some(rest) = text.strip_prefix(SCHEME) else {
            bail!("{text:?} does not begin with {SCHEME}");
        };
        let wrong = |reason: &str| {
            anyhow!(
                "{text:?} is no plugin in a registry: {reason}; write {SCHEME}HOST/REPOSITORY[:TAG]@sha256:HEX"
            )
        };
        let reference = Reference::parse(rest).ok_or_else(|| wrong("its name is malformed"))?;
        // Short names of images mean Docker Hub; a source says where it is.
        if !rest.starts_with(&format!("{}/", reference.registry())) {
            return Err(wrong("it names no host"));
        }
        let pin = reference.digest().map(str::parse::<BlobDigest>).transpose();
        let pin = pin.map_err(|error| wrong(&error.to_string()))?;
        Ok(RemoteName { reference, pin })
    }
}

impl fmt::Display for RemoteName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{SCHEME}{}", self.reference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_host_and_at_best_a_digest() {
        let digest = BlobDigest::of(b"manifest");
        for text in [
            format!("oci://registry.example/team/policy@{digest}"),
            format!("oci://localhost:5000/policy:1@{digest}"),
        ] {
            let name: RemoteName = text.parse().unwrap();
            assert_eq!((name.to_string(), name.pin()), (text, Some(digest)));
        }
        let name: RemoteName = "oci://registry.example/policy:1".parse().unwrap();
        assert_eq!((name.tag(), name.pin()), (Some("1"), None));
        assert_eq!(name.pinned(digest).to_string(), format!("oci://registry.example/policy:1@{digest}"));
        for (text, expected) in [
            ("oci:dir", "does not begin with oci://"),
            ("oci://team/policy", "it names no host"),
            ("oci://policy", "it names no host"),
            ("oci://registry.example/Policy", "oci://HOST/REPOSITORY"),
            ("oci://registry.example/policy@sha256:12", "oci://HOST/REPOSITORY"),
            ("oci://registry.example/../policy", "oci://HOST/REPOSITORY"),
        ] {
            let error = text.parse::<RemoteName>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
