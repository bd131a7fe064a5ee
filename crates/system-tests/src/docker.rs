//! A machine with a Docker engine: containerd, dockerd, registries and sluice, in a network of their own, and a systemctl that restarts
//! them when `sluice install` asks for it.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use testkit::{ImageSpec, LayoutWriter, Registry, Server, tools};

use crate::Scratch;
use crate::manager::Manager;

const PACKAGE: &str = "`scripts/setup-docker` fetches it";
/// How long what happens beside may take, on two busy cores.
const SETTLE_MAX: Duration = Duration::from_secs(120);
const SETTLE_POLL: Duration = Duration::from_millis(100);
/// What the engine's administrator wrote, in their own way.
pub const DAEMON_CONFIG: &str = "{\n\t\"log-level\" : \"info\",\n  \"features\": {\"buildkit\": true}\n}";

/// Writes down what it is asked, and waits until the test has done it.
const SYSTEMCTL: &str = r#"#!/bin/sh
echo "$*" > "$0.asking" && mv "$0.asking" "$0.asked"
for _ in $(seq 3000); do
    if [ -e "$0.done" ]; then status=$(cat "$0.done"); rm "$0.done"; exit "$status"; fi
    sleep 0.1
done
exit 1
"#;

/// A whole machine: what it starts ends with it.
#[derive(Debug)]
pub struct Machine {
    release: String,
    dockerd: Option<Server>,
    containerd: Option<Server>,
    sluice: Option<Server>,
    manager: Manager,
    pub registry: Registry,
    pub private: Registry,
    /// What systemctl was asked.
    pub asked: Vec<String>,
    /// How often a restart of Docker is to fail.
    pub docker_fails: u32,
    _network: Server,
    scratch: Scratch,
}

impl Machine {
    /// With the engine of `SLUICE_DOCKER`, or of 28, which keeps images as it does by itself.
    pub fn start() -> anyhow::Result<Machine> {
        let release = std::env::var("SLUICE_DOCKER").unwrap_or_else(|_| "28".to_owned());
        let scratch = Scratch::new()?;
        let network = network(&scratch)?;
        let (registry, private) = (Registry::start()?, Registry::start_private()?);
        let manager = Manager::new(&scratch.path("manager.sock"))?;
        let mut machine = Machine {
            release,
            dockerd: None,
            containerd: None,
            sluice: None,
            manager,
            registry,
            private,
            asked: Vec::new(),
            docker_fails: 0,
            _network: network,
            scratch,
        };
        machine.configure()?;
        machine.start_containerd()?;
        machine.start_docker()?;
        Ok(machine)
    }

    /// A machine whose engine uses sluice.
    pub fn switched() -> anyhow::Result<Machine> {
        let mut machine = Machine::start()?;
        machine.sluice("install", &["--restart"])?;
        Ok(machine)
    }

    fn configure(&self) -> anyhow::Result<()> {
        let etc = self.scratch.mount_point("etc")?;
        let (root, state) = (self.path("containerd/root"), self.path("containerd/state"));
        let containerd = format!(
            "version = 2 # ours\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\nroot = {root:?}\nstate = {state:?}\n[grpc]\n\
             address = {:?}\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = {:?}\n",
            self.path("containerd.sock"),
            self.path("containerd/opt")
        );
        fs::write(etc.join("containerd.toml"), containerd)?;
        fs::write(etc.join("daemon.json"), DAEMON_CONFIG)?;
        let hosts = [self.registry.host(), self.private.host()];
        fs::write(etc.join("sluice.toml"), format!("[fetcher.source]\nplain_http = {hosts:?}\n"))?;
        let plugins = self.scratch.mount_point("cli/cli-plugins")?;
        for plugin in fs::read_dir(self.folder().join("libexec/docker/cli-plugins"))? {
            let plugin = plugin?;
            std::os::unix::fs::symlink(plugin.path().canonicalize()?, plugins.join(plugin.file_name()))?;
        }
        let bin = self.scratch.mount_point("bin")?;
        fs::write(bin.join("systemctl"), SYSTEMCTL)?;
        fs::set_permissions(bin.join("systemctl"), fs::Permissions::from_mode(0o755))?;
        // Its own one is not found where it is not installed.
        let init = ["bin/tini-static", "bin/docker-init"].map(|name| self.folder().join(name));
        let init = init.into_iter().find(|path| path.exists()).context("the engine has no init")?;
        Ok(std::os::unix::fs::symlink(init.canonicalize()?, bin.join("docker-init"))?)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path(name)
    }

    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    fn folder(&self) -> PathBuf {
        tools().join(format!("docker-{}", self.release)).join("usr")
    }

    /// A program of the engine's release; what it starts is of the same.
    fn program(&self, name: &str) -> anyhow::Result<Command> {
        let folders = ["bin", "sbin"].map(|folder| self.folder().join(folder));
        let program = folders.iter().map(|folder| folder.join(name)).find(|program| program.exists());
        let program =
            program.with_context(|| format!("Docker {} has no {name} in .tools: {PACKAGE}", self.release))?;
        let mut command = Command::new(program);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = [self.path("bin")].into_iter().chain(folders).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(path)?);
        Ok(command)
    }

    fn start_containerd(&mut self) -> anyhow::Result<()> {
        let mut command = self.program("containerd")?;
        command.arg("--config").arg(self.path("etc/containerd.toml"));
        let mut server = Server::spawn(command, &self.path("containerd.log"), PACKAGE)?;
        let socket = self.path("containerd.sock");
        server.wait_until("containerd", || UnixStream::connect(&socket).is_ok())?;
        self.containerd = Some(server);
        Ok(())
    }

    fn start_docker(&mut self) -> anyhow::Result<()> {
        let mut command = self.program("dockerd")?;
        command.arg("--config-file").arg(self.path("etc/daemon.json"));
        command.arg("--containerd").arg(self.path("containerd.sock"));
        command
            .arg("--data-root")
            .arg(self.path("docker/data"))
            .arg("--exec-root")
            .arg(self.path("docker/exec"));
        command.arg("--pidfile").arg(self.path("docker.pid"));
        command.arg("--host").arg(format!("unix://{}", self.docker_socket().display()));
        let mut probe = self.docker_command(&["version"])?;
        let mut server = Server::spawn(command, &self.path("dockerd.log"), PACKAGE)?;
        server.wait_until("dockerd", || probe.output().is_ok_and(|output| output.status.success()))?;
        self.dockerd = Some(server);
        Ok(())
    }

    fn docker_socket(&self) -> PathBuf {
        self.path("docker.sock")
    }

    /// What the unit says, as a service of a service manager.
    pub fn start_sluice(&mut self) -> anyhow::Result<()> {
        let unit = fs::read_to_string(self.path("etc/sluice.service"))?;
        let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart="));
        let mut words = line.context("the unit runs nothing")?.split(' ');
        let mut command = Command::new(words.next().context("the unit runs nothing")?);
        command.args(words);
        let command = self.manager.wrap(&command)?;
        let server = Server::spawn(command, &self.path("sluice.log"), "a binary of this workspace")?;
        self.manager.wait_until_ready().with_context(|| server.log())?;
        self.sluice = Some(server);
        Ok(())
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill_sluice(&mut self) -> anyhow::Result<()> {
        self.sluice.take().context("sluice does not run")?.kill()
    }

    pub fn sluice_log(&self) -> String {
        self.sluice.as_ref().map(Server::log).unwrap_or_default()
    }

    /// `sluice --json COMMAND`, on this machine: its end, and what it printed.
    pub fn try_sluice(&mut self, command: &str, more: &[&str]) -> anyhow::Result<Result<Value, String>> {
        let mut line = self.scratch.command(["--json", "--config"])?;
        line.arg(self.path("etc/sluice.toml")).arg(command);
        line.arg("--containerd-config").arg(self.path("etc/containerd.toml"));
        if command == "install" {
            line.args(["--docker", "--daemon-config"]).arg(self.path("etc/daemon.json"));
            line.arg("--docker-socket")
                .arg(self.docker_socket())
                .arg("--docker-config")
                .arg(self.path("cli"));
            line.arg("--socket").arg(self.path("snapshotter.sock"));
            line.arg("--unit").arg(self.path("etc/sluice.service"));
        }
        let path = std::env::var("PATH").unwrap_or_default();
        line.env("PATH", format!("{}:{path}", self.path("bin").display())).args(more);
        let output = self.path("sluice-output");
        line.stdin(Stdio::null()).stdout(File::create(&output)?).stderr(Stdio::piped());
        let mut child = line.spawn().context("running sluice")?;
        while child.try_wait()?.is_none() {
            self.obey()?;
            sleep(SETTLE_POLL);
        }
        let ended = child.wait_with_output()?;
        if !ended.status.success() {
            return Ok(Err(String::from_utf8_lossy(&ended.stderr).into_owned()));
        }
        Ok(Ok(serde_json::from_slice(&fs::read(&output)?)?))
    }

    pub fn sluice(&mut self, command: &str, more: &[&str]) -> anyhow::Result<Value> {
        let ended = self.try_sluice(command, more)?;
        ended.map_err(|error| anyhow::anyhow!("sluice {command} {more:?}: {error}\n{}", self.sluice_log()))
    }

    /// Does what systemctl was asked for.
    fn obey(&mut self) -> anyhow::Result<()> {
        let asked = self.path("bin/systemctl.asked");
        let Ok(words) = fs::read_to_string(&asked) else { return Ok(()) };
        fs::remove_file(&asked)?;
        let words = words.trim();
        self.asked.push(words.to_owned());
        let done = match words {
            "restart containerd" => {
                self.containerd.take().context("containerd does not run")?.kill()?;
                self.start_containerd()
            }
            "restart docker" if self.docker_fails > 0 => {
                self.docker_fails -= 1;
                Err(anyhow::anyhow!("as the test wants it"))
            }
            "restart docker" => self.restart_docker(),
            "restart sluice.service" | "start sluice.service" => match self.sluice {
                Some(_) => Ok(()),
                None => self.start_sluice(),
            },
            "disable --now sluice.service" => self.sluice.take().context("sluice does not run")?.end(),
            _ => Ok(()),
        };
        let done_file = self.path("bin/systemctl.doing");
        fs::write(&done_file, if done.is_ok() { "0" } else { "1" })?;
        fs::rename(&done_file, self.path("bin/systemctl.done"))?;
        match done {
            Err(error) if self.docker_fails == 0 && words != "restart docker" => Err(error),
            _ => Ok(()),
        }
    }

    pub fn restart_docker(&mut self) -> anyhow::Result<()> {
        self.dockerd.take().context("dockerd does not run")?.end()?;
        self.start_docker()
    }

    /// `sluice layers WORDS`, which must find all; what it printed.
    pub fn layers(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut line = self.scratch.command(["--config"])?;
        let output = line.arg(self.path("etc/sluice.toml")).arg("layers").args(words).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "sluice layers {words:?}: {errors}\n{}", self.sluice_log());
        Ok(String::from_utf8(output.stdout)?)
    }

    pub fn docker_command(&self, words: &[&str]) -> anyhow::Result<Command> {
        let mut command = self.program("docker")?;
        command.env("DOCKER_HOST", format!("unix://{}", self.docker_socket().display()));
        command.env("DOCKER_CONFIG", self.path("cli")).args(words);
        Ok(command)
    }

    /// `docker WORDS`, which must succeed; what it printed.
    pub fn docker(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = self.docker_command(words)?.output().context("running docker")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "docker {words:?}: {errors}\n{}", self.sluice_log());
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// `docker WORDS`, which must fail; what it said.
    pub fn docker_fails(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = self.docker_command(words)?.output().context("running docker")?;
        ensure!(!output.status.success(), "docker {words:?} does what it must not");
        Ok(String::from_utf8(output.stderr)?)
    }

    /// Digests of the blobs that containerd has for Docker.
    pub fn blobs(&self) -> anyhow::Result<Vec<String>> {
        let mut command = self.program("ctr")?;
        command.arg("--address").arg(self.path("containerd.sock"));
        let output = command.args(["--namespace", "moby", "content", "list", "--quiet"]).output()?;
        ensure!(output.status.success(), "ctr: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
    }

    /// Pushes an image to the registry; its reference, and the digests of its layers.
    pub fn push(&self, name: &str, spec: &ImageSpec) -> anyhow::Result<(String, Vec<String>)> {
        push(&self.scratch, &self.registry, name, spec)
    }

    /// The same to the registry that asks for a password.
    pub fn push_private(&self, name: &str, spec: &ImageSpec) -> anyhow::Result<(String, Vec<String>)> {
        push(&self.scratch, &self.private, name, spec)
    }

    /// References of the images that sluice has on this machine: those that stream.
    pub fn streamed(&self) -> anyhow::Result<Vec<String>> {
        let status = self.scratch.json(["status"])?;
        let images = status["images"].as_array().into_iter().flatten();
        Ok(images.filter_map(|image| image["reference"].as_str()).map(str::to_owned).collect())
    }

    /// Waits, bounded, until something is so.
    pub fn settle(&self, what: &str, is_so: impl Fn(&Machine) -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let asked = Instant::now();
        while !is_so(self)? {
            if asked.elapsed() > SETTLE_MAX {
                bail!("{what}: not so after {SETTLE_MAX:?}\n{}", self.sluice_log());
            }
            sleep(SETTLE_POLL);
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Processes of containers outlive all that could end them.
        let Ok(all) = self.docker(&["ps", "--all", "--quiet"]) else { return };
        for container in all.lines() {
            let _ = self.docker(&["rm", "--force", container]);
        }
        if let Some(mut dockerd) = self.dockerd.take() {
            let _ = dockerd.end();
        }
    }
}

/// Moves this thread, and with it all that it starts, into a network of its own: bridges, addresses and rules of the engine are there.
fn network(scratch: &Scratch) -> anyhow::Result<Server> {
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-euc", "ip link set lo up; echo up; exec sleep infinity"]);
    let mut server = Server::spawn(command, &scratch.path("network.log"), "Debian's package `util-linux`")?;
    let log = scratch.path("network.log");
    server.wait_until("a network", || fs::read_to_string(&log).is_ok_and(|text| text.contains("up")))?;
    let network = File::open(Path::new("/proc").join(server.id().to_string()).join("ns/net"))?;
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(server)
}

fn push(
    scratch: &Scratch,
    registry: &Registry,
    name: &str,
    spec: &ImageSpec,
) -> anyhow::Result<(String, Vec<String>)> {
    let folder = scratch.path(&format!("layout-{name}"));
    let mut layout = LayoutWriter::create(&folder)?;
    let digest = layout.image(name, spec)?;
    let manifest: Value = serde_json::from_slice(&fs::read(layout.blob_path(&digest))?)?;
    let layers = manifest["layers"].as_array().into_iter().flatten();
    let layers = layers.filter_map(|layer| layer["digest"].as_str()).map(str::to_owned).collect();
    Ok((registry.push(&layout.reference(name), &format!("{name}:1"))?, layers))
}
