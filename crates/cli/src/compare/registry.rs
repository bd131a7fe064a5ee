//! A private registry on loopback, and the image copied into it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use names::ImageName;
use proto::Platform;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use super::process::{self, Server};

/// The name of the copy; containerd and the fetcher see it.
const NAME: &str = "compare:latest";

/// Starts of a registry, each with another port.
const ATTEMPTS: u32 = 3;

#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    skopeo: PathBuf,
    _server: Server,
}

impl Registry {
    pub async fn start(folder: &Path) -> anyhow::Result<Registry> {
        let program = process::find("docker-registry", "docker-registry")?;
        let skopeo = process::find("skopeo", "skopeo")?;
        std::fs::create_dir_all(folder)?;
        let mut attempt = 1;
        let (address, server) = loop {
            match Registry::serve(&program, folder).await {
                Ok(served) => break served,
                // Somebody else may have taken the port meanwhile.
                Err(error) if attempt < ATTEMPTS => {
                    tracing::debug!(error = %format!("{error:#}"), "start again")
                }
                Err(error) => return Err(error),
            }
            attempt += 1;
        };
        Ok(Registry { address, skopeo, _server: server })
    }

    async fn serve(program: &Path, folder: &Path) -> anyhow::Result<(SocketAddr, Server)> {
        let address = free_address().await?;
        let config = folder.join("config.yml");
        std::fs::write(&config, configuration(folder, address))?;
        let mut command = Command::new(program);
        command.arg("serve").arg(&config);
        let mut server = Server::spawn("the private registry", command, folder.join("log"))?;
        server.wait_until(async || TcpStream::connect(address).await.is_ok()).await?;
        Ok((address, server))
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Copies `image`'s manifest of `platform`, layers as they are; its name here.
    pub async fn copy(&self, image: &str, platform: &Platform) -> anyhow::Result<String> {
        let from = match image.parse::<ImageName>()?.is_local() {
            true => image.to_owned(),
            false => format!("docker://{image}"),
        };
        let mut command = Command::new(&self.skopeo);
        command.args([
            "--insecure-policy",
            "--override-os",
            &platform.os,
            "--override-arch",
            &platform.architecture,
        ]);
        if !platform.variant.is_empty() {
            command.args(["--override-variant", &platform.variant]);
        }
        command.args(["copy", "--quiet", "--dest-tls-verify=false", &from]);
        command.arg(format!("docker://{}/{NAME}", self.address));
        process::output(&format!("copy {image} to a private registry"), &mut command).await?;
        Ok(NAME.to_owned())
    }
}

/// The registry cannot pick a port itself.
async fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("find a free port")?;
    Ok(listener.local_addr()?)
}

fn configuration(folder: &Path, address: SocketAddr) -> String {
    let storage = folder.join("storage");
    format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {storage:?}}}}}\n\
         http: {{addr: \"{address}\"}}\n"
    )
}
