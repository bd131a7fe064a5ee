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

impl Snippet<'_> {
    pub fn text(&self) -> String {
        let mut text = format!("# Access for {}, made by `sluice keys`.\n", self.role);
        let file = |name: &str| format!("{:?}", self.folder.join(name).display().to_string());
        let mut line = |line: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{line}");
        };
        let trusted = format!("trusted_keys = {:?}", self.trusted_keys);
        // Keys of the whole file stand before all sections.
        if self.role == Role::Operator.name() {
            line(trusted.clone());
        }
        let pair = [("ca_file", CA), ("certificate_file", CERTIFICATE), ("key_file", KEY)];
        if self.role != IDENTITY {
            line(format!(
                "\n[nats]\nurl = {:?}\nname = {:?}",
                self.nats_url,
                self.node.map_or(self.role, |node| node.0)
            ));
            line(format!("credentials_file = {}", file(CREDENTIALS)));
            for (key, name) in pair {
                line(format!("{key} = {}", file(name)));
            }
            if let Some(role) = Role::from_name(self.role) {
                line(format!("inbox_prefix = {:?}", speaker::inbox(role)));
            }
            if let Some((node, projects)) = self.node {
                line(format!("node = {node:?}\nprojects = {projects:?}"));
            }
        }
        match Role::from_name(self.role) {
            Some(Role::Fetcher) => line(format!("\n[fetcher]\nsigning_key_file = {}", file("fetcher.key"))),
            Some(Role::Cache) => line(format!("\n[cache]\n{trusted}")),
            Some(Role::Frontend) => {
                line(format!("\n[frontend]\n{trusted}"));
                if let Some((node, _)) = self.node {
                    line(format!("node = {node:?}"));
                }
            }
            _ => {}
        }
        let section = match self.role {
            IDENTITY => Some("tls"),
            "cache" => Some("cache.tls"),
            "frontend" => Some("frontend.tls"),
            _ => None,
        };
        if let Some(section) = section {
            line(format!("\n[{section}]"));
            for (key, name) in pair {
                line(format!("{key} = {}", file(name)));
            }
        }
        if self.role == IDENTITY {
            line(format!("\n[identity]\nauthority = {}", file("authority")));
        }
        text
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
