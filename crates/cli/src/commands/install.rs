//! `sluice install`: makes this node's containerd, or this machine's Docker engine, use sluice.

mod docker;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use bytesize::ByteSize;
use clap::Args;

use crate::args::Global;
use crate::install::client::{self, Client};
use crate::install::containerd::SNAPSHOTTER;
use crate::install::docker::NAMESPACE;
use crate::install::files::Root;
use crate::install::node::{DockerWish, Node, Wish};
use crate::install::record::Record;
use crate::install::report::{Report, Style};
use crate::install::switch;
use crate::install::unit::Service;
use crate::settings::{self, Settings};

const FRONTEND_FILE: &str = "/etc/sluice/frontend.toml";
const CONTAINERD_CONFIG: &str = "/etc/containerd/config.toml";
const SOCKET: &str = "/run/sluice/snapshotter.sock";

/// Make this node's containerd, or its Docker engine, use sluice: configurations, a systemd unit, settings
///
/// Keys are merged into containerd's configuration, whatever its form (versions 1 to 4, imported files); all else in
/// it stays, comments too. What the files were is kept in the state folder, so that `sluice uninstall` undoes exactly
/// this. A second run changes nothing.
///
/// Nothing is restarted without --restart. Images that containerd unpacked with another snapshotter, and whose layers
/// it dropped, could not start any more: after the switch they are taken off its list, and pulled again when next
/// needed. That is done after --restart, or by --images once you restarted containerd yourself. What runs goes on.
///
/// With --docker it is the local Docker engine (24 and newer) that uses sluice: `docker run` and `docker compose up` of an image then
/// stream. Its containers, and images of an older image store, are out of sight until `sluice uninstall`; that is said and asked first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice install --dry-run                   show what would change
  sluice install --restart                   everything at once
  sluice install                             only write files; then, as it says at its end:
    systemctl daemon-reload && systemctl enable --now sluice && systemctl restart containerd
    sluice install --images
  sluice --config /etc/sluice/frontend.toml install --frontend /usr/local/bin/frontend --restart
                                             a node of a mesh: the unit runs the frontend alone
  sluice install --docker --restart          the local Docker engine; see docs/docker.md
  sluice install --root /mnt/image           prepare a node image")]
pub struct InstallArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Where containerd finds the snapshotter [default: frontend.snapshotter of the settings, else
    /// /run/sluice/snapshotter.sock]
    #[arg(long, value_name = "SOCKET")]
    socket: Option<PathBuf>,
    /// Where to write the systemd unit
    #[arg(long, value_name = "FILE", default_value = "/etc/systemd/system/sluice.service")]
    unit: PathBuf,
    /// The unit runs this `frontend` program instead of `sluice serve`, with --config or /etc/sluice/frontend.toml
    #[arg(long, value_name = "PROGRAM", conflicts_with = "docker")]
    frontend: Option<PathBuf>,
    #[command(flatten)]
    docker: docker::DockerArgs,
    /// The node's memory, of which --frontend may use a share: see `sluice reserve` [default: this machine's].
    /// `frontend.memory_budget` comes first
    #[arg(long, value_name = "SIZE", requires = "frontend")]
    memory: Option<ByteSize>,
}

/// What `install` and `uninstall` have in common.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// The file that containerd is started with [default: /etc/containerd/config.toml]
    #[arg(long, value_name = "FILE")]
    pub containerd_config: Option<PathBuf>,
    /// containerd's own socket [default: as its configuration says]
    #[arg(long, value_name = "SOCKET")]
    pub containerd_socket: Option<PathBuf>,
    /// The local Docker engine instead of Kubernetes. (`uninstall` knows it by itself, but for --images)
    #[arg(long)]
    pub docker: bool,
    /// Work on the node whose files stand below this folder
    #[arg(long, value_name = "DIR", default_value = "/", conflicts_with_all = ["restart", "images"])]
    pub root: PathBuf,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Restart what must be restarted, with systemctl, and look after the images
    #[arg(long)]
    pub restart: bool,
    /// Only look after the images, once containerd was restarted
    #[arg(long, conflicts_with = "restart")]
    pub images: bool,
}

impl NodeArgs {
    /// The node, with what was done to it before.
    pub fn open(&self, global: &Global, state: &Path) -> anyhow::Result<(Node, Report)> {
        let root = Root::new(&self.root)?;
        let record = Record::open(&root, state)?;
        let containerd_config = match &self.containerd_config {
            Some(path) => absolute(path)?,
            None => record.containerd_config().unwrap_or(Path::new(CONTAINERD_CONFIG)).to_owned(),
        };
        let node = Node { root, record, containerd_config, dry_run: self.dry_run };
        Ok((node, Report::new(self.dry_run, Style { json: global.json, quiet: global.quiet })))
    }

    /// containerd's socket, given or as it is configured.
    pub fn socket(&self, node: &Node) -> anyhow::Result<PathBuf> {
        match &self.containerd_socket {
            Some(path) => absolute(path),
            None => Ok(node.configuration()?.socket()),
        }
    }

    /// Takes the images off containerd's list that cannot start under the snapshotter that it is set to.
    pub async fn forget_images(&self, node: &Node, report: &mut Report) -> anyhow::Result<()> {
        let namespace = if self.docker { NAMESPACE } else { client::KUBERNETES };
        let (socket, snapshotter) = (self.socket(node)?, node.snapshotter_of(namespace)?);
        let mut client = Client::connect(&socket, namespace).await?;
        switch::forget_images(&mut client, &snapshotter, self.dry_run, report).await
    }

    /// The command line that does [`NodeArgs::forget_images`] later.
    pub fn images_line(&self, command: &str, node: &Node, docker: bool) -> String {
        let mut line = format!("sluice {command} --images");
        if node.containerd_config != Path::new(CONTAINERD_CONFIG) {
            line += &format!(" --containerd-config {}", node.containerd_config.display());
        }
        if let Some(socket) = &self.containerd_socket {
            line += &format!(" --containerd-socket {}", socket.display());
        }
        if docker {
            line += " --docker";
        }
        line
    }
}

pub async fn run(global: &Global, args: InstallArgs) -> anyhow::Result<ExitCode> {
    let root = Root::new(&args.node.root)?;
    let (settings, file) = settings(global, &root, args.frontend.is_some())?;
    let (mut node, mut report) = args.node.open(global, &settings.frontend.state)?;
    let result = match args.node.images {
        true => args.node.forget_images(&node, &mut report).await,
        false => {
            let mut wish = wish(global, &args, &settings, file)?;
            if args.node.docker {
                wish.docker = Some(Box::pin(args.docker.wish(&args.node, &settings, &node)).await?);
            }
            Box::pin(install(&args, &mut node, &wish, &mut report)).await
        }
    };
    report.finish()?;
    result.map(|()| ExitCode::SUCCESS)
}

/// The node's settings, and the file that they are in or will be.
pub fn settings(global: &Global, root: &Root, frontend: bool) -> anyhow::Result<(Settings, PathBuf)> {
    let default = if frontend { FRONTEND_FILE } else { settings::SYSTEM_FILE };
    let file = absolute(global.config.as_deref().unwrap_or(Path::new(default)))?;
    let found: Vec<PathBuf> = Some(root.path(&file)).filter(|file| file.exists()).into_iter().collect();
    ensure!(
        !frontend || !found.is_empty(),
        "{} is not there: the frontend needs a mesh and trusted keys to be of use; write it first, as docs/services.md shows",
        root.path(&file).display()
    );
    Ok((Settings::load_files(&found, global)?, file))
}

fn wish(global: &Global, args: &InstallArgs, settings: &Settings, file: PathBuf) -> anyhow::Result<Wish> {
    let socket = match &args.socket {
        Some(socket) => absolute(socket)?,
        None => settings.frontend.snapshotter.clone().unwrap_or(PathBuf::from(SOCKET)),
    };
    let service = match &args.frontend {
        None => serve(global)?,
        Some(program) => frontend(global, args, program, settings, &file)?,
    };
    let state = text(&settings.frontend.state)?;
    Ok(Wish {
        settings: file,
        socket: text(&socket)?,
        state,
        unit: absolute(&args.unit)?,
        service,
        docker: None,
    })
}

/// Everything in one process. It has no memory limit: an import takes what its layers need, and is no part of the
/// share that a node reserves for streaming.
fn serve(global: &Global) -> anyhow::Result<Service> {
    let program = std::env::current_exe().context("find this program")?;
    let mut command = vec![text(&program)?];
    command.extend(settings::flags(global)?);
    command.push("serve".to_owned());
    Ok(Service { command, memory_max: None })
}

fn frontend(
    global: &Global,
    args: &InstallArgs,
    program: &Path,
    settings: &Settings,
    file: &Path,
) -> anyhow::Result<Service> {
    let mut command = vec![text(&absolute(program)?)?, "--config".to_owned(), text(file)?];
    let state =
        global.state.as_ref().map(|state| anyhow::Ok(format!("frontend.state={}", text(&absolute(state)?)?)));
    let set = global.set.iter().map(|(key, value)| format!("{key}={value}"));
    for setting in set.chain(state.transpose()?) {
        command.extend(["--set".to_owned(), setting]);
    }
    let memory = match args.memory {
        Some(memory) => Some(memory.as_u64()),
        // That of a machine on which an image of a node is made says nothing about the node.
        None => (args.node.root == Path::new("/")).then(frontend::node_memory),
    };
    // The limit is what the frontend itself keeps within.
    let configured = settings.frontend.memory_budget.map(|budget| budget.as_u64());
    ensure!(
        configured.is_none_or(|budget| budget >= frontend::MEMORY_LEAST),
        "frontend.memory_budget becomes the hard limit of the unit, and a frontend needs {}",
        ByteSize::b(frontend::MEMORY_LEAST)
    );
    let share = memory.filter(|memory| frontend::reservation(*memory) > 0).map(frontend::memory_budget);
    Ok(Service { command, memory_max: configured.or(share) })
}

async fn install(
    args: &InstallArgs,
    node: &mut Node,
    wish: &Wish,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut planned = node.plan_install(wish)?;
    let of_others = planned.split_off(planned.len().saturating_sub(Node::files_of_others(wish)));
    let (docker, args) = (&args.docker, &args.node);
    if let Some(wish) = &wish.docker {
        docker.confirm(wish, &of_others, args.dry_run, report)?;
    }
    node.record.begin(wish.docker.as_ref().map(|docker| &docker.places));
    let ours_change = planned.iter().any(|planned| planned.changes());
    for file in planned {
        node.carry_out(file, report)?;
    }
    let unit = wish.unit.file_name().context("--unit names no file")?.to_string_lossy().into_owned();
    if args.restart {
        // Before containerd is told of it: one that asks in vain starts no container.
        let start = if ours_change { "restart" } else { "start" };
        for words in [&["daemon-reload"][..], &["enable", &text(&wish.unit)?], &[start, &unit]] {
            let ran = switch::systemctl(words, args.dry_run, report).await;
            ran.context("containerd's configuration was not changed")?;
        }
    }
    for file in of_others {
        node.carry_out(file, report)?;
    }
    match (args.restart, args.dry_run) {
        (true, false) => Box::pin(restart(args, node, wish, report)).await,
        (true, true) => {
            report.command("systemctl restart containerd")?;
            if wish.docker.is_some() { report.command("systemctl restart docker") } else { Ok(()) }
        }
        (false, _) => next(args, node, &unit, report),
    }
}

/// Restarts those whose configuration was changed.
async fn restart(args: &NodeArgs, node: &mut Node, wish: &Wish, report: &mut Report) -> anyhow::Result<()> {
    let socket = args.socket(node)?;
    let namespace = if wish.docker.is_some() { NAMESPACE } else { client::KUBERNETES };
    let mut client = switch::restart_containerd(&socket, namespace, SNAPSHOTTER, report).await?;
    if let Some(DockerWish { places, .. }) = &wish.docker {
        docker::restart(node, places, report).await?;
    }
    switch::forget_images(&mut client, SNAPSHOTTER, false, report).await
}

fn next(args: &NodeArgs, node: &Node, unit: &str, report: &mut Report) -> anyhow::Result<()> {
    if !node.root.is_machine() {
        return report.next(format!("systemctl --root={} enable {unit}", args.root.display()));
    }
    report.next("systemctl daemon-reload".to_owned())?;
    report.next(format!("systemctl enable --now {unit}"))?;
    report.next("systemctl restart containerd".to_owned())?;
    if args.docker {
        report.next("systemctl restart docker".to_owned())?;
    }
    report.next(args.images_line("install", node, args.docker))
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("find {}", path.display()))
}

/// Configuration files are text; a path that is none cannot stand in them.
fn text(path: &Path) -> anyhow::Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("the path {} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    /// What `sluice WORDS` would make of the node below `root`.
    fn wish_of(root: &Path, words: &[&str]) -> anyhow::Result<Wish> {
        let line = ["sluice", "--config", "/etc/mine.toml", "install", "--root"].map(str::to_owned);
        let line = line.into_iter().chain([text(root)?]).chain(words.iter().map(|word| (*word).to_owned()));
        let Cli { global, command } = Cli::try_parse_from(line)?;
        let Command::Install(args) = command else { anyhow::bail!("not an installation") };
        let (settings, file) = settings(&global, &Root::new(root)?, args.frontend.is_some())?;
        wish(&global, &args, &settings, file)
    }

    #[test]
    fn the_unit_runs_all_in_one_process_or_the_frontend_within_its_share() {
        let root = tempfile::tempdir().unwrap();
        let wish = wish_of(root.path(), &["--set", "frontend.background=false"]).unwrap();
        let command = &wish.service.command[1..];
        assert_eq!(command, ["--config", "/etc/mine.toml", "--set", "frontend.background=false", "serve"]);
        assert_eq!(wish.service.memory_max, None);
        assert_eq!((wish.socket.as_str(), wish.state.as_str()), (SOCKET, "/var/lib/sluice"));

        let frontend = ["--frontend", "/usr/bin/frontend", "--state", "/data", "--memory"];
        let of = |memory: &str| wish_of(root.path(), &[&frontend[..], &[memory]].concat());
        assert!(of("4GiB").unwrap_err().to_string().contains("/etc/mine.toml is not there"));
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let settings = "[frontend]\nsnapshotter = '/run/other.sock'\n";
        std::fs::write(root.path().join("etc/mine.toml"), settings).unwrap();
        let wish = of("4GiB").unwrap();
        let expected = ["/usr/bin/frontend", "--config", "/etc/mine.toml", "--set", "frontend.state=/data"];
        assert_eq!(wish.service.command, expected);
        assert_eq!(wish.service.memory_max, Some(frontend::reservation(4 << 30)));
        let small = of("1GiB").unwrap().service.memory_max;
        assert!(
            small == Some(frontend::memory_budget(1 << 30)) && small > Some(frontend::reservation(1 << 30))
        );
        assert_eq!((wish.socket.as_str(), wish.state.as_str()), ("/run/other.sock", "/data"));
        assert_eq!(of("512MiB").unwrap().service.memory_max, None);
        let set = [&frontend[..], &["4GiB", "--set", "frontend.memory_budget=64MiB"]].concat();
        assert_eq!(wish_of(root.path(), &set).unwrap().service.memory_max, Some(64 << 20));
        let set = [&frontend[..], &["4GiB", "--set", "frontend.memory_budget=20MiB"]].concat();
        assert!(wish_of(root.path(), &set).unwrap_err().to_string().contains("32.0 MiB"));
        let unknown = wish_of(root.path(), &frontend[..4]).unwrap();
        assert_eq!(unknown.service.memory_max, None, "that of this machine says nothing");
    }
}
