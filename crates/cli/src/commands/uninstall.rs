//! `sluice uninstall`: undoes `sluice install`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::install::{NodeArgs, settings};
use crate::args::Global;
use crate::install::client::{self, Client};
use crate::install::containerd::SNAPSHOTTER;
use crate::install::docker::NAMESPACE;
use crate::install::engine;
use crate::install::files::Root;
use crate::install::node::{DOCKERS_OWN, Node, Planned};
use crate::install::record::DockerPlaces;
use crate::install::report::Report;
use crate::install::switch;
use crate::install::systemd;

/// Undo `sluice install`
///
/// Files that nobody changed since become what they were, byte for byte, or go if there were none. In those that
/// somebody changed, only the keys of sluice are taken out, and old values put back. The state folder stays.
///
/// Drain the node first: containers that stand on sluice go on, but containerd could no longer remove them; with
/// --restart that is refused. Images that streamed have no layers here, so they are taken off containerd's list and
/// pulled again when next needed: after --restart, or by --images once you restarted containerd yourself.
///
/// A Docker engine gets its configuration, and with it its older containers and images, back; remove the containers that were made
/// under sluice first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice uninstall --dry-run
  kubectl drain NODE --ignore-daemonsets && sluice uninstall --restart
  sluice uninstall                           only the files; then, as it says at its end:
    systemctl restart containerd && sluice uninstall --images && systemctl stop sluice")]
pub struct UninstallArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Go on although containers stand on sluice, and let it run for them
    #[arg(long, requires = "restart")]
    force: bool,
}

pub async fn run(global: &Global, args: UninstallArgs) -> anyhow::Result<ExitCode> {
    let root = Root::new(&args.node.root)?;
    let (settings, _) = settings(global, &root, false)?;
    let (mut node, mut report) = args.node.open(global, &settings.frontend.state)?;
    let result = match args.node.images {
        true => args.node.forget_images(&node, &mut report).await,
        false => Box::pin(uninstall(&args, &mut node, &mut report)).await,
    };
    report.finish()?;
    result.map(|()| ExitCode::SUCCESS)
}

async fn uninstall(args: &UninstallArgs, node: &mut Node, report: &mut Report) -> anyhow::Result<()> {
    let planned = node.plan_uninstall()?;
    if planned.is_empty() {
        return report.say("nothing was installed here");
    }
    let is_unit = |planned: &Planned| planned.path().extension().is_some_and(|kind| kind == "service");
    let unit = planned.iter().find(|planned| is_unit(planned)).and_then(|planned| planned.path().file_name());
    let unit = unit.map(|name| name.to_string_lossy().into_owned());
    let whose = Whose::of(node);
    if !args.node.restart {
        for file in planned {
            node.carry_out(file, report)?;
        }
        return next(&args.node, node, &whose, unit.as_deref(), report);
    }
    let standing = standing(args, node, &whose).await?;
    // What containerd reads goes first and what runs sluice last, as containerd needs it until it was restarted.
    let (last, first): (Vec<_>, Vec<_>) = planned.into_iter().partition(is_unit);
    for file in first {
        node.carry_out(file, report)?;
    }
    Box::pin(switch_back(&args.node, node, &whose, report)).await?;
    if let Some(unit) = unit {
        let words: &[&str] = if standing { &["disable", &unit] } else { &["disable", "--now", &unit] };
        switch::systemctl(words, args.node.dry_run, report).await?;
    }
    for file in last {
        node.carry_out(file, report)?;
    }
    switch::systemctl(&["daemon-reload"], args.node.dry_run, report).await
}

/// Who was made to use sluice; the record of it goes with the last file.
struct Whose {
    kubernetes: bool,
    docker: Option<DockerPlaces>,
}

impl Whose {
    fn of(node: &Node) -> Whose {
        Whose { kubernetes: !node.record.is_docker_alone(), docker: node.record.docker().cloned() }
    }

    /// Their namespaces in containerd, and what empties one of containers.
    fn namespaces(&self) -> Vec<(&'static str, &'static str)> {
        let kubernetes =
            self.kubernetes.then_some((client::KUBERNETES, "drain the node first (kubectl drain NODE)"));
        let docker = self
            .docker
            .as_ref()
            .map(|_| (NAMESPACE, "remove them first (docker rm --force $(docker ps -aq))"));
        kubernetes.into_iter().chain(docker).collect()
    }
}

/// Whether containers stand on sluice; refused unless that was foreseen.
async fn standing(args: &UninstallArgs, node: &Node, whose: &Whose) -> anyhow::Result<bool> {
    let socket = args.node.socket(node)?;
    let mut standing = false;
    for (namespace, remedy) in whose.namespaces() {
        let mut client = Client::connect(&socket, namespace).await?;
        match client.containers_on(SNAPSHOTTER).await? {
            0 => {}
            _ if args.force => standing = true,
            count => bail!(
                "{count} containers of this node stand on sluice, and containerd could no longer remove them: {remedy}, or go on \
                 with --force"
            ),
        }
    }
    Ok(standing)
}

async fn switch_back(args: &NodeArgs, node: &Node, whose: &Whose, report: &mut Report) -> anyhow::Result<()> {
    if args.dry_run {
        report.command("systemctl restart containerd")?;
        return if whose.docker.is_some() { report.command("systemctl restart docker") } else { Ok(()) };
    }
    let socket = args.socket(node)?;
    for (number, (namespace, _)) in whose.namespaces().into_iter().enumerate() {
        let snapshotter = match namespace {
            NAMESPACE => DOCKERS_OWN.to_owned(),
            _ => node.configuration()?.snapshotter(),
        };
        let mut client = match number {
            0 => switch::restart_containerd(&socket, namespace, &snapshotter, report).await?,
            _ => Client::connect(&socket, namespace).await?,
        };
        if namespace == NAMESPACE
            && let Some(places) = &whose.docker
        {
            let restarted = async {
                switch::systemctl(&["restart", systemd::DOCKER], false, report).await?;
                engine::wait(&places.socket, false).await
            };
            // Its configuration is what it was; an engine that is broken or gone keeps nobody from removing the rest.
            if let Err(error) = restarted.await {
                report.say(&format!(
                    "Docker does not come up, which sluice is no part of any more: {error:#}"
                ))?;
            }
        }
        switch::forget_images(&mut client, &snapshotter, false, report).await?;
    }
    Ok(())
}

fn next(
    args: &NodeArgs,
    node: &Node,
    whose: &Whose,
    unit: Option<&str>,
    report: &mut Report,
) -> anyhow::Result<()> {
    if !node.root.is_machine() {
        return Ok(());
    }
    report.next("systemctl restart containerd".to_owned())?;
    if whose.docker.is_some() {
        report.next("systemctl restart docker".to_owned())?;
    }
    for (namespace, _) in whose.namespaces() {
        report.next(args.images_line("uninstall", node, namespace == NAMESPACE))?;
    }
    if let Some(unit) = unit {
        report.next(format!("systemctl stop {unit}"))?;
        report.next("systemctl daemon-reload".to_owned())?;
    }
    Ok(())
}
