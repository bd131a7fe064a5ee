//! Signatures of the fetcher: over image records, layer records and grants.
//!
//! Ed25519 (RFC 8032) over `domain || 0x00 || payload`; the domain keeps a grant from ever passing
//! for a record.

use std::sync::Arc;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::Signed;

const KEY_ID_LEN: usize = 8;
/// Of what is no key so much is quoted, in characters.
const QUOTED_MAX: usize = 100;

/// What a signature speaks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    ImageRecord,
    LayerRecord,
    Grant,
}

impl Domain {
    fn label(self) -> &'static [u8] {
        match self {
            Domain::ImageRecord => b"sluice image record v1",
            Domain::LayerRecord => b"sluice layer record v1",
            Domain::Grant => b"sluice grant v1",
        }
    }

    fn message(self, payload: &[u8]) -> Vec<u8> {
        [self.label(), &[0], payload].concat()
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VerifyError {
    /// By the first bytes of the public key, as they stand in a list of trusted keys.
    #[error("signed by the unknown key {}…", hex(.0))]
    UnknownKey(Vec<u8>),
    #[error("the signature does not match")]
    Mismatch,
}

/// Keys that count, as a configuration lists them. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedKeys(Arc<[VerifyingKey]>);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("trusted_keys: {0:?} is not a public key of Ed25519 in 64 hexadecimal digits")]
pub struct NotAKey(String);

impl TrustedKeys {
    /// Each as 64 hexadecimal digits.
    pub fn parse(texts: &[String]) -> Result<TrustedKeys, NotAKey> {
        let key = |text: &String| read(text).ok_or_else(|| NotAKey(text.chars().take(QUOTED_MAX).collect()));
        texts.iter().map(key).collect::<Result<Vec<_>, _>>().map(TrustedKeys::from)
    }

    /// These, and `own`.
    #[must_use]
    pub fn and(&self, own: VerifyingKey) -> TrustedKeys {
        TrustedKeys(self.0.iter().copied().chain([own]).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The payload of `signed`, once one of these vouches for it.
    pub fn verify<'a>(&self, domain: Domain, signed: &'a Signed) -> Result<&'a [u8], VerifyError> {
        verify(&self.0, domain, signed)
    }
}

impl From<Vec<VerifyingKey>> for TrustedKeys {
    fn from(keys: Vec<VerifyingKey>) -> TrustedKeys {
        TrustedKeys(keys.into())
    }
}

fn read(text: &str) -> Option<VerifyingKey> {
    let digits = text.as_bytes();
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let mut bytes = [0; 32];
    if digits.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    VerifyingKey::from_bytes(&bytes).ok()
}

/// Signs `payload` for `domain`.
pub fn sign(key: &SigningKey, domain: Domain, payload: Vec<u8>) -> Signed {
    let signature = key.sign(&domain.message(&payload)).to_bytes().to_vec();
    Signed { key_id: key_id(&key.verifying_key()), signature, payload }
}

/// The payload of `signed`, once one of `trusted` vouches for it.
pub fn verify<'a>(
    trusted: &[VerifyingKey],
    domain: Domain,
    signed: &'a Signed,
) -> Result<&'a [u8], VerifyError> {
    let key = trusted
        .iter()
        .find(|key| key_id(key) == signed.key_id)
        .ok_or_else(|| VerifyError::UnknownKey(signed.key_id.clone()))?;
    let signature = Signature::from_slice(&signed.signature).map_err(|_| VerifyError::Mismatch)?;
    key.verify_strict(&domain.message(&signed.payload), &signature).map_err(|_| VerifyError::Mismatch)?;
    Ok(&signed.payload)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(KEY_ID_LEN).map(|byte| format!("{byte:02x}")).collect()
}

/// Names a key in a [`Signed`]: the first 8 bytes of the key.
pub fn key_id(key: &VerifyingKey) -> Vec<u8> {
    key.as_bytes()[..KEY_ID_LEN].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    #[test]
    fn verifies_what_it_signed_and_nothing_else() {
        let signed = sign(&key(1), Domain::Grant, b"payload".to_vec());
        let trusted = [key(2).verifying_key(), key(1).verifying_key()];
        assert_eq!(verify(&trusted, Domain::Grant, &signed), Ok(&b"payload"[..]));
        assert_eq!(verify(&trusted, Domain::ImageRecord, &signed), Err(VerifyError::Mismatch));
        let changed = Signed { payload: b"payloae".to_vec(), ..signed.clone() };
        assert_eq!(verify(&trusted, Domain::Grant, &changed), Err(VerifyError::Mismatch));
        assert!(matches!(verify(&trusted[..1], Domain::Grant, &signed), Err(VerifyError::UnknownKey(_))));
    }

    #[test]
    fn trusted_keys_are_hexadecimal() {
        let own = key(7).verifying_key();
        let text = hex(own.as_bytes());
        let text: String =
            own.as_bytes()[KEY_ID_LEN..].iter().fold(text, |text, byte| format!("{text}{byte:02x}"));
        let trusted = TrustedKeys::parse(std::slice::from_ref(&text)).unwrap();
        assert_eq!((trusted.len(), trusted.is_empty()), (1, false));
        assert_eq!(trusted, TrustedKeys::default().and(own));
        let signed = sign(&key(7), Domain::Grant, b"payload".to_vec());
        assert_eq!(trusted.verify(Domain::Grant, &signed), Ok(&b"payload"[..]));
        for wrong in [&text[2..], "", &"x".repeat(64), &"é".repeat(32)] {
            let error = TrustedKeys::parse(&[wrong.to_owned()]).unwrap_err();
            assert!(error.to_string().starts_with("trusted_keys: "), "{error}");
        }
    }
}
