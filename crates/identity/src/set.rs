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
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use nkeys::KeyPair;
use proto::{Role, speaker};
use serde::{Deserialize, Serialize};
use tls::Name;

use crate::config::{CA, CERTIFICATE, CREDENTIALS, KEY, Snippet, nats_server};
use crate::jwt::{self, Scope};
use crate::own::Given;
use crate::token::Tokens;
use crate::{Authority, IDENTITY, NATS, NODE_LIFE, SERVICE_LIFE, files, now_unix, permissions};

const MANIFEST: &str = "mesh.json";
const AUTHORITY: &str = "authority";
const ISSUER: &str = "issuer.json";
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

/// What the identity service works with.
#[derive(Debug, Serialize, Deserialize)]
struct IssuerFile {
    account: String,
    nats_url: String,
    trusted_keys: Vec<String>,
    seed: String,
}

/// Gives nodes their identities.
pub struct Issuer {
    folder: PathBuf,
    authority: Authority,
    signer: KeyPair,
    file: IssuerFile,
}

#[derive(Debug)]
pub struct Set {
    folder: PathBuf,
    manifest: Manifest,
}

/// Services that have users in NATS.
fn services() -> impl Iterator<Item = Role> {
    Role::ALL.into_iter().filter(|role| !matches!(role, Role::Frontend | Role::Operator))
}

impl Set {
    /// Makes everything. The folder must not hold a set already.
    pub fn init(folder: &Path, options: &Options) -> anyhow::Result<Set> {
        let folder = std::path::absolute(folder).context("finding the folder")?;
        if folder.join(MANIFEST).exists() {
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
        };
        let mut set = Set { folder, manifest };
        set.write_system_user(&system)?;
        set.rotate(None)?;
        set.add_operator(OPERATOR)?;
        Ok(set)
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

    fn write_user(
        &mut self,
        folder: &Path,
        role: Role,
        name: &str,
        projects: &[String],
        kind: Kind,
    ) -> anyhow::Result<()> {
        let signer = self.key(&of_role(role))?;
        let user = KeyPair::new_user();
        let expires_unix = now_unix() + SERVICE_LIFE.as_secs();
        let tokens: Vec<String> = projects.iter().map(|project| speaker::token(project)).collect();
        let (account, public) = (&self.manifest.account, user.public_key());
        let jwt = jwt::scoped_user(&signer, account, &speaker::token(name), &public, &tokens, expires_unix)?;
        files::write(&folder.join(CREDENTIALS), jwt::credentials(&jwt, &user.seed()?))?;
        let known = self.manifest.entries.iter().position(|entry| entry.name == name);
        let mut entry = match known {
            Some(place) => self.manifest.entries.remove(place),
            None => Entry {
                name: name.to_owned(),
                kind,
                projects: Vec::new(),
                nats_keys: Vec::new(),
                expires_unix: 0,
                revoked_unix: None,
            },
        };
        remember(&mut entry.nats_keys, public);
        (entry.projects, entry.expires_unix, entry.revoked_unix) = (projects.to_vec(), expires_unix, None);
        self.manifest.entries.push(entry);
        Ok(())
    }

    fn write_certificate(&self, authority: &Authority, folder: &Path, names: &[Name]) -> anyhow::Result<()> {
        let hosts: Vec<String> = LOCAL
            .into_iter()
            .map(str::to_owned)
            .chain(self.manifest.hosts.iter().cloned())
            .chain(names.iter().filter_map(|name| match name {
                Name::Service(role) => Some(role.clone()),
                Name::Node { .. } => None,
            }))
            .collect();
        let is_node = names.iter().any(|name| matches!(name, Name::Node { .. }));
        let hosts: &[String] = if is_node { &[] } else { &hosts };
        let (certificate, key) = authority.issue(names, hosts, SERVICE_LIFE)?;
        files::write(&folder.join(CA), authority.pem())?;
        files::write(&folder.join(CERTIFICATE), certificate)?;
        files::write(&folder.join(KEY), key)
    }

    fn write_snippet(
        &self,
        folder: &Path,
        file: &str,
        role: &str,
        node: Option<(&str, &[String])>,
    ) -> anyhow::Result<()> {
        let trusted_keys = [self.trusted_key()?];
        let stands = self.base().join(folder.strip_prefix(&self.folder).unwrap_or(folder));
        let nats_url = &self.manifest.nats_url;
        let snippet = Snippet { folder: &stands, role, nats_url, trusted_keys: &trusted_keys, node };
        let mut text = snippet.text();
        if role == IDENTITY {
            let (here, there) = (stands.join(AUTHORITY), self.base().join(AUTHORITY));
            text = text.replace(&here.display().to_string(), &there.display().to_string());
        }
        files::write(&folder.join(format!("{file}.toml")), text)
    }

    fn write_system_user(&self, system: &KeyPair) -> anyhow::Result<()> {
        let user = KeyPair::new_user();
        let jwt = jwt::system_user(system, "sluice-keys", &user.public_key())?;
        let path = self.folder.join("keys").join("system.creds");
        files::write(&path, jwt::credentials(&jwt, &user.seed()?))
    }

    fn write_issuer(&self) -> anyhow::Result<()> {
        let file = IssuerFile {
            account: self.manifest.account.clone(),
            nats_url: self.manifest.nats_url.clone(),
            trusted_keys: vec![self.trusted_key()?],
            seed: self.key(&of_role(Role::Frontend))?.seed()?,
        };
        files::write_json(&self.folder.join(AUTHORITY).join(ISSUER), &file)
    }

    fn account(&self) -> anyhow::Result<String> {
        let scopes: anyhow::Result<Vec<Scope>> = Role::ALL
            .into_iter()
            .map(|role| {
                let key = self.key(&of_role(role))?.public_key();
                Ok(Scope { role: role.name().to_owned(), key, permissions: permissions(role) })
            })
            .collect();
        let Manifest { name, account, revoked, .. } = &self.manifest;
        jwt::account(&self.key("operator")?, name, account, &scopes?, revoked)
    }

    fn write_nats(&self) -> anyhow::Result<()> {
        let operator = self.key("operator")?;
        let Manifest { name, system_account, account, .. } = &self.manifest;
        let accounts = [
            (account.clone(), self.account()?),
            (system_account.clone(), jwt::system_account(&operator, system_account)?),
        ];
        let operator = jwt::operator(&operator, name, system_account)?;
        let folder = self.folder.join("nats");
        // Servers keep what they are told while they run.
        for place in ["accounts", "jetstream"] {
            lifecycle::private::make(&folder.join(place))?;
        }
        files::write(&folder.join("nats-server.conf"), nats_server(self, &self.base(), &operator, &accounts))
    }

    fn base(&self) -> PathBuf {
        self.manifest.at.clone().unwrap_or_else(|| self.folder.clone())
    }

    fn key(&self, name: &str) -> anyhow::Result<KeyPair> {
        let file = key_file(&self.folder, name);
        KeyPair::from_seed(files::read(&file)?.trim()).with_context(|| format!("reading {}", file.display()))
    }

    fn save(&self) -> anyhow::Result<()> {
        files::write_json(&self.folder.join(MANIFEST), &self.manifest)
    }
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    pub(crate) fn options() -> Options {
        Options {
            name: "test".to_owned(),
            hosts: Vec::new(),
            nats_url: "tls://127.0.0.1:4222".to_owned(),
            listen: "127.0.0.1:4222".to_owned(),
            at: None,
        }
    }

    fn all_files(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { all_files(&path) } else { vec![path] }).collect()
    }

    #[test]
    fn a_set_is_its_owners_alone_and_made_once() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("mesh");
        let set = Set::init(&folder, &options()).unwrap();
        for file in all_files(&folder) {
            let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", file.display());
        }
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(Set::init(&folder, &options()).unwrap_err().to_string().contains("already"));
        let names: Vec<String> = set.entries().unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["fetcher", "cache", "policy", "quota", "events", "operator"]);
    }

    #[test]
    fn what_is_rotated_is_another_and_what_is_revoked_is_named() {
        let base = tempfile::tempdir().unwrap();
        let mut set = Set::init(base.path(), &options()).unwrap();
        let read = |name: &str| fs::read_to_string(base.path().join(name)).unwrap();
        let before = [read("services/cache/tls.pem"), read("services/cache/nats.creds")];
        assert_eq!(set.rotate(Some("cache")).unwrap(), ["cache"]);
        let after = [read("services/cache/tls.pem"), read("services/cache/nats.creds")];
        assert!(before.iter().zip(&after).all(|(before, after)| before != after));
        assert!(set.rotate(Some("nobody")).is_err());
        set.add_node("n1", &["default".to_owned()]).unwrap();
        set.revoke("n1").unwrap();
        assert!(set.revoke("n2").is_err());
        let set = Set::open(base.path()).unwrap();
        let entry = set.entries().unwrap().into_iter().find(|entry| entry.name == "n1").unwrap();
        assert!(entry.revoked_unix.is_some());
        assert_eq!(set.manifest.revoked[0].0, entry.nats_keys[0]);
    }

    #[test]
    fn an_issuer_gives_what_the_set_lists_and_revokes() {
        let base = tempfile::tempdir().unwrap();
        let mut set = Set::init(&base.path().join("mesh"), &options()).unwrap();
        let issuer = Issuer::open(&set.folder().join(AUTHORITY)).unwrap();
        let own = crate::Own::open(&base.path().join("node")).unwrap();
        let given = issuer.give("n1", &["p".to_owned()], own.key(), &own.nats_key()).unwrap();
        own.keep(&given).unwrap();
        let kept = crate::Own::given(&base.path().join("node")).unwrap().unwrap();
        assert_eq!((kept.node.as_str(), kept.expires_unix), ("n1", given.expires_unix));
        assert!(kept.renew_at_unix() < kept.expires_unix && kept.renew_at_unix() > kept.given_unix);
        assert!(!issuer.is_revoked("n1"));
        set.revoke("n1").unwrap();
        assert!(issuer.is_revoked("n1"));
        assert!(set.manifest.revoked.iter().any(|(key, _)| *key == own.nats_key()));
        // Its certificate names it, and counts for dialling with its own key.
        let tls = tls::Config {
            ca_file: Some(base.path().join("node/ca.pem")),
            certificate_file: Some(base.path().join("node/tls.pem")),
            key_file: Some(base.path().join("node/tls.key")),
            insecure: false,
        };
        assert!(tls.open().unwrap().own().unwrap().is_node("p", "n1"));
    }
}
