//! The normal way: a private containerd pulls, unpacks and mounts.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use proto::Platform;
use rustix::mount::{UnmountFlags, unmount};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::Instant;

use super::process::{self, Server};
use super::report::{Processor, Start};
use super::start::{Starter, drop_caches};
use crate::link::Link;
use crate::runtime::ImageConfig;

/// What a pull does not need; the CRI plugin wants a network configuration.
const DISABLED: &str =
    r#"["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing"]"#;

pub fn check_installed() -> anyhow::Result<()> {
    process::find("containerd", "containerd")?;
    process::find("ctr", "containerd").map(|_| ())
}

/// Pulls `reference` through `link` into an empty containerd and starts the image.
pub async fn start(
    folder: &Path,
    reference: &str,
    platform: &Platform,
    link: &Link,
    config: &ImageConfig,
    starter: &Starter,
) -> anyhow::Result<Start> {
    let containerd = Containerd::start(folder).await?;
    let root = folder.join("rootfs");
    std::fs::create_dir(&root)?;
    drop_caches().await?;
    let (processor, before) = (Processor::now(), link.counters());
    let asked = Instant::now();
    containerd.pull(reference, platform).await?;
    let pulled = Instant::now();
    let mount = containerd.mount(reference, &root).await?;
    let started =
        starter.start("normal", &root, &folder.join("bundle"), config).await.context("normal start")?;
    let (moved, processor) = (link.counters().since(before), processor.spent());
    let start = Start::new(asked, pulled, &started, moved, processor);
    drop(started);
    drop(mount);
    Ok(start)
}

#[derive(Debug)]
struct Containerd {
    ctr: PathBuf,
    socket: PathBuf,
    _server: Server,
}

impl Containerd {
    async fn start(folder: &Path) -> anyhow::Result<Containerd> {
        let (program, ctr) =
            (process::find("containerd", "containerd")?, process::find("ctr", "containerd")?);
        std::fs::create_dir_all(folder)?;
        let (file, socket) = (folder.join("containerd.toml"), folder.join("containerd.sock"));
        std::fs::write(&file, configuration(folder, &socket))?;
        let mut command = Command::new(program);
        command.arg("--config").arg(&file);
        let mut server = Server::spawn("the private containerd", command, folder.join("containerd.log"))?;
        server.wait_until(async || UnixStream::connect(&socket).await.is_ok()).await?;
        let containerd = Containerd { ctr, socket, _server: server };
        // The socket accepts before the services are registered.
        containerd.run("speak to the private containerd", &["version"]).await?;
        Ok(containerd)
    }

    async fn pull(&self, reference: &str, platform: &Platform) -> anyhow::Result<()> {
        let mut platform_name = format!("{}/{}", platform.os, platform.architecture);
        if !platform.variant.is_empty() {
            platform_name = format!("{platform_name}/{}", platform.variant);
        }
        let words = [
            "images",
            "pull",
            "--plain-http",
            "--snapshotter",
            "overlayfs",
            "--platform",
            &platform_name,
            reference,
        ];
        self.run(&format!("pull {reference} with containerd"), &words).await
    }

    async fn mount(&self, reference: &str, root: &Path) -> anyhow::Result<Mount> {
        let target = root.display().to_string();
        let words = ["images", "mount", "--rw", "--snapshotter", "overlayfs", reference, &target];
        self.run(&format!("mount {reference} with containerd"), &words).await?;
        Ok(Mount(root.to_owned()))
    }

    async fn run(&self, what: &str, words: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new(&self.ctr);
        command.arg("--address").arg(&self.socket).args(words);
        process::output(what, &mut command).await.map(|_| ())
    }
}

/// A mount of somebody else's making that is ours to end.
#[derive(Debug)]
pub(super) struct Mount(pub(super) PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            tracing::debug!(path = %self.0.display(), error = %error, "unmount");
        }
    }
}

fn configuration(folder: &Path, socket: &Path) -> String {
    let (root, state) = (folder.join("root"), folder.join("state"));
    format!(
        "version = 2\nroot = {root:?}\nstate = {state:?}\ndisabled_plugins = {DISABLED}\n[grpc]\naddress = {socket:?}\n"
    )
}
