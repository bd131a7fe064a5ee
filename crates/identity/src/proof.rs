//! That whoever asks for a certificate has the key that it is for.

use ed25519_dalek::{Signature, VerifyingKey};
use rcgen::SigningKey as _;

const DOMAIN: &[u8] = b"sluice identity request v1\0";

/// Over what was asked, by the key that it was asked for.
pub fn prove(key: &rcgen::KeyPair, token: &str, node: &str, nats_key: &str) -> anyhow::Result<Vec<u8>> {
    Ok(key.sign(&message(token, node, nats_key))?)
}

pub fn proves(key: &[u8], proof: &[u8], token: &str, node: &str, nats_key: &str) -> bool {
    let parts = (<[u8; 32]>::try_from(key), Signature::from_slice(proof));
    let (Ok(key), Ok(proof)) = parts else { return false };
    let Ok(key) = VerifyingKey::from_bytes(&key) else { return false };
    key.verify_strict(&message(token, node, nats_key), &proof).is_ok()
}

/// With lengths, so that no part can pass for another.
fn message(token: &str, node: &str, nats_key: &str) -> Vec<u8> {
    let mut message = DOMAIN.to_vec();
    for part in [token, node, nats_key] {
        message.extend((part.len() as u64).to_le_bytes());
        message.extend(part.as_bytes());
    }
    message
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, PKCS_ED25519};

    use super::*;

    #[test]
    fn a_proof_is_for_one_request_and_one_key() {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let other = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let proof = prove(&key, "token", "n1", "U1").unwrap();
        let public = key.public_key_raw();
        assert!(proves(public, &proof, "token", "n1", "U1"));
        assert!(!proves(public, &proof, "token", "n", "1U1"));
        assert!(!proves(public, &proof, "token", "n2", "U1"));
        assert!(!proves(other.public_key_raw(), &proof, "token", "n1", "U1"));
        assert!(!proves(&[], &[], "", "", ""));
    }
}
