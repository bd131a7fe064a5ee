//! What a certificate says of its holder: names, and the key.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};

const SCHEME: &str = "sluice://";
const SERVICE: &str = "service";
const NODE: &str = "node";
/// A node's name is a host's, a project's is shorter.
const NAME_MAX: usize = 253;

/// Names that one certificate may have: projects of one node.
const NAMES_MAX: usize = 64;

/// What a holder is, as a URI among the certificate's alternative names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// `sluice://service/ROLE`
    Service(String),
    /// `sluice://node/PROJECT/NODE`
    Node { project: String, node: String },
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub names: Vec<Name>,
    /// SHA-256 of the public key (SubjectPublicKeyInfo, DER): a renewed certificate of the same key has the same.
    pub thumbprint: [u8; 32],
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("{0:?} is no name of ours: letters, digits, `-`, `_` and `.` expected")]
    Name(String),
    #[error("not a certificate: {0}")]
    Certificate(String),
}

impl Name {
    pub fn service(role: &str) -> Result<Name, Invalid> {
        Ok(Name::Service(checked(role)?))
    }

    pub fn node(project: &str, node: &str) -> Result<Name, Invalid> {
        Ok(Name::Node { project: checked(project)?, node: checked(node)? })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Service(role) => write!(formatter, "{SCHEME}{SERVICE}/{role}"),
            Name::Node { project, node } => write!(formatter, "{SCHEME}{NODE}/{project}/{node}"),
        }
    }
}

impl FromStr for Name {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Name, Invalid> {
        let invalid = || Invalid::Name(text.to_owned());
        let parts: Vec<&str> = text.strip_prefix(SCHEME).ok_or_else(invalid)?.split('/').collect();
        match parts[..] {
            [SERVICE, role] => Name::service(role),
            [NODE, project, node] => Name::node(project, node),
            _ => Err(invalid()),
        }
    }
}

fn checked(name: &str) -> Result<String, Invalid> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    match first && name.len() <= NAME_MAX && name.bytes().all(good) {
        true => Ok(name.to_owned()),
        false => Err(Invalid::Name(name.to_owned())),
    }
}

impl Peer {
    /// What `certificate` says; whether somebody we believe signed it is another question.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Peer, Invalid> {
        let invalid = |error: &dyn fmt::Debug| Invalid::Certificate(format!("{error:?}"));
        let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|error| invalid(&error))?;
        let names = parsed.valid_uri_names().take(NAMES_MAX).filter_map(|uri| uri.parse().ok()).collect();
        let key = parsed.subject_public_key_info();
        Ok(Peer { names, thumbprint: Sha256::digest(&*key).into() })
    }

    pub fn is_service(&self, role: &str) -> bool {
        self.names.iter().any(|name| matches!(name, Name::Service(own) if own == role))
    }

    pub fn is_node(&self, project: &str, node: &str) -> bool {
        self.names
            .iter()
            .any(|name| matches!(name, Name::Node { project: of, node: own } if of == project && own == node))
    }

    /// The role that it has; a node is a frontend.
    pub fn role(&self) -> Option<&str> {
        self.names
            .iter()
            .map(|name| match name {
                Name::Service(role) => role.as_str(),
                Name::Node { .. } => "frontend",
            })
            .next()
    }

    /// The node that it is.
    pub fn node(&self) -> Option<&str> {
        self.names.iter().find_map(|name| match name {
            Name::Node { node, .. } => Some(node.as_str()),
            Name::Service(_) => None,
        })
    }
}

/// SHA-256 of a whole certificate: pins an authority.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let names = [Name::service("cache").unwrap(), Name::node("default", "ip-10-0-0-1.eu").unwrap()];
        for name in names {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        for wrong in [
            "sluice://node/p",
            "sluice://node/p/n/x",
            "sluice://service/",
            "http://service/cache",
            "sluice://node/../n",
            "sluice://node/p/n*",
            "sluice://node/p/",
        ] {
            assert!(wrong.parse::<Name>().is_err(), "{wrong}");
        }
        assert!(Name::node("a/b", "n").is_err());
        assert!(Name::service(&"x".repeat(NAME_MAX + 1)).is_err());
    }
}
