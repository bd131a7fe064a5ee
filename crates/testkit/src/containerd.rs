//! A containerd of its own, with its CRI plugin, in a folder of its own.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::{Server, tools};

const PACKAGE: &str = "Debian's package `containerd`";

/// Which containerd. `scripts/setup-newer` fetches those of newer releases of Debian, `scripts/setup-containerd` builds what no
/// release has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    #[default]
    Installed,
    V1_7,
    V2,
    V2_3,
    V2_4,
}

/// Whether layers carry annotations to the snapshotter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Annotations {
    Off,
    On,
    /// By containerd 2's transfer service, which pulls where the CRI itself hands none on.
    ByTransfer,
}

/// How a containerd is to be set up.
#[derive(Clone, Debug)]
pub struct Setup {
    pub version: Version,
    /// Socket of the remote snapshotter `sluice`, which is then the default one.
    pub snapshotter: Option<PathBuf>,
    pub annotations: Annotations,
    /// The image of a pod's own process.
    pub sandbox_image: String,
    /// Folder of `HOST/hosts.toml`, which say where registries really are.
    pub hosts: Option<PathBuf>,
}

/// Ended, with what it runs, when dropped; its folder stays to whom it belongs.
#[derive(Debug)]
pub struct Containerd {
    server: Server,
    folder: PathBuf,
    version: Version,
    snapshotter: &'static str,
}

impl Version {
    /// The one that `SLUICE_CONTAINERD` says, so that every test can be run with each.
    #[expect(clippy::panic, reason = "a test that runs with another one than was asked for tests nothing")]
    pub fn chosen() -> Version {
        match std::env::var("SLUICE_CONTAINERD").as_deref() {
            Ok("1.7") => Version::V1_7,
            Ok("2") => Version::V2,
            Ok("2.3") => Version::V2_3,
            Ok("2.4") => Version::V2_4,
            Err(std::env::VarError::NotPresent) => Version::Installed,
            other => panic!("SLUICE_CONTAINERD is {other:?}, and may be 1.7, 2, 2.3 or 2.4"),
        }
    }

    /// Whether it can be run here. Those that are built may be missing, where there is no compiler for them: that is said then, past
    /// what a test prints, which nobody sees of one that passes.
    pub fn is_here(self) -> bool {
        let (Some(release), Some(folder)) = (self.built(), self.folder()) else { return true };
        let here = folder.join("containerd").exists();
        if !here {
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            let build = format!("`scripts/setup-containerd {release}` builds it, with Go");
            writeln!(std::io::stderr(), "skipped: {test} needs containerd {release}: {build}").ok();
        }
        here
    }

    /// One that no release of Debian has.
    fn built(self) -> Option<&'static str> {
        match self {
            Version::Installed | Version::V1_7 | Version::V2 => None,
            Version::V2_3 => Some("2.3"),
            Version::V2_4 => Some("2.4"),
        }
    }

    /// Where its programs are, when they are not on the path.
    fn folder(self) -> Option<PathBuf> {
        let release = match self {
            Version::Installed => return None,
            Version::V1_7 => "trixie",
            Version::V2 => "forky",
            Version::V2_3 => "containerd-2.3",
            Version::V2_4 => "containerd-2.4",
        };
        Some(tools().join(release).join("usr/bin"))
    }

    /// One of its programs; what it starts is of the same version.
    fn program(self, name: &str) -> Command {
        let Some(folder) = self.folder() else { return Command::new(name) };
        let mut command = Command::new(folder.join(name));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let first = [folder].into_iter().chain(std::env::split_paths(&path));
        // A folder of ours has no colon in its name.
        command.env("PATH", std::env::join_paths(first).unwrap_or(path.clone()));
        command
    }
}

impl Containerd {
    pub fn start(folder: &Path, setup: &Setup) -> anyhow::Result<Containerd> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("config.toml"), configuration(folder, setup))?;
        let snapshotter = if setup.snapshotter.is_some() { "sluice" } else { "overlayfs" };
        let version = setup.version;
        let server = serve(folder, version)?;
        let mut containerd = Containerd { server, folder: folder.to_owned(), version, snapshotter };
        containerd.wait()?;
        Ok(containerd)
    }

    pub fn socket(&self) -> PathBuf {
        Containerd::socket_in(&self.folder)
    }

    /// Where one that is started in this folder listens.
    pub fn socket_in(folder: &Path) -> PathBuf {
        folder.join("containerd.sock")
    }

    /// Where its shims mount the root file systems of containers.
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.server.kill()
    }

    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.server = serve(&self.folder, self.version)?;
        self.wait()
    }

    pub fn log(&self) -> String {
        self.server.log()
    }

    /// `ctr ARGUMENTS` in the namespace of Kubernetes, which must succeed; what it printed. The snapshotter is ours.
    pub fn ctr(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output =
            self.command().args(arguments).output().with_context(|| format!("starting ctr ({PACKAGE})"))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ctr {arguments:?}: {errors}\n{}", self.log());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Pulls with labels that name the image to a remote snapshotter, which Debian's `ctr` cannot.
    pub fn pull_with_labels(&self, reference: &str) -> anyhow::Result<()> {
        let mut command = self.client("ctr-remote");
        command.args(["images", "rpull", "--plain-http", "--snapshotter", self.snapshotter, reference]);
        let output = command.output();
        let output = output.context("starting ctr-remote (Debian's package `stargz-snapshotter`)")?;
        ensure!(output.status.success(), "pulling {reference}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    pub fn command(&self) -> Command {
        self.client("ctr")
    }

    fn client(&self, program: &str) -> Command {
        let mut command =
            if program == "ctr" { self.version.program(program) } else { Command::new(program) };
        command.arg("--address").arg(self.socket()).args(["--namespace", "k8s.io"]);
        command.env("CONTAINERD_SNAPSHOTTER", self.snapshotter);
        command
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        let mut probe = self.probe();
        self.server.wait_until("containerd", || probe.output().is_ok_and(|output| output.status.success()))
    }

    fn answers(&self) -> bool {
        self.probe().output().is_ok_and(|output| output.status.success())
    }

    fn probe(&self) -> Command {
        let mut probe = self.version.program("ctr");
        probe.arg("--connect-timeout").arg("2s").arg("--address").arg(self.socket()).arg("version");
        probe
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // The processes of containers outlive containerd, also one that a test killed and did not start again.
        if !self.answers() && self.restart().is_err() {
            return;
        }
        let words = ["tasks", "list", "--quiet"];
        let Ok(running) = self.ctr(&words) else { return };
        for task in running.lines() {
            let _ = self.ctr(&["tasks", "delete", "--force", task]);
        }
    }
}

fn serve(folder: &Path, version: Version) -> anyhow::Result<Server> {
    let mut command = version.program("containerd");
    command.arg("--config").arg(folder.join("config.toml"));
    Server::spawn(command, &folder.join("containerd.log"), PACKAGE)
}

fn configuration(folder: &Path, setup: &Setup) -> String {
    let (root, state, socket) = (folder.join("root"), folder.join("state"), Containerd::socket_in(folder));
    let proxy = setup.snapshotter.as_ref().map(|address| {
        format!(
            "[proxy_plugins.sluice]\ntype = \"snapshot\"\naddress = {address:?}\n\
             [proxy_plugins.sluice.exports]\nenable_remote_snapshot_annotations = \"{}\"\n",
            setup.annotations != Annotations::Off
        )
    });
    format!(
        r#"root = {root:?}
state = {state:?}
{cri}
[grpc]
address = {socket:?}
{proxy}
[plugins."io.containerd.nri.v1.nri"]
disable = true
[plugins."io.containerd.internal.v1.opt"]
path = "{opt}"
"#,
        cri = cri(setup),
        proxy = proxy.unwrap_or_default(),
        opt = folder.join("opt").display(),
    )
}

/// What Kubernetes speaks to; its plugin fell into parts with containerd 2.
fn cri(setup: &Setup) -> String {
    let snapshotter = if setup.snapshotter.is_some() { "sluice" } else { "overlayfs" };
    let (sandbox_image, no_annotations) = (&setup.sandbox_image, setup.annotations != Annotations::On);
    let hosts = setup.hosts.as_deref().unwrap_or(Path::new("")).display();
    match setup.version {
        Version::Installed | Version::V1_7 => format!(
            r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{sandbox_image}"
stream_server_port = "0"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
disable_snapshot_annotations = {no_annotations}
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{hosts}"
"#
        ),
        Version::V2 | Version::V2_3 | Version::V2_4 => format!(
            r#"version = 3
[plugins."io.containerd.cri.v1.images"]
snapshotter = "{snapshotter}"
disable_snapshot_annotations = {no_annotations}
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{sandbox_image}"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "{hosts}"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri"]
stream_server_port = "0"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "{snapshotter}"
differ = "walking"
"#
        ),
    }
}
