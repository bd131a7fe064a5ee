//! Certificates of an authority that nobody else trusts.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// PEM files: an authority, and a certificate with its key for a server on loopback and for a client.
#[derive(Debug)]
pub struct Certificates {
    pub ca: PathBuf,
    pub server: PathBuf,
    pub server_key: PathBuf,
    pub client: PathBuf,
    pub client_key: PathBuf,
}

impl Certificates {
    /// Makes all of them in `folder`, which is made when absent.
    pub fn make(folder: &Path) -> anyhow::Result<Certificates> {
        std::fs::create_dir_all(folder)?;
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let ca = folder.join("ca.pem");
        std::fs::write(&ca, authority.pem())?;
        let issue = |name: &str, subjects: &[&str]| -> anyhow::Result<(PathBuf, PathBuf)> {
            let key = KeyPair::generate()?;
            let subjects: Vec<String> = subjects.iter().map(|subject| (*subject).to_owned()).collect();
            let certificate = CertificateParams::new(subjects)?.signed_by(&key, &authority)?;
            let files = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
            std::fs::write(&files.0, certificate.pem())?;
            std::fs::write(&files.1, key.serialize_pem())?;
            Ok(files)
        };
        let (server, server_key) = issue("server", &["127.0.0.1", "localhost"])?;
        let (client, client_key) = issue("client", &["client"])?;
        Ok(Certificates { ca, server, server_key, client, client_key })
    }
}
