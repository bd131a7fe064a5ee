//! What the operator's folder holds ready: the configuration of nats-server, and what each service must be told.

use std::fmt::Write as _;
use std::path::Path;

use proto::{Role, speaker};

use crate::{IDENTITY, Set};

/// The names of files beside each other in an identity's folder.
pub(crate) const CA: &str = "ca.pem";
pub(crate) const CERTIFICATE: &str = "tls.pem";
pub(crate) const KEY: &str = "tls.key";
pub(crate) const CREDENTIALS: &str = "nats.creds";

/// Settings of one service, to be read with `--config`.
#[derive(Clone, Debug)]
pub struct Snippet<'a> {
    /// Where the service finds its files.
    pub folder: &'a Path,
    pub role: &'a str,
    pub nats_url: &'a str,
    /// Public keys of fetchers, in hex.
    pub trusted_keys: &'a [String],
    /// Of a node: its name and its projects.
    pub node: Option<(&'a str, &'a [String])>,
}

/// Certificate and key, as settings name them.
const PAIR: [(&str, &str); 3] = [("ca_file", CA), ("certificate_file", CERTIFICATE), ("key_file", KEY)];

impl Snippet<'_> {
    pub fn text(&self) -> String {
        let mut text = format!("# Access for {}, made by `sluice keys`.\n", self.role);
        let trusted = format!("trusted_keys = {:?}\n", self.trusted_keys);
        let role = Role::from_name(self.role);
        // Keys of the whole file stand before all sections.
        if role == Some(Role::Operator) {
            text += &trusted;
        }
        if self.role != IDENTITY {
            text += &self.nats("nats");
        }
        match role {
            Some(Role::Fetcher) => text += &self.signing_key(),
            Some(Role::Cache) => text += &format!("\n[cache]\n{trusted}"),
            Some(Role::Frontend) => {
                text += &format!("\n[frontend]\n{trusted}");
                if let Some((node, _)) = self.node {
                    text += &format!("node = {node:?}\n");
                }
            }
            _ => {}
        }
        match self.role {
            IDENTITY => text += &self.tls("tls"),
            "cache" => text += &self.tls("cache.tls"),
            "frontend" => text += &self.tls("frontend.tls"),
            _ => {}
        }
        if self.role == IDENTITY {
            text += &format!("\n[identity]\nauthority = {}\n", self.file("authority"));
        }
        text
    }

    fn file(&self, name: &str) -> String {
        format!("{:?}", self.folder.join(name).display().to_string())
    }

    /// How NATS is reached, as a section of this name.
    pub(crate) fn nats(&self, section: &str) -> String {
        let name = self.node.map_or(self.role, |node| node.0);
        let mut text = format!("\n[{section}]\nurl = {:?}\nname = {name:?}\n", self.nats_url);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "credentials_file = {}", self.file(CREDENTIALS));
        for (key, name) in PAIR {
            let _ = writeln!(text, "{key} = {}", self.file(name));
        }
        if let Some(role) = Role::from_name(self.role) {
            let _ = writeln!(text, "inbox_prefix = {:?}", speaker::inbox(role));
        }
        if let Some((node, projects)) = self.node {
            let _ = writeln!(text, "node = {node:?}\nprojects = {projects:?}");
        }
        text
    }

    pub(crate) fn tls(&self, section: &str) -> String {
        let lines = PAIR.map(|(key, name)| format!("{key} = {}\n", self.file(name)));
        format!("\n[{section}]\n{}", lines.concat())
    }

    pub(crate) fn signing_key(&self) -> String {
        format!("\n[fetcher]\nsigning_key_file = {}\n", self.file("fetcher.key"))
    }
}

/// The configuration of each NATS server of the mesh. `base`: where the folder stands on its machine.
pub(crate) fn nats_server(set: &Set, base: &Path, operator: &str, accounts: &[(String, String)]) -> String {
    let file = |name: &str| format!("{:?}", base.join("nats").join(name).display().to_string());
    let mut preload = String::new();
    for (account, jwt) in accounts {
        let _ = writeln!(preload, "  {account}: {jwt}");
    }
    let system = &set.manifest().system_account;
    format!(
        "# Made by `sluice keys`, which writes it anew: put changes into a file of your own that includes this one.\n\
         listen: {listen:?}\n\
         jetstream {{ store_dir: {store} }}\n\
         tls {{\n  cert_file: {certificate}\n  key_file: {key}\n  ca_file: {ca}\n  verify: true\n  timeout: 5\n}}\n\
         operator: {operator}\n\
         system_account: {system}\n\
         resolver {{ type: full, dir: {resolver}, allow_delete: false, interval: \"2m\" }}\n\
         resolver_preload {{\n{preload}}}\n",
        listen = set.manifest().listen,
        store = file("jetstream"),
        certificate = file(CERTIFICATE),
        key = file(KEY),
        ca = file(CA),
        resolver = file("accounts"),
    )
}
