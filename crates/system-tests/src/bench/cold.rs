//! A node that has nothing yet.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use testkit::containerd::{Annotations, Setup, Version};
use testkit::{Containerd, Server};

use super::site::Site;
use crate::cri::{Cri, Pod};
use crate::{Scratch, binaries};

/// What unpacks or streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snapshotter {
    Overlayfs,
    Sluice,
}

/// A frontend in a folder of its own.
#[derive(Debug)]
pub struct Frontend {
    server: Server,
    settings: Vec<String>,
    folder: PathBuf,
}

impl Frontend {
    pub fn start(site: &Site, folder: &Path, settings: &[&str]) -> anyhow::Result<Frontend> {
        let state = folder.join("state");
        let own = [
            format!("nats.url=nats://127.0.0.1:{}", site.nats_port),
            format!("frontend.state={}", state.display()),
            format!("frontend.socket={}", folder.join("node.sock").display()),
            format!("frontend.snapshotter={}", Frontend::socket_in(folder).display()),
            format!("frontend.trusted_keys=[\"{}\"]", site.backend.key),
        ];
        let settings: Vec<String> =
            own.into_iter().chain(settings.iter().map(|setting| (*setting).to_owned())).collect();
        let server = serve(&settings, folder)?;
        Ok(Frontend { server, settings, folder: folder.to_owned() })
    }

    /// Where one that is started in this folder answers containerd.
    pub fn socket_in(folder: &Path) -> PathBuf {
        folder.join("snapshotter.sock")
    }

    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.server.kill()
    }

    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.server = serve(&self.settings, &self.folder)?;
        Ok(())
    }

    pub fn log(&self) -> String {
        self.server.log()
    }
}

fn serve(settings: &[String], folder: &Path) -> anyhow::Result<Server> {
    let mut command = Command::new(binaries::path("frontend")?);
    command.args(settings.iter().flat_map(|setting| ["--set", setting]));
    let mut server = Server::spawn(command, &folder.join("frontend.log"), "a binary of this workspace")?;
    let socket = Frontend::socket_in(folder);
    server.wait_until("the frontend", || std::os::unix::net::UnixStream::connect(&socket).is_ok())?;
    Ok(server)
}

/// containerd with a pod in it, as the kubelet has one before it pulls anything for it.
#[derive(Debug)]
pub struct Cold {
    pub cri: Cri,
    pub pod: Pod,
    /// For containers that are to have one each: a shim serves a pod, and waits with many containers at once.
    more: Vec<Pod>,
    containerd: Containerd,
    pub frontend: Option<Frontend>,
    scratch: Scratch,
}

impl Cold {
    pub fn start(site: &Site, snapshotter: Snapshotter, settings: &[&str]) -> anyhow::Result<Cold> {
        let scratch = Scratch::new()?;
        let (logs, hosts) = (scratch.mount_point("logs")?, scratch.path("hosts"));
        lead_through_link(&hosts, site)?;
        let streams = snapshotter == Snapshotter::Sluice;
        let folder = scratch.path("");
        let frontend = streams.then(|| Frontend::start(site, &folder, settings)).transpose()?;
        let setup = Setup {
            version: Version::chosen(),
            snapshotter: streams.then(|| Frontend::socket_in(&folder)),
            annotations: Annotations::On,
            sandbox_image: site.pause.clone(),
            hosts: Some(hosts),
        };
        let containerd = Containerd::start(&scratch.path("containerd"), &setup)?;
        let cri = Cri::connect(&containerd.socket())?;
        let before = site.pulled()?;
        let pod = cri.pod_that_logs("pod", &logs)?;
        ensure!(site.pulled()? > before, "containerd goes around the simulated link: {}", containerd.log());
        Ok(Cold { cri, pod, more: Vec::new(), containerd, frontend, scratch })
    }

    /// Pods, as many as wanted.
    pub fn pods(&mut self, wanted: usize) -> anyhow::Result<Vec<Pod>> {
        for number in self.more.len() + 1..wanted {
            self.more.push(self.cri.pod_that_logs(&format!("pod-{number}"), &self.scratch.path("logs"))?);
        }
        Ok([&self.pod].into_iter().chain(&self.more).cloned().collect())
    }

    pub fn frontend(&mut self) -> anyhow::Result<&mut Frontend> {
        self.frontend.as_mut().context("no frontend runs on this node")
    }

    /// Where a container's output goes.
    pub fn log_of(&self, container: &str) -> PathBuf {
        self.scratch.path("logs").join(container)
    }

    /// The root file system of a container, by its id.
    pub fn root_of(&self, id: &str) -> PathBuf {
        self.containerd.state().join("io.containerd.runtime.v2.task/k8s.io").join(id).join("rootfs")
    }

    /// What containerd and sluice said, for an error.
    pub fn logs(&self) -> String {
        [self.containerd.log(), self.frontend.as_ref().map(Frontend::log).unwrap_or_default()].concat()
    }
}

impl Drop for Cold {
    fn drop(&mut self) {
        // As the kubelet does it: many containers that are killed under containerd's eyes take it a second each.
        for pod in [&self.pod].into_iter().chain(&self.more) {
            let _ = self.cri.remove_pod(pod);
        }
    }
}

/// containerd reaches the registry through the link, under the name that it has everywhere.
fn lead_through_link(hosts: &Path, site: &Site) -> anyhow::Result<()> {
    let folder = hosts.join(site.registry.host());
    std::fs::create_dir_all(&folder)?;
    let link = format!("http://127.0.0.1:{}", site.registry_port);
    // containerd 1.6 reads no file without a host, and no error of it ends a pull: hence the look at the link in `start`.
    let text = format!("server = {link:?}\n[host.{link:?}]\ncapabilities = [\"pull\", \"resolve\"]\n");
    Ok(std::fs::write(folder.join("hosts.toml"), text)?)
}

/// Empties the page cache and the kernel's caches of names and inodes.
pub fn drop_caches() -> anyhow::Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("drop the machine's caches")
}
