//! A mesh's own certificate authority.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SanType, SignatureAlgorithm,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tls::Name;

use crate::{files, now_unix};

/// An authority outlives everything that it signs.
const LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Clocks of machines differ: certificates count from a little before they were made.
const BEFORE: Duration = Duration::from_secs(10 * 60);
const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca.key";
/// The length of an Ed25519 public key.
const KEY_LEN: usize = 32;

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To serve and to dial.
    Both,
    /// To dial: what a node is given opens no server anywhere.
    Dial,
}

/// Signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

/// A public key that came from elsewhere.
struct Foreign([u8; KEY_LEN]);

impl PublicKeyData for Foreign {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl Authority {
    /// Makes a new one in `folder`.
    pub(crate) fn make(folder: &Path) -> anyhow::Result<Authority> {
        let key = KeyPair::generate_for(&PKCS_ED25519).context("making the authority's key")?;
        let name = format!("sluice mesh {:08x}", rand::random::<u32>());
        let certificate = params(&name).self_signed(&key).context("making the authority's certificate")?;
        files::write(&folder.join("ca.name"), &name)?;
        files::write(&folder.join(KEY), key.serialize_pem())?;
        files::write(&folder.join(CERTIFICATE), certificate.pem())?;
        Authority::load(folder)
    }

    pub fn load(folder: &Path) -> anyhow::Result<Authority> {
        let name = files::read(&folder.join("ca.name"))?;
        let key =
            KeyPair::from_pem(&files::read(&folder.join(KEY))?).context("reading the authority's key")?;
        let pem = files::read(&folder.join(CERTIFICATE))?;
        let der = pem::parse(&pem).context("reading the authority's certificate")?.into_contents();
        Ok(Authority { issuer: Issuer::new(params(&name), key), pem, der: CertificateDer::from(der) })
    }

    /// Its own certificate, as PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// By which a node that has only a token knows it.
    pub fn fingerprint(&self) -> [u8; 32] {
        tls::fingerprint(&self.der)
    }

    /// A certificate for a key that is made here, with the authority's own after it, and the key, both as PEM.
    pub(crate) fn issue(
        &self,
        names: &[Name],
        hosts: &[String],
        life: Duration,
    ) -> anyhow::Result<(String, String)> {
        let key = KeyPair::generate_for(&PKCS_ED25519).context("making a key")?;
        Ok((self.sign(names, hosts, Purpose::Both, &key, life)?, key.serialize_pem()))
    }

    /// A certificate for somebody's Ed25519 public key, with the authority's own after it, as PEM.
    pub fn issue_for(&self, names: &[Name], key: &[u8], life: Duration) -> anyhow::Result<String> {
        let key = <[u8; KEY_LEN]>::try_from(key).ok().context("an Ed25519 public key has 32 bytes")?;
        self.sign(names, &[], Purpose::Dial, &Foreign(key), life)
    }

    fn sign(
        &self,
        names: &[Name],
        hosts: &[String],
        purpose: Purpose,
        key: &impl PublicKeyData,
        life: Duration,
    ) -> anyhow::Result<String> {
        let first = names.first().context("a certificate without a name")?;
        ensure!(first.to_string().len() <= 300, "{first} is too long for a certificate");
        let mut params = CertificateParams::new(hosts.to_vec()).context("the hosts of a certificate")?;
        for name in names {
            params.subject_alt_names.push(SanType::URI(name.to_string().try_into()?));
        }
        params.distinguished_name = rcgen::DistinguishedName::new();
        // A common name has 64 characters; who looks at it is a person.
        let common: String = first.to_string().chars().take(64).collect();
        params.distinguished_name.push(DnType::CommonName, common);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match purpose {
            Purpose::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            Purpose::Dial => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.serial_number = Some(rand::random::<[u8; 16]>().to_vec().into());
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = validity(life)?;
        let certificate = params.signed_by(key, &self.issuer).context("signing a certificate")?;
        Ok(certificate.pem() + &self.pem)
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Authority")
            .field("fingerprint", &hex::encode(self.fingerprint()))
            .finish_non_exhaustive()
    }
}

/// Of the authority itself; all that it signs follows from them.
fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    if let Ok(validity) = validity(LIFE) {
        (params.not_before, params.not_after) = validity;
    }
    params
}

fn validity(life: Duration) -> anyhow::Result<(OffsetDateTime, OffsetDateTime)> {
    let now = now_unix();
    let at = |seconds: u64| -> anyhow::Result<OffsetDateTime> {
        Ok(OffsetDateTime::from_unix_timestamp(i64::try_from(seconds)?)?)
    };
    Ok((at(now.saturating_sub(BEFORE.as_secs()))?, at(now.saturating_add(life.as_secs()))?))
}
