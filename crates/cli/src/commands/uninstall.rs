//! `sluice uninstall`: undoes `sluice install`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::install::{NodeArgs, settings};
use crate::args::Global;
use crate::install::client::Client;
use crate::install::containerd::SNAPSHOTTER;
use crate::install::files::Root;
use crate::install::node::{Node, Planned};
use crate::install::report::Report;
use crate::install::switch;

/// Undo `sluice install`
///
/// Files that nobody changed since become what they were, byte for byte, or go if there were none. In those that
/// somebody changed, only the keys of sluice are taken out, and old values put back. The state folder stays.
///
/// Drain the node first: containers that stand on sluice go on, but containerd could no longer remove them; with
/// --restart that is refused. Images that streamed have no layers here, so they are taken off containerd's list and
/// pulled again when next needed: after --restart, or by --images once you restarted containerd yourself.
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
    if !args.node.restart {
        for file in planned {
            node.carry_out(file, report)?;
        }
        return next(&args.node, node, unit.as_deref(), report);
    }
    let standing = standing(args, node).await?;
    // What containerd reads goes first and what runs sluice last, as containerd needs it until it was restarted.
    let (last, first): (Vec<_>, Vec<_>) = planned.into_iter().partition(is_unit);
    for file in first {
        node.carry_out(file, report)?;
    }
    switch_back(&args.node, node, report).await?;
    if let Some(unit) = unit {
        let words: &[&str] = if standing { &["disable", &unit] } else { &["disable", "--now", &unit] };
        switch::systemctl(words, args.node.dry_run, report).await?;
    }
    for file in last {
        node.carry_out(file, report)?;
    }
    switch::systemctl(&["daemon-reload"], args.node.dry_run, report).await
}

/// Whether containers stand on sluice; refused unless that was foreseen.
async fn standing(args: &UninstallArgs, node: &Node) -> anyhow::Result<bool> {
    let mut client = Client::connect(&args.node.socket(node)?).await?;
    match client.containers_on(SNAPSHOTTER).await? {
        0 => Ok(false),
        _ if args.force => Ok(true),
        count => bail!(
            "{count} containers of this node stand on sluice, and containerd could no longer remove them: drain the node first \
             (kubectl drain NODE), or go on with --force"
        ),
    }
}

async fn switch_back(args: &NodeArgs, node: &Node, report: &mut Report) -> anyhow::Result<()> {
    if args.dry_run {
        return report.command("systemctl restart containerd");
    }
    let (socket, snapshotter) = (args.socket(node)?, node.configuration()?.snapshotter());
    let mut client = switch::restart_containerd(&socket, &snapshotter, report).await?;
    switch::forget_images(&mut client, &snapshotter, false, report).await
}

fn next(args: &NodeArgs, node: &Node, unit: Option<&str>, report: &mut Report) -> anyhow::Result<()> {
    if !node.root.is_machine() {
        return Ok(());
    }
    report.next("systemctl restart containerd".to_owned())?;
    report.next(args.images_line("uninstall", node))?;
    if let Some(unit) = unit {
        report.next(format!("systemctl stop {unit}"))?;
        report.next("systemctl daemon-reload".to_owned())?;
    }
    Ok(())
}
