//! Keys that plugins are signed with: ECDSA on P-256 with SHA-256, as PEM files. What cosign and openssl make by default.

use anyhow::{Context, anyhow, bail};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, ParsedPublicKey,
};

const PUBLIC: &str = "PUBLIC KEY";
const PRIVATE: &str = "PRIVATE KEY";
/// As `openssl ecparam -genkey` writes it.
const PRIVATE_SEC1: &str = "EC PRIVATE KEY";

/// A public key, of somebody whose plugins are believed.
#[derive(Debug)]
pub(crate) struct VerifyingKey(ParsedPublicKey);

impl VerifyingKey {
    pub(crate) fn read(text: &str) -> anyhow::Result<VerifyingKey> {
        let pem = pem::parse(text).map_err(|error| anyhow!("it is no PEM: {error}"))?;
        match pem.tag() {
            PUBLIC => {}
            tag if tag.contains("PRIVATE") => {
                bail!("it is a private key; give the public one that belongs to it")
            }
            tag => bail!("it is a {tag}, not a {PUBLIC}"),
        }
        let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, pem.contents());
        Ok(VerifyingKey(key.map_err(|_| anyhow!("it is not a key on the curve P-256 (ECDSA)"))?))
    }

    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.0.verify_sig(message, signature).is_ok()
    }
}

/// A private key, of who signs plugins.
#[derive(Debug)]
pub struct SigningKey(EcdsaKeyPair);

impl SigningKey {
    pub fn generate() -> anyhow::Result<SigningKey> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING);
        Ok(SigningKey(pair.map_err(|_| anyhow!("no key could be made"))?))
    }

    pub fn read(text: &str) -> anyhow::Result<SigningKey> {
        // Curve parameters may come first; which block it is, its name says.
        let blocks = pem::parse_many(text).map_err(|error| anyhow!("it is no PEM: {error}"))?;
        let pem = blocks.iter().find(|pem| pem.tag().ends_with("KEY")).context("it holds no key")?;
        match pem.tag() {
            PRIVATE | PRIVATE_SEC1 => {}
            PUBLIC => bail!("it is a public key; signing takes the private one"),
            tag if tag.contains("ENCRYPTED") => bail!(
                "it is encrypted: sign with the program that made it, as `cosign sign --key` does, or decrypt it first"
            ),
            tag => bail!("it is a {tag}, not a {PRIVATE}"),
        }
        let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, pem.contents());
        Ok(SigningKey(pair.map_err(|_| anyhow!("it is not a key on the curve P-256 (ECDSA)"))?))
    }

    /// PKCS #8, as PEM: a secret.
    pub fn private_pem(&self) -> anyhow::Result<String> {
        let der = self.0.to_pkcs8v1().map_err(|_| anyhow!("the key cannot be written"))?;
        Ok(encoded(PRIVATE, der.as_ref()))
    }

    /// What `policy.trust.public_keys` takes.
    pub fn public_pem(&self) -> anyhow::Result<String> {
        let der = self.0.public_key().as_der().map_err(|_| anyhow!("the key cannot be written"))?;
        Ok(encoded(PUBLIC, der.as_ref()))
    }

    pub(crate) fn sign(&self, message: &[u8]) -> anyhow::Result<Vec<u8>> {
        let signature = self.0.sign(&SystemRandom::new(), message);
        Ok(signature.map_err(|_| anyhow!("signing failed"))?.as_ref().to_vec())
    }
}

fn encoded(tag: &str, der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(tag, der), config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_key_signs_its_public_key_verifies_and_no_other() {
        let (ours, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let read = SigningKey::read(&ours.private_pem().unwrap()).unwrap();
        let signature = read.sign(b"message").unwrap();
        let verifying = |key: &SigningKey| VerifyingKey::read(&key.public_pem().unwrap()).unwrap();
        assert!(verifying(&ours).verifies(b"message", &signature));
        assert!(!verifying(&ours).verifies(b"another", &signature));
        assert!(!verifying(&other).verifies(b"message", &signature));
        assert!(!verifying(&ours).verifies(b"message", &signature[1..]));
        assert!(!format!("{ours:?}").contains("PRIVATE"));
    }

    #[test]
    fn other_keys_are_refused_by_what_they_are() {
        let key = SigningKey::generate().unwrap();
        let (private, public) = (key.private_pem().unwrap(), key.public_pem().unwrap());
        let encrypted = encoded("ENCRYPTED SIGSTORE PRIVATE KEY", b"{}");
        let certificate = encoded("CERTIFICATE", b"x");
        let broken = encoded(PUBLIC, b"x");
        for (text, expected) in [
            (private.as_str(), "it is a private key"),
            (&certificate, "it is a CERTIFICATE"),
            (&broken, "curve P-256"),
            ("", "it is no PEM"),
        ] {
            let error = VerifyingKey::read(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        for (text, expected) in [
            (public.as_str(), "it is a public key"),
            (&encrypted, "it is encrypted"),
            (&encoded(PRIVATE, b"x"), "curve P-256"),
            ("", "no key"),
        ] {
            let error = SigningKey::read(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
