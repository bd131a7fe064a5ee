//! What `sluice install` does for a Docker engine.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::Args;

use super::{NodeArgs, absolute, text};
use crate::install::docker::{self, DAEMON_CONFIG, SOCKET};
use crate::install::engine;
use crate::install::node::{DockerWish, Node, Planned};
use crate::install::record::DockerPlaces;
use crate::install::report::Report;
use crate::install::switch;
use crate::install::systemd;
use crate::settings::Settings;

const PASSWD: &str = "/etc/passwd";

#[derive(Debug, Args)]
#[command(next_help_heading = "For --docker")]
pub(super) struct DockerArgs {
    /// The file that the engine is started with
    #[arg(long, value_name = "FILE", default_value = DAEMON_CONFIG, requires = "docker")]
    daemon_config: PathBuf,
    /// The engine's socket
    #[arg(long, value_name = "SOCKET", default_value = SOCKET, requires = "docker")]
    docker_socket: PathBuf,
    /// The docker configuration (`config.json`, or its folder) whose logins and credential helpers are used to read private images
    /// [default: that of who typed this, also through sudo]
    #[arg(long, value_name = "FILE", requires = "docker")]
    docker_config: Option<PathBuf>,
    /// Leave the layers of images that stream where they are: saves their space, but `docker save`, `push` and `image inspect` lack them
    #[arg(long, requires = "docker")]
    no_layers: bool,
    /// Do not ask whether containers and images of the engine may be out of sight
    #[arg(long, requires = "docker")]
    yes: bool,
}

impl DockerArgs {
    /// What the engine is to be; refused if it cannot.
    pub(super) async fn wish(
        &self,
        args: &NodeArgs,
        settings: &Settings,
        node: &Node,
    ) -> anyhow::Result<DockerWish> {
        let places =
            DockerPlaces { config: absolute(&self.daemon_config)?, socket: absolute(&self.docker_socket)? };
        let containerd = args.socket(node)?;
        let engine = match node.root.is_machine() {
            true => {
                let engine = engine::ask(&places.socket).await?;
                engine.check()?;
                engine::check_flags(&places.config)?;
                check_containerd(&engine, &containerd)?;
                Some(engine)
            }
            false => None,
        };
        let login = self.login(settings, node)?.map(|login| text(&login)).transpose()?;
        Ok(DockerWish { places, engine, containerd: text(&containerd)?, layers: !self.no_layers, login })
    }

    /// Whose logins are used, if that is not said already.
    fn login(&self, settings: &Settings, node: &Node) -> anyhow::Result<Option<PathBuf>> {
        if let Some(named) = &self.docker_config {
            let named = absolute(named)?;
            ensure!(
                !node.root.is_machine() || named.exists(),
                "--docker-config {} is not there: log in first (docker login)",
                named.display()
            );
            return Ok(Some(named));
        }
        if settings.frontend.credentials.docker_config.is_some() || !node.root.is_machine() {
            return Ok(None);
        }
        let passwd = std::fs::read_to_string(PASSWD).unwrap_or_default();
        Ok(docker::configuration_of_caller(|name| std::env::var(name).ok(), &passwd))
    }

    /// Says what will be out of sight, and asks.
    pub(super) fn confirm(
        &self,
        wish: &DockerWish,
        planned: &[Planned],
        dry_run: bool,
        report: &Report,
    ) -> anyhow::Result<()> {
        let changes = planned.iter().any(|planned| planned.path() == wish.places.config && planned.changes());
        let Some(hidden) = wish.engine.as_ref().and_then(docker::Engine::hidden).filter(|_| changes) else {
            return Ok(());
        };
        if dry_run || self.yes {
            return report.say(&hidden);
        }
        let input = std::io::stdin();
        if !report.speaks() || !input.is_terminal() {
            bail!("{hidden}. Run this again with --yes to go on; nothing was changed");
        }
        report.say(&format!("{hidden}."))?;
        let mut errors = std::io::stderr();
        write!(errors, "Go on? [y/N] ").and_then(|()| errors.flush()).context("ask")?;
        let mut answer = String::new();
        input.lock().read_line(&mut answer).context("read the answer")?;
        ensure!(matches!(answer.trim(), "y" | "Y" | "yes"), "nothing was changed");
        Ok(())
    }
}

/// The engine must work with the containerd that is told of the snapshotter.
fn check_containerd(engine: &docker::Engine, socket: &Path) -> anyhow::Result<()> {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or(path.to_owned());
    match engine.containerd() {
        Some(other) if real(other) != real(socket) => bail!(
            "the engine works with the containerd at {}, and the one that would be changed is at {}: name its configuration \
             (--containerd-config) or its socket (--containerd-socket)",
            other.display(),
            socket.display()
        ),
        _ => Ok(()),
    }
}

/// Restarts the engine. One that does not come up with its new configuration gets its old one back.
pub(super) async fn restart(
    node: &mut Node,
    places: &DockerPlaces,
    report: &mut Report,
) -> anyhow::Result<()> {
    let restarted = async {
        switch::systemctl(&["restart", systemd::DOCKER], false, report).await?;
        engine::wait(&places.socket, true).await
    };
    let Err(error) = restarted.await else { return Ok(()) };
    let undone = async {
        if let Some(undo) = node.plan_undo(&places.config)? {
            node.carry_out(undo, report)?;
        }
        switch::systemctl(&["restart", systemd::DOCKER], false, report).await?;
        engine::wait(&places.socket, false).await
    };
    Err(match undone.await {
        Ok(()) => error.context("Docker runs again with its old configuration, as it does not with sluice's"),
        Err(undoing) => {
            error.context(format!("Docker does not run, nor with its old configuration: {undoing:#}"))
        }
    })
}
