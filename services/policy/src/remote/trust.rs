//! Whose plugins are believed.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, ensure};
use registry::BlobDigest;

use super::keys::{SigningKey, VerifyingKey};
use super::signature::{Signature, signed_by};
use crate::config::{Required, TrustConfig};

/// A key's file, in bytes.
const KEY_FILE_MAX: u64 = 64 * 1024;

/// The keys, and what must be signed by one of them.
#[derive(Debug)]
pub(crate) struct Trust {
    keys: Vec<VerifyingKey>,
    required: Required,
}

/// Why nobody who is believed vouches for a plugin.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Untrusted {
    #[error("it is not signed, and policy.trust wants a signature: `sluice policy sign` makes one")]
    Unsigned,
    #[error("none of its signatures ({0}) is by a key in policy.trust.public_keys")]
    Stranger(usize),
    #[error("its signature is for another manifest, {0}")]
    Other(BlobDigest),
    #[error("a key in policy.trust.public_keys signed it, and {0}")]
    Senseless(String),
}

impl Trust {
    pub(crate) fn new(config: &TrustConfig) -> anyhow::Result<Trust> {
        ensure!(
            !config.public_keys.is_empty() || config.required == Required::WithKeys,
            "policy.trust.required wants signatures, and policy.trust.public_keys names no key"
        );
        let keys = config.public_keys.iter().map(|key| read_key(key)).collect::<anyhow::Result<_>>()?;
        Ok(Trust { keys, required: config.required })
    }

    /// Nobody but who signs with `key`.
    pub(super) fn of(key: &SigningKey) -> anyhow::Result<Trust> {
        let keys = vec![VerifyingKey::read(&key.public_pem()?)?];
        Ok(Trust { keys, required: Required::WithKeys })
    }

    /// Whether plugins from registries must be signed.
    pub(crate) fn wants_remote(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Whether plugins from files must be signed.
    pub(crate) fn wants_files(&self) -> bool {
        self.required == Required::All
    }

    /// Whether one of the keys signed this manifest.
    pub(crate) fn check(&self, manifest: BlobDigest, signatures: &[Signature]) -> Result<(), Untrusted> {
        let mut reason =
            if signatures.is_empty() { Untrusted::Unsigned } else { Untrusted::Stranger(signatures.len()) };
        for Signature { payload, signature } in signatures {
            if !self.verifies(payload, signature) {
                continue;
            }
            match signed_by(payload) {
                Ok(signed) if signed == manifest => return Ok(()),
                Ok(signed) => reason = Untrusted::Other(signed),
                Err(error) => reason = Untrusted::Senseless(format!("{error:#}")),
            }
        }
        Err(reason)
    }

    /// Whether `signature` is that of one of the keys.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.keys.iter().any(|key| key.verifies(message, signature))
    }
}

/// PEM, or the name of a file of it.
fn read_key(key: &str) -> anyhow::Result<VerifyingKey> {
    if key.contains("-----BEGIN") {
        return VerifyingKey::read(key).context("reading a key in policy.trust.public_keys");
    }
    let reading = || format!("reading the key {key} of policy.trust.public_keys");
    let text = read_text(Path::new(key), KEY_FILE_MAX).with_context(reading)?;
    VerifyingKey::read(&text).with_context(reading)
}

/// A text file of at most `max` bytes.
pub(crate) fn read_text(path: &Path, max: u64) -> anyhow::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(max + 1).read_to_string(&mut text)?;
    ensure!(text.len() as u64 <= max, "it has more than {max} bytes");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::signature::payload;
    use super::*;

    fn signature(key: &SigningKey, payload: &[u8]) -> Signature {
        Signature { payload: payload.to_vec(), signature: key.sign(payload).unwrap() }
    }

    #[test]
    fn a_signature_counts_by_its_key_and_by_what_it_signs() {
        let (ours, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let keys = vec![ours.public_pem().unwrap()];
        let trust = Trust::new(&TrustConfig { public_keys: keys, ..TrustConfig::default() }).unwrap();
        let (right, wrong) = (BlobDigest::of(b"right"), BlobDigest::of(b"wrong"));
        let (good, bad) = (payload("r", right), payload("r", wrong));
        let check = |signatures: &[Signature]| trust.check(right, signatures);
        assert_eq!(check(&[]), Err(Untrusted::Unsigned));
        assert_eq!(check(&[signature(&other, &good)]), Err(Untrusted::Stranger(1)));
        assert_eq!(check(&[signature(&ours, &bad)]), Err(Untrusted::Other(wrong)));
        assert_eq!(check(&[signature(&other, &good), signature(&ours, &good)]), Ok(()));
        let swapped = Signature { payload: good.clone(), signature: ours.sign(&bad).unwrap() };
        assert_eq!(check(&[swapped]), Err(Untrusted::Stranger(1)));
        let senseless = check(&[signature(&ours, b"{}")]).unwrap_err();
        assert!(senseless.to_string().contains("its payload is not understood"), "{senseless}");
    }

    #[test]
    fn keys_come_from_files_or_stand_in_the_settings() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key.pub");
        std::fs::write(&file, SigningKey::generate().unwrap().public_pem().unwrap()).unwrap();
        let of = |keys: Vec<String>, required| Trust::new(&TrustConfig { public_keys: keys, required });
        assert!(of(vec![file.display().to_string()], Required::All).unwrap().wants_files());
        assert!(!of(Vec::new(), Required::WithKeys).unwrap().wants_remote());
        let error = |keys, required| format!("{:#}", of(keys, required).unwrap_err());
        assert!(error(Vec::new(), Required::Registry).contains("names no key"));
        let absent = error(vec!["/nonexistent.pub".to_owned()], Required::WithKeys);
        assert!(absent.contains("reading the key /nonexistent.pub of policy.trust.public_keys"), "{absent}");
        std::fs::write(&file, "x".repeat(100_000)).unwrap();
        assert!(error(vec![file.display().to_string()], Required::WithKeys).contains("more than"));
    }
}
