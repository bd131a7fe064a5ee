//! TLS between machines: who serves, who dials, and what a connection proves.
//!
//! ```text
//! Config --> Tls --listen--> Incoming     connections with what their client's certificate says (ConnectInfo)
//!              \---connector--> Connector  dials a role: whoever has that role's certificate, whatever its address
//! ```
//!
//! Certificates are those of a mesh's own authority, and name what their holder is ([`Name`]): a service by its role, a node by
//! its project and its name. So a cache is believed for being one, and not for its address, which changes as machines come and go.
//! Files are read again when they change; connections that stand stay as they are.
//!
//! Without certificates only this machine's own addresses are served and dialled, unless [`Config::insecure`] says otherwise.

mod address;
mod client;
mod files;
mod peer;
pub mod sealing;
mod server;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

pub use address::is_this_machine;
pub use client::{Connector, nats_config};
pub use peer::{Invalid, Name, Peer, fingerprint};
pub use server::{Clients, ConnectInfo, Connection, Incoming, connection_of};

use files::Files;

/// 1 for each part that speaks to other machines without TLS, as `insecure` allows.
const INSECURE: &str = "sluice_insecure";

/// The `tls` section.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// PEM certificates of the authority whose certificates are believed.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate, and the authority's after it, as PEM.
    pub certificate_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// Without certificates, speak to other machines all the same: for networks that nobody else can reach.
    pub insecure: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("tls.ca_file, tls.certificate_file and tls.key_file need each other")]
    Incomplete,
    #[error("reading {path}: {cause}", path = .path.display())]
    Read { path: PathBuf, cause: std::io::Error },
    #[error("{path} cannot be used: {reason}", path = .path.display())]
    Unusable { path: PathBuf, reason: String },
    #[error(
        "{what} would speak to other machines without TLS ({address}): set {section}.ca_file, certificate_file and key_file \
         (`sluice keys init` makes them), or {section}.insecure = true on a network that nobody else can reach"
    )]
    Insecure { what: &'static str, section: &'static str, address: String },
}

/// How this process speaks to other machines. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    files: Option<Arc<Files>>,
    insecure: bool,
}

impl Config {
    pub fn open(&self) -> Result<Tls, Error> {
        let files = match (&self.ca_file, &self.certificate_file, &self.key_file) {
            (Some(ca), Some(certificate), Some(key)) => {
                Some(Arc::new(Files::open(ca, Some((certificate, key)))?))
            }
            (None, None, None) => None,
            _ => return Err(Error::Incomplete),
        };
        Ok(Tls { files, insecure: self.insecure })
    }
}

impl Tls {
    pub fn is_on(&self) -> bool {
        self.files.is_some()
    }

    /// Whether plain connections to other machines are allowed.
    pub fn is_insecure(&self) -> bool {
        self.files.is_none() && self.insecure
    }

    /// What our own certificate proves; none without one.
    pub fn own(&self) -> Option<Arc<Peer>> {
        self.files.as_ref().and_then(|files| files.current().own.clone())
    }

    /// Whether those who believe the same authority would believe our certificate at that time.
    pub fn counts_at(&self, at: SystemTime) -> Result<(), Error> {
        self.files.as_ref().map_or(Ok(()), |files| files.counts_at(at))
    }

    /// How addresses of what is served here begin.
    pub fn scheme(&self) -> &'static str {
        if self.is_on() { "https" } else { "http" }
    }

    /// Connections to `listener`. An error where it can be reached from other machines and there are no certificates.
    pub fn listen(
        &self,
        what: &'static str,
        listener: TcpListener,
        clients: Clients,
    ) -> Result<Incoming, Error> {
        self.allow_listening(what, "tls", &listener)?;
        Ok(server::incoming(listener, self.files.clone(), clients, server::PROTOCOL))
    }

    /// The same for HTTP/1.1, from whoever believes our certificate; `section` of the configuration has it.
    pub fn listen_http(
        &self,
        what: &'static str,
        section: &'static str,
        listener: TcpListener,
    ) -> Result<Incoming, Error> {
        self.allow_listening(what, section, &listener)?;
        Ok(server::incoming(listener, self.files.clone(), Clients::Any, server::HTTP))
    }

    /// Dials those who have the certificate of `role`.
    pub fn connector(&self, role: &'static str) -> Connector {
        Connector::to_role(self.files.clone(), self.insecure, role)
    }

    /// Whether `url` may be dialled as it stands.
    pub fn allows(&self, what: &'static str, url: &str) -> Result<(), Error> {
        match is_this_machine(url) || url.starts_with("https://") {
            true => Ok(()),
            false => self.allow_insecure(what, "tls", url),
        }
    }

    fn allow_listening(
        &self,
        what: &'static str,
        section: &'static str,
        listener: &TcpListener,
    ) -> Result<(), Error> {
        if self.files.is_some() {
            return Ok(());
        }
        let address = listener.local_addr().map(|address| address.ip());
        if address.as_ref().is_ok_and(|ip| ip.is_loopback()) {
            return Ok(());
        }
        let address = address.map_or_else(|error| error.to_string(), |ip| ip.to_string());
        self.allow_insecure(what, section, &address)
    }

    fn allow_insecure(&self, what: &'static str, section: &'static str, address: &str) -> Result<(), Error> {
        if !self.insecure {
            return Err(Error::Insecure { what, section, address: address.to_owned() });
        }
        report_insecure(what);
        Ok(())
    }
}

/// Says in a metric and in the log that `what` speaks to other machines without TLS.
pub fn report_insecure(what: &'static str) {
    metrics::gauge!(INSECURE, "what" => what).set(1.0);
    tracing::warn!(what, "speaks to other machines without TLS, as `insecure` allows");
}
