//! A node's own identity: keys that were made here and never leave, and what was given for them.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rcgen::{KeyPair, PKCS_ED25519};
use serde::{Deserialize, Serialize};

use crate::config::{CA, CERTIFICATE, CREDENTIALS, KEY, Snippet};
use crate::{files, jwt, now_unix, proof};

const SEED: &str = "nats.seed";
const STATE: &str = "identity.json";
/// The settings that a frontend of this node is started with.
const SETTINGS: &str = "frontend.toml";

/// What a node was given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    pub node: String,
    pub projects: Vec<String>,
    /// The node's certificate and the authority's after it.
    pub certificate: String,
    pub ca: String,
    pub nats_jwt: String,
    pub expires_unix: u64,
    /// When it was given, by this machine's clock; 0 until it is kept.
    #[serde(default)]
    pub given_unix: u64,
    pub nats_url: String,
    pub trusted_keys: Vec<String>,
    /// Where it was given, and is renewed.
    #[serde(default)]
    pub identity_url: String,
    /// With which it is got anew once it is over; none: an operator's token is.
    #[serde(default)]
    pub kubernetes_token_file: Option<PathBuf>,
}

/// A node's folder.
pub struct Own {
    folder: PathBuf,
    key: KeyPair,
    nats: nkeys::KeyPair,
}

impl Own {
    /// With new keys where there are none.
    pub fn open(folder: &Path) -> anyhow::Result<Own> {
        let folder = std::path::absolute(folder).context("finding the node's identity")?;
        let (key_file, seed_file) = (folder.join(KEY), folder.join(SEED));
        if !key_file.exists() {
            let key = KeyPair::generate_for(&PKCS_ED25519).context("making the node's key")?;
            files::write(&key_file, key.serialize_pem())?;
        }
        if !seed_file.exists() {
            files::write(&seed_file, nkeys::KeyPair::new_user().seed()?)?;
        }
        let reading = |file: &Path| format!("reading the node's key {}", file.display());
        let key = KeyPair::from_pem(&files::read(&key_file)?).with_context(|| reading(&key_file))?;
        let nats = nkeys::KeyPair::from_seed(files::read(&seed_file)?.trim());
        Ok(Own { key, nats: nats.with_context(|| reading(&seed_file))?, folder })
    }

    /// The public key that a certificate is asked for.
    pub fn key(&self) -> &[u8] {
        self.key.public_key_raw()
    }

    pub fn nats_key(&self) -> String {
        self.nats.public_key()
    }

    /// That this node has the key; `token` is empty for a renewal.
    pub fn prove(&self, token: &str, node: &str) -> anyhow::Result<Vec<u8>> {
        proof::prove(&self.key, token, node, &self.nats_key())
    }

    /// Keeps what was given. Readers find each file whole, the old one or the new one; either counts for a while.
    pub fn keep(&self, given: &Given) -> anyhow::Result<()> {
        let given = Given { given_unix: now_unix(), ..given.clone() };
        let write = |name: &str, text: &str| files::write(&self.folder.join(name), text);
        write(CA, &given.ca)?;
        write(CERTIFICATE, &given.certificate)?;
        write(CREDENTIALS, &jwt::credentials(&given.nats_jwt, &self.nats.seed()?))?;
        let snippet = Snippet {
            folder: &self.folder,
            role: proto::Role::Frontend.name(),
            nats_url: &given.nats_url,
            trusted_keys: &given.trusted_keys,
            node: Some((&given.node, &given.projects)),
        };
        let mut settings = snippet.text();
        if !given.identity_url.is_empty() {
            let folder = self.folder.display().to_string();
            settings += &format!("\n[identity]\naddress = {:?}\nfolder = {folder:?}\n", given.identity_url);
            if let Some(file) = &given.kubernetes_token_file {
                settings += &format!("kubernetes_token_file = {:?}\n", file.display().to_string());
            }
        }
        write(SETTINGS, &settings)?;
        files::write_json(&self.folder.join(STATE), &given)
    }

    /// What was given last; none before.
    pub fn given(folder: &Path) -> anyhow::Result<Option<Given>> {
        let state = folder.join(STATE);
        if !state.exists() {
            return Ok(None);
        }
        files::read_json(&state).map(Some)
    }

    /// The files of this folder, as a connection uses them.
    pub fn tls(&self) -> tls::Config {
        let file = |name: &str| Some(self.folder.join(name));
        tls::Config {
            ca_file: file(CA),
            certificate_file: file(CERTIFICATE),
            key_file: file(KEY),
            insecure: false,
        }
    }

    /// Where the settings stand that a frontend of this node is started with.
    pub fn settings(&self) -> PathBuf {
        self.folder.join(SETTINGS)
    }
}

impl Given {
    /// When to ask anew: after two thirds of its life.
    pub fn renew_at_unix(&self) -> u64 {
        let life = self.expires_unix.saturating_sub(self.given_unix);
        self.given_unix.saturating_add(life / 3 * 2)
    }
}

impl std::fmt::Debug for Own {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Own").field("folder", &self.folder).finish_non_exhaustive()
    }
}
