//! `sluice mount`: an image's file tree at a folder, streaming.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use proto::{MountRequest, Mounted};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Context;
use crate::embedded::Embedded;
use crate::node::Node;
use crate::progress::Progress;
use crate::render;
use crate::runtime::signals::Caught;

/// Mount an image's file tree, read-only; returns when it can be used
///
/// Files stream as they are read, and the rest arrives in the background. Without --foreground a node that runs in
/// the background does the work; one is started when none runs, and ends by itself after the last umount.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice mount debian:12 /mnt && ls /mnt && sluice umount /mnt
  sluice mount --foreground oci:build/app /mnt      ctrl-c unmounts
  sluice mount --complete debian:12 /mnt            wait until everything is here")]
pub struct MountArgs {
    /// A registry reference, oci:DIR[:TAG] or docker-archive:FILE
    image: String,
    /// An empty folder
    dir: PathBuf,
    /// Stay, and unmount on ctrl-c
    #[arg(long)]
    foreground: bool,
    /// Return only when the whole image is on this machine
    #[arg(long)]
    complete: bool,
}

/// `--json`.
#[derive(Debug, Serialize)]
struct MountResult {
    target: String,
    manifest_digest: String,
    /// Absent when the image was imported before.
    import: Option<super::import::Summary>,
    phases: Vec<Phase>,
}

#[derive(Debug, Serialize)]
struct Phase {
    name: String,
    seconds: f64,
}

pub async fn run(context: &Context, args: MountArgs) -> anyhow::Result<ExitCode> {
    super::require_root("mount an image")?;
    let target = std::path::absolute(&args.dir).with_context(|| format!("find {}", args.dir.display()))?;
    let image = Some(context.requests()?.resolve(&args.image).await?);
    let request = MountRequest { image, target: target.display().to_string(), ..MountRequest::default() };
    let mut progress = context.progress();
    match args.foreground {
        false => {
            let mut node = context.node(&progress).await?;
            mount(context, &args, &mut node, request, &mut progress).await?;
        }
        true => foreground(context, &args, request, progress).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn mount(
    context: &Context,
    args: &MountArgs,
    node: &mut Node,
    request: MountRequest,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    let target = request.target.clone();
    let mounted = node.mount(request, progress).await;
    let mounted = mounted.with_context(|| format!("mount {} at {target}", args.image))?;
    if args.complete {
        let completed = node.complete(&mounted.manifest_digest, progress).await;
        completed.with_context(|| format!("complete {}", args.image))?;
    }
    report(context, &args.image, target, mounted)
}

/// Stays until ctrl-c, with the node that runs or one in this process.
async fn foreground(
    context: &Context,
    args: &MountArgs,
    request: MountRequest,
    mut progress: Progress,
) -> anyhow::Result<()> {
    let mut caught = Caught::new()?;
    let target = PathBuf::from(&request.target);
    let (mut node, embedded) = match context.running_node().await {
        Ok(node) => (node, None),
        Err(error) if context.global.node.is_some() || context.settings.nats.is_some() => return Err(error),
        Err(_) => {
            crate::node::make_state(&context.settings.state)?;
            let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
            let embedded = Embedded::node(&context.settings, tasks, shutdown).await?;
            (Node::connect(context.settings.node_socket()).await?, Some(embedded))
        }
    };
    let result = tokio::select! {
        result = mount(context, args, &mut node, request, &mut progress) => result.map(|()| true),
        _ = caught.next() => Ok(false),
    };
    progress.finish();
    if let Ok(true) = result {
        progress.note("mounted; ctrl-c unmounts");
        caught.next().await;
    }
    let unmounted = match result {
        Ok(true) => node.unmount(&target).await.with_context(|| format!("unmount {}", target.display())),
        _ => Ok(()),
    };
    drop(node);
    if let Some(embedded) = embedded {
        embedded.stop().await;
    }
    result.and(unmounted)
}

fn report(context: &Context, image: &str, target: String, mounted: Mounted) -> anyhow::Result<()> {
    let phases: Vec<Phase> = mounted
        .phases
        .into_iter()
        .map(|phase| Phase { name: phase.name, seconds: phase.microseconds as f64 / 1e6 })
        .collect();
    if context.global.json {
        let import = mounted.imported.map(super::import::Summary::from);
        return render::json(&MountResult {
            target,
            manifest_digest: mounted.manifest_digest,
            import,
            phases,
        });
    }
    if context.global.quiet {
        return Ok(());
    }
    let parts: Vec<String> =
        phases.iter().map(|phase| format!("{} {:.0} ms", phase.name, phase.seconds * 1e3)).collect();
    render::line(&format!(
        "{image} ({}) at {target}: {}",
        render::short(&mounted.manifest_digest),
        parts.join(", ")
    ))
}
