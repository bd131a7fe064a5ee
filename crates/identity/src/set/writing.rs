//! The files of a set.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nkeys::KeyPair;
use proto::{Role, speaker};
use tls::Name;

use super::issuer::IssuerFile;
use super::{
    AUTHORITY, Entry, Kind, LOCAL, MANIFEST, Manifest, OPERATOR, SERVE, Set, key_file, of_role, remember,
    services,
};
use crate::config::{CA, CERTIFICATE, CREDENTIALS, KEY, Snippet, nats_server};
use crate::jwt::{self, Scope};
use crate::{Authority, IDENTITY, SERVICE_LIFE, files, now_unix, permissions};

impl Set {
    pub(super) fn write_user(
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

    pub(super) fn write_certificate(
        &self,
        authority: &Authority,
        folder: &Path,
        names: &[Name],
    ) -> anyhow::Result<()> {
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

    pub(super) fn write_snippet(
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

    /// Settings for all services in one process: as whom each speaks, and what those need that serve others. What commands read of
    /// them is the operator's own.
    pub(super) fn write_serve(&self) -> anyhow::Result<()> {
        let (base, trusted_keys) = (self.base(), [self.trusted_key()?]);
        let served = self.manifest.serves.as_ref();
        let served = served.and_then(|node| self.manifest.entries.iter().find(|entry| entry.name == *node));
        let folder_of = |role: &str| match role {
            "operator" => base.join("operators").join(OPERATOR),
            "frontend" => base.join("nodes").join(served.map_or("", |entry| entry.name.as_str())),
            service => base.join("services").join(service),
        };
        let with = |role: &str, write: &dyn Fn(&Snippet<'_>) -> String| {
            let node = served.filter(|_| role == Role::Frontend.name());
            let node = node.map(|entry| (entry.name.as_str(), entry.projects.as_slice()));
            let (folder, nats_url) = (folder_of(role), &*self.manifest.nats_url);
            write(&Snippet { folder: &folder, role, nats_url, trusted_keys: &trusted_keys, node })
        };
        let mut text = "# All services in one process: `sluice --config THIS serve`. Of the same settings commands take the operator's.\n"
            .to_owned();
        if let Some(project) = served.and_then(|entry| entry.projects.first()) {
            text += &format!("project = {project:?}\n");
        }
        text += &with(Role::Operator.name(), &|operator| operator.text());
        text += &with(Role::Fetcher.name(), &|fetcher| fetcher.signing_key());
        text += &with(Role::Cache.name(), &|cache| cache.tls("cache.tls"));
        if let Some(entry) = served {
            text += &format!("\n[frontend]\nnode = {:?}\n", entry.name);
            text += &with(Role::Frontend.name(), &|frontend| frontend.tls("frontend.tls"));
        }
        for role in services().chain(served.map(|_| Role::Frontend)) {
            text += &with(role.name(), &|service| service.nats(&format!("serve.nats.{}", role.name())));
        }
        let authority = base.join(AUTHORITY).display().to_string();
        text += &format!("\n[serve.identity]\nauthority = {authority:?}\n");
        text += &with(IDENTITY, &|identity| identity.tls("serve.identity.tls"));
        files::write(&self.folder.join(SERVE), text)
    }

    pub(super) fn write_system_user(&self, system: &KeyPair) -> anyhow::Result<()> {
        let user = KeyPair::new_user();
        let jwt = jwt::system_user(system, "sluice-keys", &user.public_key())?;
        let path = self.folder.join("keys").join("system.creds");
        files::write(&path, jwt::credentials(&jwt, &user.seed()?))
    }

    pub(super) fn write_issuer(&self) -> anyhow::Result<()> {
        let file = IssuerFile {
            account: self.manifest.account.clone(),
            nats_url: self.manifest.nats_url.clone(),
            trusted_keys: vec![self.trusted_key()?],
            seed: self.key(&of_role(Role::Frontend))?.seed()?,
        };
        files::write_json(&self.folder.join(AUTHORITY).join(super::issuer::ISSUER), &file)
    }

    pub(super) fn account(&self) -> anyhow::Result<String> {
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

    pub(super) fn write_nats(&self) -> anyhow::Result<()> {
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

    pub(super) fn key(&self, name: &str) -> anyhow::Result<KeyPair> {
        let file = key_file(&self.folder, name);
        KeyPair::from_seed(files::read(&file)?.trim()).with_context(|| format!("reading {}", file.display()))
    }

    pub(super) fn save(&self) -> anyhow::Result<()> {
        files::write_json(&self.folder.join(MANIFEST), &self.manifest)
    }
}
