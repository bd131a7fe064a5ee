//! Signatures of the fetcher: over image records, layer records and grants.
//!
//! Ed25519 (RFC 8032) over `domain || 0x00 || payload`; the domain keeps a grant from ever passing
//! for a record.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::Signed;

const KEY_ID_LEN: usize = 8;

/// What a signature speaks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    ImageRecord,
    /// As it was stored before it said where the layer was read.
    LayerRecord,
    StoredLayer,
    Grant,
    Resolution,
}

impl Domain {
    fn label(self) -> &'static [u8] {
        match self {
            Domain::ImageRecord => b"sluice image record v1",
            Domain::LayerRecord => b"sluice layer record v1",
            Domain::StoredLayer => b"sluice layer record v2",
            Domain::Grant => b"sluice grant v1",
            Domain::Resolution => b"sluice resolution v1",
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
}
