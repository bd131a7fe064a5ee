//! Gives nodes their identities: with a part of the operator's set, which can make nodes and nothing else in NATS.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nkeys::KeyPair;
use proto::speaker;
use serde::{Deserialize, Serialize};
use tls::Name;

use super::{Entry, Kind, remember, revoked_file};
use crate::own::Given;
use crate::token::Tokens;
use crate::{Authority, NODE_LIFE, files, jwt, now_unix};

/// Its file beside the authority's.
pub(super) const ISSUER: &str = "issuer.json";

/// What the identity service works with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct IssuerFile {
    pub(super) account: String,
    pub(super) nats_url: String,
    pub(super) trusted_keys: Vec<String>,
    pub(super) seed: String,
}

/// Gives nodes their identities.
pub struct Issuer {
    folder: PathBuf,
    authority: Authority,
    signer: KeyPair,
    file: IssuerFile,
}

impl Issuer {
    /// Of the folder `authority` of a set.
    pub fn open(folder: &Path) -> anyhow::Result<Issuer> {
        let file: IssuerFile = files::read_json(&folder.join(ISSUER))?;
        let signer = KeyPair::from_seed(&file.seed).context("reading the key that signs nodes")?;
        Ok(Issuer { folder: folder.to_owned(), authority: Authority::load(folder)?, signer, file })
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    pub fn tokens(&self) -> Tokens {
        Tokens::open(&self.folder.join("tokens"))
    }

    pub fn is_revoked(&self, node: &str) -> bool {
        revoked_file(&self.folder, node).exists()
    }

    /// What a node is given that has shown that it is one. `key`: its public key, `nats_key`: that of its user in NATS.
    pub fn give(&self, node: &str, projects: &[String], key: &[u8], nats_key: &str) -> anyhow::Result<Given> {
        let names: Result<Vec<Name>, _> = projects.iter().map(|project| Name::node(project, node)).collect();
        let expires_unix = now_unix() + NODE_LIFE.as_secs();
        let tokens: Vec<String> = projects.iter().map(|project| speaker::token(project)).collect();
        let (account, name) = (&self.file.account, speaker::token(node));
        let nats_jwt = jwt::scoped_user(&self.signer, account, &name, nats_key, &tokens, expires_unix)?;
        let certificate = self.authority.issue_for(&names?, key, NODE_LIFE)?;
        self.note(node, projects, nats_key, expires_unix)?;
        Ok(Given {
            node: node.to_owned(),
            projects: projects.to_vec(),
            certificate,
            ca: self.authority.pem().to_owned(),
            nats_jwt,
            expires_unix,
            given_unix: 0,
            nats_url: self.file.nats_url.clone(),
            trusted_keys: self.file.trusted_keys.clone(),
            identity_url: String::new(),
            kubernetes_token_file: None,
        })
    }

    /// For `sluice keys`, which lists and revokes.
    fn note(&self, node: &str, projects: &[String], nats_key: &str, expires_unix: u64) -> anyhow::Result<()> {
        let path = self.folder.join("nodes").join(format!("{}.json", speaker::token(node)));
        let mut nats_keys = match path.exists() {
            true => files::read_json::<Entry>(&path)?.nats_keys,
            false => Vec::new(),
        };
        remember(&mut nats_keys, nats_key.to_owned());
        let entry = Entry {
            name: node.to_owned(),
            kind: Kind::Node,
            projects: projects.to_vec(),
            nats_keys,
            expires_unix,
            revoked_unix: None,
        };
        files::write_json(&path, &entry)
    }
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Issuer").field("folder", &self.folder).finish_non_exhaustive()
    }
}
