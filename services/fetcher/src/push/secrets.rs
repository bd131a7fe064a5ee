//! The secrets that a registry shows: compared as digests, so that how long it takes tells nothing of them.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use aws_lc_rs::{constant_time, hmac};
use sha2::{Digest as _, Sha256};

const BEARER: &str = "Bearer ";
/// How a signature over the body begins, as GitHub sends it.
const SIGNED: &str = "sha256=";
/// Shorter ones can be guessed.
const LEN_MIN: usize = 16;
/// Secrets that count at the same time: the old and the new one, as a rule.
const SECRETS_MAX: usize = 8;
/// A longer file is no list of secrets, in bytes.
const FILE_MAX: u64 = 64 * 1024;

/// Those of one registry.
pub(super) struct Secrets(Vec<String>);

impl Secrets {
    /// Errors name the file, never what is in it.
    pub(super) fn read(path: &Path) -> anyhow::Result<Secrets> {
        let reading = || format!("reading secret_file {}", path.display());
        let mut text = String::new();
        let file = File::open(path).with_context(reading)?;
        file.take(FILE_MAX + 1).read_to_string(&mut text).with_context(reading)?;
        ensure!(text.len() as u64 <= FILE_MAX, "{}: it is longer than {FILE_MAX} bytes", reading());
        Secrets::parse(&text).with_context(reading)
    }

    fn parse(text: &str) -> anyhow::Result<Secrets> {
        let secrets: Vec<String> =
            text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
        ensure!(!secrets.is_empty(), "it holds no secret");
        ensure!(secrets.len() <= SECRETS_MAX, "it holds more than {SECRETS_MAX} secrets");
        let short = secrets.iter().any(|secret| secret.len() < LEN_MIN);
        ensure!(!short, "a secret in it is shorter than {LEN_MIN} characters");
        Ok(Secrets(secrets))
    }

    /// Whether this `Authorization` shows one of them: `Bearer SECRET`, or the secret alone, as Harbor sends what it is given.
    pub(super) fn admit(&self, authorization: &[u8]) -> bool {
        let shown = authorization.strip_prefix(BEARER.as_bytes()).unwrap_or(authorization);
        let shown = Sha256::digest(shown);
        // All are looked at, whichever it is.
        self.0.iter().fold(false, |admitted, secret| {
            let same = constant_time::verify_slices_are_equal(&Sha256::digest(secret), &shown);
            admitted | same.is_ok()
        })
    }

    /// Whether one of them signed the body: `sha256=` and an HMAC-SHA256 in hex.
    pub(super) fn signed(&self, signature: &str, body: &[u8]) -> bool {
        let Some(Ok(tag)) = signature.strip_prefix(SIGNED).map(hex::decode) else { return false };
        self.0.iter().fold(false, |signed, secret| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
            signed | hmac::verify(&key, body, &tag).is_ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "the first secret of all";
    const TWO: &str = "the second secret of all";

    #[test]
    fn any_of_the_secrets_opens_and_nothing_else_does() {
        let secrets = Secrets::parse(&format!("{ONE}\n\n  {TWO}  \n")).unwrap();
        for good in [format!("Bearer {ONE}"), TWO.to_owned()] {
            assert!(secrets.admit(good.as_bytes()), "{good}");
        }
        for wrong in ["", "Bearer ", "Bearer", &ONE[1..], &format!("bearer  {ONE}"), &format!("{ONE}{TWO}")] {
            assert!(!secrets.admit(wrong.as_bytes()), "{wrong}");
        }
    }

    #[test]
    fn a_body_that_a_secret_signed_needs_no_header_of_its_own() {
        let secrets = Secrets::parse(TWO).unwrap();
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, TWO.as_bytes()), b"body");
        let signature = format!("sha256={}", hex::encode(tag.as_ref()));
        assert!(secrets.signed(&signature, b"body"));
        assert!(!secrets.signed(&signature, b"bodY"));
        for wrong in ["", "sha256=", "sha256=zz", "sha1=00", &signature[..signature.len() - 2]] {
            assert!(!secrets.signed(wrong, b"body"), "{wrong}");
        }
    }

    #[test]
    fn a_file_without_a_secret_worth_the_name_is_refused_and_not_quoted() {
        for (text, complaint) in [("", "no secret"), ("hunter2", "shorter"), (&"x\n".repeat(9), "more than")]
        {
            let error = format!("{:#}", Secrets::parse(text).err().unwrap());
            assert!(error.contains(complaint) && !error.contains("hunter2"), "{error}");
        }
    }
}
