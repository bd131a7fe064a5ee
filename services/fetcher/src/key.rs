//! The fetcher's key, and whose signatures it believes.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use ed25519_dalek::{SigningKey, VerifyingKey};
use proto::Signed;
use proto::signed::{Domain, TrustedKeys, VerifyError, sign};

use crate::Config;

const KEY_LEN: usize = 32;

/// Signs what this fetcher says, and checks what was said before. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Keys {
    own: Arc<SigningKey>,
    trusted: TrustedKeys,
}

/// The public half of the fetcher's key: for those who are to believe it. Makes the key when absent.
pub fn verifying_key(config: &Config) -> anyhow::Result<VerifyingKey> {
    Ok(load_or_make(&config.signing_key_file)?.verifying_key())
}

impl Keys {
    pub(crate) fn load(config: &Config) -> anyhow::Result<Keys> {
        let own = load_or_make(&config.signing_key_file)?;
        let trusted = TrustedKeys::parse(&config.trusted_keys)?.and(own.verifying_key());
        Ok(Keys { own: Arc::new(own), trusted })
    }

    /// For who only asks: no key is made. Without one nothing is believed but what the trusted keys signed, and nothing that
    /// this process could sign would be believed by anybody.
    pub(crate) fn existing(config: &Config) -> anyhow::Result<Keys> {
        if load(&config.signing_key_file)?.is_some() {
            return Keys::load(config);
        }
        let own = Arc::new(SigningKey::from_bytes(&rand::random()));
        Ok(Keys { own, trusted: TrustedKeys::parse(&config.trusted_keys)? })
    }

    pub(crate) fn sign(&self, domain: Domain, payload: Vec<u8>) -> Signed {
        sign(&self.own, domain, payload)
    }

    pub(crate) fn verify<'a>(&self, domain: Domain, signed: &'a Signed) -> Result<&'a [u8], VerifyError> {
        self.trusted.verify(domain, signed)
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Keys").field("trusted", &self.trusted.len()).finish_non_exhaustive()
    }
}

fn load_or_make(file: &Path) -> anyhow::Result<SigningKey> {
    if let Some(key) = load(file)? {
        return Ok(key);
    }
    make(file).with_context(|| format!("make the signing key {}", file.display()))?;
    load(file)?.with_context(|| format!("read the signing key {}: it went away", file.display()))
}

fn load(file: &Path) -> anyhow::Result<Option<SigningKey>> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("read the signing key {}", file.display()));
        }
    };
    match <[u8; KEY_LEN]>::try_from(&bytes[..]) {
        Ok(bytes) => Ok(Some(SigningKey::from_bytes(&bytes))),
        Err(_) => bail!("read the signing key {}: {} bytes, {KEY_LEN} expected", file.display(), bytes.len()),
    }
}

/// Writes a new key whole or not at all; of several who make it at once, the first one's stays.
fn make(file: &Path) -> anyhow::Result<()> {
    let folder = file.parent().context("it has no folder")?;
    lifecycle::private::make(folder)?;
    let draft = folder.join(format!(".{:016x}.key", rand::random::<u64>()));
    let mut written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let linked = written
        .write_all(&rand::random::<[u8; KEY_LEN]>())
        .and_then(|()| written.sync_all())
        .and_then(|()| match fs::hard_link(&draft, file) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            other => other,
        });
    fs::remove_file(&draft)?;
    Ok(linked?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_private() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("made/fetcher.key");
        let config = Config { signing_key_file: file.clone(), ..Config::default() };
        let first = verifying_key(&config).unwrap();
        assert_eq!(verifying_key(&config).unwrap(), first);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "no draft is left");
        fs::write(&file, b"short").unwrap();
        assert!(verifying_key(&config).unwrap_err().to_string().contains("5 bytes"));
    }

    #[test]
    fn believes_itself_and_those_it_was_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let config = |name: &str| Config { signing_key_file: folder.path().join(name), ..Config::default() };
        let other = Keys::load(&config("other")).unwrap();
        let signed = other.sign(Domain::ImageRecord, b"record".to_vec());
        assert!(Keys::load(&config("own")).unwrap().verify(Domain::ImageRecord, &signed).is_err());
        let told =
            Config { trusted_keys: vec![hex::encode(other.own.verifying_key().as_bytes())], ..config("own") };
        assert!(Keys::load(&told).unwrap().verify(Domain::ImageRecord, &signed).is_ok());
        let wrong = Config { trusted_keys: vec!["00".into()], ..config("own") };
        assert!(Keys::load(&wrong).is_err());
    }

    #[test]
    fn who_only_asks_makes_no_key_and_believes_nothing_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state/fetcher.key");
        let config = Config { signing_key_file: file.clone(), ..Config::default() };
        let asking = Keys::existing(&config).unwrap();
        assert!(!file.parent().unwrap().exists());
        let signed = asking.sign(Domain::ImageRecord, b"record".to_vec());
        assert!(asking.verify(Domain::ImageRecord, &signed).is_err());
        let made = Keys::load(&config).unwrap().sign(Domain::ImageRecord, b"record".to_vec());
        assert!(Keys::existing(&config).unwrap().verify(Domain::ImageRecord, &made).is_ok());
    }
}
