//! A node as Kubernetes has it: containerd, its CRI, and sluice as its snapshotter.

use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use testkit::containerd::{Annotations, Setup, Version};
use testkit::registry::Listener;
use testkit::{Containerd, ImageSpec, LayoutWriter, Registry, Server, Tarball, port};

use crate::cri::Cri;
use crate::manager::Manager;
use crate::memory::MemoryLimit;
use crate::mesh::Link;
use crate::services::Backend;
use crate::{Scratch, binaries};

/// How long what happens beside may take, on two busy cores.
pub(crate) const SETTLE_MAX: Duration = Duration::from_secs(60);
pub(crate) const SETTLE_POLL: Duration = Duration::from_millis(100);

/// A whole node: what it starts ends with it.
#[derive(Debug)]
pub struct Node {
    pub cri: Cri,
    pub containerd: Containerd,
    pub registry: Registry,
    /// One that asks for a password; only where the options say so.
    pub private: Option<Registry>,
    /// The frontend; alone when there is a backend, else with everything in it.
    pub sluice: Server,
    pub backend: Option<Backend>,
    pub around: Around,
    scratch: Scratch,
}

/// What stands around sluice, where the options say so.
#[derive(Debug, Default)]
pub struct Around {
    pub memory: Option<MemoryLimit>,
    pub manager: Option<Manager>,
    /// Between the cache and the node.
    pub link: Option<Link>,
}

/// What differs from test to test.
#[derive(Clone, Debug)]
pub struct Options {
    pub containerd: Version,
    /// Whether containerd uses sluice, and not its own overlayfs.
    pub snapshotter: bool,
    /// Whether containerd hands annotations on.
    pub annotations: Annotations,
    /// Settings of sluice.
    pub settings: Vec<String>,
    /// Whether each service is a process of its own.
    pub services: bool,
    /// Another copy of the frontend's program.
    pub program: Option<PathBuf>,
    /// Whether there is a registry that asks for a password.
    pub private: bool,
    /// Whether the kubelet's pulls go by way of sluice.
    pub image_service: bool,
    /// Settings of the fetcher, where it is a process of its own.
    pub fetcher: Vec<String>,
    /// Arguments of `sluice link`, where the node and the cache, a process of its own, have one between them.
    pub link: Vec<String>,
    /// Bytes of memory that sluice gets; no bound without.
    pub memory: Option<u64>,
    /// Whether sluice runs as a service of systemd's does.
    pub managed: bool,
    /// Whether the registry tells the fetcher, a process of its own, what is pushed.
    pub pushes: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            containerd: Version::chosen(),
            snapshotter: true,
            annotations: Annotations::On,
            settings: Vec::new(),
            services: false,
            program: None,
            private: false,
            image_service: false,
            fetcher: Vec::new(),
            link: Vec::new(),
            memory: None,
            managed: false,
            pushes: false,
        }
    }
}

impl Node {
    pub fn start(options: &Options) -> anyhow::Result<Node> {
        let scratch = Scratch::new()?;
        let (registry, listening) = registry(&scratch, options)?;
        let private = options.private.then(Registry::start_private).transpose()?;
        let sandbox_image = push_pause(&scratch, &registry)?;
        let plain = plain_http(&registry, private.as_ref());
        let cache_port = port::free()?;
        let link = (!options.link.is_empty()).then(|| Link::start(cache_port, &options.link)).transpose()?;
        let fetcher = [vec![plain.clone()], options.fetcher.clone(), listening].concat();
        let start = || backend(&scratch, &fetcher, cache_port, link.as_ref());
        let backend = options.services.then(start).transpose()?;
        let manager = options.managed.then(|| Manager::new(&scratch.path("manager.sock"))).transpose()?;
        let mut around = Around { memory: options.memory.map(MemoryLimit::new).transpose()?, manager, link };
        let sluice = serve(&scratch, &plain, backend.as_ref(), &mut around, options)?;
        let setup = Setup {
            version: options.containerd,
            snapshotter: options.snapshotter.then(|| scratch.path("snapshotter.sock")),
            annotations: options.annotations,
            sandbox_image,
            hosts: None,
        };
        let containerd = Containerd::start(&scratch.path("containerd"), &setup)?;
        let cri = connect(&scratch, &containerd, options)?;
        Ok(Node { cri, containerd, registry, private, sluice, backend, around, scratch })
    }

    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Starts sluice anew, after it was killed; returns when containerd has found it.
    pub fn restart_sluice(&mut self, options: &Options) -> anyhow::Result<()> {
        self.sluice = self.serve(options)?;
        let started = Instant::now();
        // containerd waits up to three seconds between two attempts.
        while let Err(error) = self.containerd.ctr(&["snapshots", "list"]) {
            anyhow::ensure!(started.elapsed() < SETTLE_MAX, "containerd does not find sluice: {error:#}");
            sleep(SETTLE_POLL);
        }
        Ok(())
    }

    pub(crate) fn serve(&mut self, options: &Options) -> anyhow::Result<Server> {
        serve(
            &self.scratch,
            &plain_http(&self.registry, self.private.as_ref()),
            self.backend.as_ref(),
            &mut self.around,
            options,
        )
    }

    /// The services behind the frontend; only where they are processes of their own.
    pub fn backend(&mut self) -> anyhow::Result<&mut Backend> {
        self.backend.as_mut().context("the services are no processes of their own")
    }

    /// Pushes an image to this node's registry; its reference.
    pub fn push(&self, name: &str, spec: &ImageSpec) -> anyhow::Result<String> {
        push(&self.scratch, &self.registry, name, spec)
    }

    /// The same to the registry that asks for a password.
    pub fn push_private(&self, name: &str, spec: &ImageSpec) -> anyhow::Result<String> {
        push(&self.scratch, self.private.as_ref().context("no private registry")?, name, spec)
    }

    /// Waits, bounded, until what sluice says of its images is as it should be.
    pub fn settle(&self, wanted: impl Fn(&serde_json::Value) -> bool) -> anyhow::Result<()> {
        let asked = Instant::now();
        loop {
            let status = self.status()?;
            if wanted(&status) {
                return Ok(());
            }
            anyhow::ensure!(asked.elapsed() < SETTLE_MAX, "not settled: {status}\n{}", self.sluice.log());
            sleep(SETTLE_POLL);
        }
    }

    /// Waits, bounded, until no image is on the node, and no more is mounted than `mounts`.
    pub fn settle_empty(&self, mounts: usize) -> anyhow::Result<()> {
        self.settle(|status| status["images"].as_array().is_some_and(Vec::is_empty))?;
        let asked = Instant::now();
        loop {
            // The last image leaves the list before its mounts go.
            let now = self.scratch.mounts()?;
            if now.len() == mounts {
                return Ok(());
            }
            anyhow::ensure!(asked.elapsed() < SETTLE_MAX, "not {mounts} mounts: {now:?}");
            sleep(SETTLE_POLL);
        }
    }

    /// What sluice says of the images on this node.
    pub fn status(&self) -> anyhow::Result<serde_json::Value> {
        self.scratch.json(["status"])
    }
}

/// A layer with a static busybox and links for its commands.
pub fn busybox() -> anyhow::Result<Tarball> {
    let program = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| std::fs::read(path).ok());
    let program = program.context("no busybox (Debian's package `busybox-static`)")?;
    let mut tar = Tarball::new().directory("bin").executable("bin/busybox", &program);
    for name in [
        "sh",
        "cat",
        "sleep",
        "mv",
        "ln",
        "chown",
        "chmod",
        "stat",
        "sha256sum",
        "touch",
        "readlink",
        "ls",
        "rm",
        "find",
    ] {
        tar = tar.symlink(&format!("bin/{name}"), "busybox");
    }
    Ok(tar)
}

fn push_pause(scratch: &Scratch, registry: &Registry) -> anyhow::Result<String> {
    let config = serde_json::json!({ "Entrypoint": ["/bin/busybox", "sleep", "100000"] });
    let spec = ImageSpec { config: Some(config), ..ImageSpec::new([busybox()?.finish()]) };
    push(scratch, registry, "pause", &spec)
}

fn push(scratch: &Scratch, registry: &Registry, name: &str, spec: &ImageSpec) -> anyhow::Result<String> {
    let mut layout = LayoutWriter::create(&scratch.path(&format!("layout-{name}")))?;
    layout.image(name, spec)?;
    registry.push(&layout.reference(name), &format!("{name}:latest"))
}

/// The setting that these registries are spoken to without TLS.
fn plain_http(registry: &Registry, private: Option<&Registry>) -> String {
    let hosts: Vec<String> = [registry].into_iter().chain(private).map(Registry::host).collect();
    format!("fetcher.source.plain_http={hosts:?}")
}

pub(crate) fn connect(scratch: &Scratch, containerd: &Containerd, options: &Options) -> anyhow::Result<Cri> {
    let runtime = containerd.socket();
    let images = if options.image_service { scratch.path("images.sock") } else { runtime.clone() };
    Cri::connect_both(&images, &runtime)
}

/// The node's registry, and the settings of a fetcher that it tells of pushes.
fn registry(scratch: &Scratch, options: &Options) -> anyhow::Result<(Registry, Vec<String>)> {
    if !options.pushes {
        return Ok((Registry::start()?, Vec::new()));
    }
    let (port, secret) = (port::free()?, "a secret of some length");
    let url = format!("http://127.0.0.1:{port}/push/main");
    let registry = Registry::start_telling(Listener { url, authorization: format!("Bearer {secret}") })?;
    let file = scratch.path("push.secret");
    std::fs::write(&file, secret)?;
    let (host, file) = (registry.host(), file.display().to_string());
    let of = format!("{{host={host:?},secret_file={file:?},repositories=[\"**\"]}}");
    let push = format!("fetcher.push={{listen=\"127.0.0.1:{port}\",registries={{main={of}}}}}");
    Ok((registry, vec![push]))
}

fn backend(
    scratch: &Scratch,
    fetcher: &[String],
    cache_port: u16,
    link: Option<&Link>,
) -> anyhow::Result<Backend> {
    let cache: Vec<_> =
        link.iter().map(|link| format!("cache.advertise=http://127.0.0.1:{}", link.port)).collect();
    Backend::start(scratch, cache_port, fetcher, &cache)
}

fn serve(
    scratch: &Scratch,
    plain_http: &str,
    backend: Option<&Backend>,
    around: &mut Around,
    options: &Options,
) -> anyhow::Result<Server> {
    let socket = scratch.path("snapshotter.sock");
    let mut command = match backend {
        Some(backend) => frontend(scratch, backend, options)?,
        None => whole(scratch, plain_http)?,
    };
    command.args(["--set", &format!("frontend.snapshotter={}", socket.display())]);
    if options.image_service {
        let (images, runtime) =
            (scratch.path("images.sock"), Containerd::socket_in(&scratch.path("containerd")));
        command.args(["--set", &format!("frontend.image_service={}", images.display())]);
        command.args(["--set", &format!("frontend.runtime={}", runtime.display())]);
    }
    for setting in &options.settings {
        command.args(["--set", setting]);
    }
    if backend.is_none() {
        command.arg("serve");
    }
    if let Some(limit) = &around.memory {
        command = limit.wrap(&command);
    }
    if let Some(manager) = &around.manager {
        command = manager.wrap(&command)?;
    }
    let mut server = Server::spawn(command, &scratch.path("sluice.log"), "a binary of this workspace")?;
    if let Some(manager) = &mut around.manager {
        manager.wait_until_ready().with_context(|| server.log())?;
    }
    server.wait_until("the frontend", || std::os::unix::net::UnixStream::connect(&socket).is_ok())?;
    Ok(server)
}

/// Everything in one process.
fn whole(scratch: &Scratch, plain_http: &str) -> anyhow::Result<Command> {
    let mut command = binaries::command("sluice")?;
    command.arg("--state").arg(scratch.state());
    command.args(["--set", plain_http]);
    Ok(command)
}

/// The frontend alone; its socket stands where that of everything in one would.
fn frontend(scratch: &Scratch, backend: &Backend, options: &Options) -> anyhow::Result<Command> {
    let program = options.program.clone().map_or_else(|| binaries::path("frontend"), Ok)?;
    let state = scratch.state();
    let mut command = Command::new(program);
    for setting in [
        format!("nats.url={}", backend.nats.url()),
        format!("frontend.state={}", state.display()),
        format!("frontend.socket={}", state.join("node.sock").display()),
        format!("frontend.trusted_keys=[\"{}\"]", backend.key),
    ] {
        command.args(["--set", &setting]);
    }
    Ok(command)
}
