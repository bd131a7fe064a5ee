//! Seals small secrets to who may read them, besides TLS: no broker on the way, and nobody who listens where they should not, reads them.
//!
//! HPKE (RFC 9180) with X25519, HKDF-SHA256 and ChaCha20-Poly1305, as the library for TLS has it. A sealed secret is
//! `encapsulated key (32) | ciphertext`, and opens only in the context that it was sealed for.

use aws_lc_rs::agreement::{PrivateKey, X25519};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_CHACHA20_POLY1305 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey};
use sha2::{Digest as _, Sha256};

const INFO: &[u8] = b"sluice sealed credential v1";
const DERIVATION: &[u8] = b"sluice sealing key v1\0";
const KEY_LEN: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum Unsealed {
    #[error("the sealing key cannot be used: {0}")]
    Key(String),
    #[error("it was sealed for another key, or for another request")]
    Refused,
}

/// Who opens what is sealed.
pub struct SealingKey {
    secret: HpkePrivateKey,
    public: Vec<u8>,
}

impl SealingKey {
    /// Follows from a secret that all who are to open have.
    pub fn derive(secret: &[u8]) -> Result<SealingKey, Unsealed> {
        let unusable = |error: &dyn std::fmt::Debug| Unsealed::Key(format!("{error:?}"));
        let seed = Sha256::new().chain_update(DERIVATION).chain_update(secret).finalize();
        let key = PrivateKey::from_private_key(&X25519, &seed).map_err(|error| unusable(&error))?;
        let public = key.compute_public_key().map_err(|error| unusable(&error))?;
        Ok(SealingKey { secret: HpkePrivateKey::from(seed.to_vec()), public: public.as_ref().to_vec() })
    }

    pub fn public(&self) -> &[u8] {
        &self.public
    }

    pub fn open(&self, sealed: &[u8], context: &[u8]) -> Result<Vec<u8>, Unsealed> {
        let (encapsulated, ciphertext) = sealed.split_at_checked(KEY_LEN).ok_or(Unsealed::Refused)?;
        let encapsulated = EncapsulatedSecret(encapsulated.to_vec());
        let opened = SUITE.open(&encapsulated, INFO, context, ciphertext, &self.secret);
        opened.map_err(|_| Unsealed::Refused)
    }
}

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SealingKey").finish_non_exhaustive()
    }
}

pub fn seal(public: &[u8], secret: &[u8], context: &[u8]) -> Result<Vec<u8>, Unsealed> {
    let sealed = SUITE.seal(INFO, context, secret, &HpkePublicKey(public.to_vec()));
    let (encapsulated, ciphertext) = sealed.map_err(|error| Unsealed::Key(error.to_string()))?;
    Ok([encapsulated.0, ciphertext].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_for_its_key_and_its_request_alone() {
        let (key, other) = (SealingKey::derive(&[1; 32]).unwrap(), SealingKey::derive(&[2; 32]).unwrap());
        let again = SealingKey::derive(&[1; 32]).unwrap();
        assert_eq!(key.public(), again.public());
        let sealed = seal(key.public(), b"hunter2", b"request").unwrap();
        assert!(!sealed.windows(7).any(|part| part == b"hunter2"));
        assert_eq!(again.open(&sealed, b"request").unwrap(), b"hunter2");
        assert!(key.open(&sealed, b"another request").is_err());
        assert!(other.open(&sealed, b"request").is_err());
        assert!(key.open(&sealed[..20], b"request").is_err());
        assert_ne!(seal(key.public(), b"hunter2", b"request").unwrap(), sealed, "never twice the same");
        assert!(seal(b"short", b"hunter2", b"").is_err());
    }
}
