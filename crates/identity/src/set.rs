//! The operator's folder: everything that a mesh's identities are made of.
//!
//! ```text
//! mesh.json                  the mesh's name, and who has an identity
//! keys/                      the roots: operator, accounts, one signing key per role. No service needs this folder
//! authority/                 the certificate authority, the key that signs nodes, tokens: for the identity service
//! fetcher.key                signs records and grants
//! nats/                      the configuration of nats-server, and its certificate
//! services/ROLE/             of each service: credentials, certificate, settings
//! operators/NAME/            of people at the command line
//! nodes/NAME/                of nodes that were added by hand, without a token
//! serve.toml                 settings for all services in one process
//! ```

mod issuer;
#[cfg(test)]
mod tests;
mod writing;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use nkeys::KeyPair;
use proto::{Role, speaker};
use serde::{Deserialize, Serialize};
use tls::Name;

use crate::config::{CA, CERTIFICATE, KEY};
use crate::token::Tokens;
use crate::{Authority, IDENTITY, NATS, files, now_unix};

const MANIFEST: &str = "mesh.json";
const AUTHORITY: &str = "authority";
const SERVE: &str = "serve.toml";
/// The first operator.
const OPERATOR: &str = "operator";
/// What a certificate of a server counts for besides its hosts, on the machine itself.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// Former keys of one node that are remembered, to be revoked with it.
const KEYS_MAX: usize = 16;
/// What one identity's entry may say; the rest of the file is ours.
const NODES_LISTED_MAX: usize = 100_000;

/// What a new mesh is made with.
#[derive(Clone, Debug)]
pub struct Options {
    pub name: String,
    /// Names and addresses under which NATS and services are reached, beside this machine's own.
    pub hosts: Vec<String>,
    /// Where services and nodes find NATS.
    pub nats_url: String,
    /// Where NATS listens.
    pub listen: String,
    /// Where the folder will stand on the machines that use it; absent: where it is.
    pub at: Option<PathBuf>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) name: String,
    pub(crate) hosts: Vec<String>,
    pub(crate) nats_url: String,
    pub(crate) listen: String,
    pub(crate) at: Option<PathBuf>,
    pub(crate) account: String,
    pub(crate) system_account: String,
    pub(crate) entries: Vec<Entry>,
    /// Public keys of users in NATS, and since when they count no more.
    pub(crate) revoked: Vec<(String, u64)>,
    /// The node among the entries that `serve.toml` serves.
    #[serde(default)]
    pub(crate) serves: Option<String>,
}

/// Who has an identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub name: String,
    pub kind: Kind,
    pub projects: Vec<String>,
    /// Public keys in NATS, the newest last.
    pub nats_keys: Vec<String>,
    pub expires_unix: u64,
    pub revoked_unix: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Service,
    Operator,
    Node,
}

#[derive(Debug)]
pub struct Set {
    folder: PathBuf,
    manifest: Manifest,
}

pub use issuer::Issuer;

/// Services that have users in NATS.
fn services() -> impl Iterator<Item = Role> {
    Role::ALL.into_iter().filter(|role| !matches!(role, Role::Frontend | Role::Operator))
}

impl Set {
    /// Makes everything. The folder must not hold a set already.
    pub fn init(folder: &Path, options: &Options) -> anyhow::Result<Set> {
        let folder = std::path::absolute(folder).context("finding the folder")?;
        if Set::is_at(&folder) {
            bail!("{} holds a mesh's keys already: `sluice keys rotate` renews them", folder.display());
        }
        lifecycle::private::make(&folder)?;
        let (operator, account, system) =
            (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
        for (name, key) in [("operator", &operator), ("account", &account), ("system", &system)] {
            files::write(&key_file(&folder, name), key.seed()?)?;
        }
        for role in Role::ALL {
            files::write(&key_file(&folder, &of_role(role)), KeyPair::new_account().seed()?)?;
        }
        files::write(&folder.join("fetcher.key"), rand::random::<[u8; 32]>())?;
        Authority::make(&folder.join(AUTHORITY))?;
        let manifest = Manifest {
            name: options.name.clone(),
            hosts: options.hosts.clone(),
            nats_url: options.nats_url.clone(),
            listen: options.listen.clone(),
            at: options.at.clone(),
            account: account.public_key(),
            system_account: system.public_key(),
            entries: Vec::new(),
            revoked: Vec::new(),
            serves: None,
        };
        let mut set = Set { folder, manifest };
        set.write_system_user(&system)?;
        set.rotate(None)?;
        set.add_operator(OPERATOR)?;
        Ok(set)
    }

    /// Whether the folder holds a set.
    pub fn is_at(folder: &Path) -> bool {
        folder.join(MANIFEST).exists()
    }

    pub fn open(folder: &Path) -> anyhow::Result<Set> {
        let folder = std::path::absolute(folder).context("finding the folder")?;
        let manifest = files::read_json(&folder.join(MANIFEST))
            .with_context(|| format!("{} holds no keys of a mesh (`sluice keys init`)", folder.display()))?;
        Ok(Set { folder, manifest })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// The fetcher's public key, in hex.
    pub fn trusted_key(&self) -> anyhow::Result<String> {
        let file = self.folder.join("fetcher.key");
        let bytes = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        let bytes = <[u8; 32]>::try_from(bytes)
            .ok()
            .with_context(|| format!("{}: 32 bytes expected", file.display()))?;
        Ok(hex::encode(ed25519_dalek::SigningKey::from_bytes(&bytes).verifying_key().as_bytes()))
    }

    /// The authority's fingerprint, in hex.
    pub fn fingerprint(&self) -> anyhow::Result<String> {
        Ok(hex::encode(self.authority()?.fingerprint()))
    }

    /// Those that were made here, and the nodes that enrolled.
    pub fn entries(&self) -> anyhow::Result<Vec<Entry>> {
        let enrolled = enrolled(&self.folder.join(AUTHORITY))?;
        Ok(self.manifest.entries.iter().cloned().chain(enrolled).collect())
    }

    pub fn tokens(&self) -> Tokens {
        Tokens::open(&self.folder.join(AUTHORITY).join("tokens"))
    }

    pub fn authority(&self) -> anyhow::Result<Authority> {
        Authority::load(&self.folder.join(AUTHORITY))
    }

    /// New credentials and certificates, of one service or of all of them, and everything that is derived: what roles may do
    /// in this version, and the configuration of nats-server. Users' keys of before count until they end.
    pub fn rotate(&mut self, only: Option<&str>) -> anyhow::Result<Vec<String>> {
        let authority = self.authority()?;
        let mut done = Vec::new();
        let wanted = |name: &str| only.is_none_or(|only| only == name);
        for role in services().filter(|role| wanted(role.name())) {
            let folder = self.folder.join("services").join(role.name());
            self.write_user(&folder, role, role.name(), &[], Kind::Service)?;
            self.write_certificate(&authority, &folder, &[Name::service(role.name())?])?;
            if role == Role::Fetcher {
                let key = fs::read(self.folder.join("fetcher.key")).context("reading the signing key")?;
                files::write(&folder.join("fetcher.key"), key)?;
            }
            self.write_snippet(&folder, role.name(), role.name(), None)?;
            done.push(role.name().to_owned());
        }
        if wanted(IDENTITY) {
            let folder = self.folder.join("services").join(IDENTITY);
            self.write_certificate(&authority, &folder, &[Name::service(IDENTITY)?])?;
            self.write_snippet(&folder, IDENTITY, IDENTITY, None)?;
            done.push(IDENTITY.to_owned());
        }
        if wanted(NATS) {
            self.write_certificate(&authority, &self.folder.join("nats"), &[Name::service(NATS)?])?;
            done.push(NATS.to_owned());
        }
        let of = |kind| {
            let known = self.manifest.entries.iter().filter(move |entry| entry.kind == kind);
            known.filter(|entry| entry.revoked_unix.is_none()).cloned().collect::<Vec<_>>()
        };
        let (operators, nodes) = (of(Kind::Operator), of(Kind::Node));
        for entry in operators.iter().filter(|entry| wanted(&entry.name)) {
            self.add_operator(&entry.name)?;
            done.push(entry.name.clone());
        }
        for entry in nodes.iter().filter(|entry| wanted(&entry.name)) {
            self.add_node(&entry.name, &entry.projects)?;
            done.push(entry.name.clone());
        }
        ensure!(
            !done.is_empty(),
            "nobody is called {:?} here: `sluice keys show` lists all",
            only.unwrap_or_default()
        );
        self.write_issuer()?;
        self.write_nats()?;
        self.write_serve()?;
        self.save()?;
        Ok(done)
    }

    /// A person at the command line, or what acts for one.
    pub fn add_operator(&mut self, name: &str) -> anyhow::Result<PathBuf> {
        let certified = Name::service(Role::Operator.name())?;
        Name::service(name).context("the name of an operator")?;
        self.refuse_taken(name, Kind::Operator)?;
        let folder = self.folder.join("operators").join(name);
        self.write_user(&folder, Role::Operator, name, &[], Kind::Operator)?;
        self.write_certificate(&self.authority()?, &folder, &[certified])?;
        self.write_snippet(&folder, "sluice", Role::Operator.name(), None)?;
        self.save()?;
        Ok(folder)
    }

    /// A node whose keys are made here, where no identity service is to run: whoever copies the folder is the node.
    pub fn add_node(&mut self, name: &str, projects: &[String]) -> anyhow::Result<PathBuf> {
        ensure!(!projects.is_empty(), "a node of no project is of no use");
        let names: Result<Vec<Name>, _> = projects.iter().map(|project| Name::node(project, name)).collect();
        self.refuse_taken(name, Kind::Node)?;
        let folder = self.folder.join("nodes").join(name);
        self.write_user(&folder, Role::Frontend, name, projects, Kind::Node)?;
        self.write_certificate(&self.authority()?, &folder, &names?)?;
        self.write_snippet(&folder, "frontend", Role::Frontend.name(), Some((name, projects)))?;
        self.save()?;
        Ok(folder)
    }

    /// The node that `serve.toml` serves beside the services.
    pub fn serve_node(&mut self, name: &str, projects: &[String]) -> anyhow::Result<PathBuf> {
        let folder = self.add_node(name, projects)?;
        self.manifest.serves = Some(name.to_owned());
        self.write_serve()?;
        self.save()?;
        Ok(folder)
    }

    /// From now on `name` is nobody: its users in NATS count no more, and a node is given nothing anew. Its certificate is refused by
    /// caches as soon as `sluice revoke --node` says so as well.
    pub fn revoke(&mut self, name: &str) -> anyhow::Result<()> {
        let now = now_unix();
        let entries = self.entries()?;
        let mut found: Vec<&Entry> = entries.iter().filter(|entry| entry.name == name).collect();
        found.dedup();
        ensure!(!found.is_empty(), "nobody is called {name:?} here: `sluice keys show` lists all");
        for key in found.iter().flat_map(|entry| &entry.nats_keys) {
            self.manifest.revoked.retain(|(other, _)| other != key);
            self.manifest.revoked.push((key.clone(), now));
        }
        for entry in self.manifest.entries.iter_mut().filter(|entry| entry.name == name) {
            entry.revoked_unix = Some(now);
        }
        files::write(&revoked_file(&self.folder.join(AUTHORITY), name), now.to_string())?;
        self.write_nats()?;
        self.save()
    }

    /// The account as servers are to know it, to be told to them while they run; and the credentials to tell it with.
    pub fn account_jwt(&self) -> anyhow::Result<(String, PathBuf)> {
        Ok((self.account()?, self.folder.join("keys").join("system.creds")))
    }

    /// Settings with which this folder's own NATS servers are reached, for [`Set::account_jwt`].
    pub fn nats(&self) -> (String, PathBuf, PathBuf, PathBuf) {
        let folder = self.folder.join("nats");
        (self.manifest.nats_url.clone(), folder.join(CA), folder.join(CERTIFICATE), folder.join(KEY))
    }

    fn refuse_taken(&self, name: &str, kind: Kind) -> anyhow::Result<()> {
        let taken = self.manifest.entries.iter().find(|entry| entry.name == name);
        match taken {
            Some(entry) if entry.kind != kind => bail!("{name:?} is another's name already"),
            _ => Ok(()),
        }
    }
}

fn remember(keys: &mut Vec<String>, key: String) {
    keys.retain(|known| *known != key);
    keys.push(key);
    if keys.len() > KEYS_MAX {
        keys.remove(0);
    }
}

/// Nodes that enrolled, by name.
fn enrolled(authority: &Path) -> anyhow::Result<Vec<Entry>> {
    let folder = authority.join("nodes");
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .with_context(|| format!("listing {}", folder.display()))?;
    paths.retain(|path| path.extension().is_some_and(|end| end == "json"));
    paths.sort();
    let read = |path: &PathBuf| -> anyhow::Result<Entry> {
        let mut entry: Entry = files::read_json(path)?;
        let since = files::read(&revoked_file(authority, &entry.name)).ok();
        entry.revoked_unix = since.and_then(|since| since.trim().parse().ok());
        Ok(entry)
    };
    paths.iter().take(NODES_LISTED_MAX).map(read).collect()
}

fn revoked_file(authority: &Path, node: &str) -> PathBuf {
    authority.join("revoked").join(speaker::token(node))
}

/// The key that signs a role's users, among the roots.
fn of_role(role: Role) -> String {
    format!("roles/{}", role.name())
}

fn key_file(folder: &Path, name: &str) -> PathBuf {
    folder.join("keys").join(format!("{name}.seed"))
}
