//! `sluice run`: a container whose root streams.

use std::convert::Infallible;
use std::io::IsTerminal as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use proto::{MountRequest, Mounted};

use super::Context;
use crate::exit::{ExitWith, RUN_FAILED};
use crate::node::Node;
use crate::progress::Progress;
use crate::runtime::container::Streams;
use crate::runtime::signals::Caught;
use crate::runtime::user::RootDir;
use crate::runtime::{Container, Folder, ImageConfig, Network, RunOptions, Runtime, Volume, spec, user};

/// Longest container name; runc makes folder names of it.
const NAME_MAX: usize = 100;
/// Before a node that is gone is looked for, or started.
const NODE_PAUSE: Duration = Duration::from_millis(500);

/// Run a command in a container whose files stream
///
/// Entrypoint, command, variables, directory and user are the image's own unless said otherwise. The container sees
/// the host's network by default (--net none takes it away). What it writes is gone when it ends, unless --keep.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice run debian:12 -- cat /etc/os-release
  sluice run -t debian:12 -- bash
  sluice run --env MODE=test --volume $PWD:/src:ro --workdir /src oci:build/app -- make check

The exit code is the command's own; 125 when sluice itself failed.")]
pub struct RunArgs {
    /// A registry reference, oci:DIR[:TAG] or docker-archive:FILE
    image: String,
    /// Set a variable; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<String>,
    /// Start in this directory of the container
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Run as this user: a name, a number, or USER:GROUP
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Nothing in the container's root can be written
    #[arg(long)]
    read_only: bool,
    /// Show a file or folder of this machine in the container; may be repeated
    #[arg(long, value_name = "SRC:DST[:ro]")]
    volume: Vec<Volume>,
    /// The container's network
    #[arg(long, value_enum, default_value_t)]
    net: Network,
    /// Replace the image's entrypoint, and its command with it
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Name the container
    #[arg(long, value_parser = container_name)]
    name: Option<String>,
    /// The OCI runtime [default: runc, else crun]
    #[arg(long, value_name = "PROGRAM")]
    runtime: Option<PathBuf>,
    /// Keep what the container wrote, and say where
    #[arg(long)]
    keep: bool,
    /// The command and its arguments, in place of the image's
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

pub async fn run(context: &Context, args: RunArgs) -> anyhow::Result<ExitCode> {
    let status = container(context, args).await.map_err(|source| ExitWith { code: RUN_FAILED, source })?;
    Ok(ExitCode::from(exit_code(status)))
}

async fn container(context: &Context, args: RunArgs) -> anyhow::Result<ExitStatus> {
    super::require_root("run a container")?;
    let mut caught = Caught::new()?;
    let mut progress = context.progress();
    let runtime = Runtime::find(args.runtime.as_deref(), context.settings.state.join("runtime"))?;
    let parent = context.settings.state.join("run");
    let mut node = context.node(&progress).await?;
    for left in Folder::left_behind(&parent)? {
        take_away(&mut node, &runtime, left, &progress).await;
    }
    let folder = Folder::create(&parent, args.name.as_deref(), args.keep)?;
    let request = MountRequest {
        image: Some(context.requests()?.resolve(&args.image)?),
        target: folder.part("rootfs"),
        upper: folder.part("upper"),
        work: folder.part("work"),
    };
    let status = tokio::select! {
        mounted = node.mount(request, &mut progress) => {
            let mounted = mounted.with_context(|| format!("mount {}", args.image))?;
            tokio::select! {
                status = in_root(runtime, &folder, &mounted, &args, &mut caught) => status,
                never = keep(context, node.clone(), &progress) => match never {},
            }
        }
        _ = caught.next() => Err(anyhow::anyhow!("interrupted while the image was mounted")),
    };
    leave(&mut node, &folder, &progress).await;
    status
}

/// Starts the node again when it is gone, as long as the container runs: what that reads would wait for ever.
async fn keep(context: &Context, mut node: Node, progress: &Progress) -> Infallible {
    loop {
        if let Ok(mut events) = node.events(true).await {
            while let Ok(Some(_)) = events.message().await {}
        }
        tokio::time::sleep(NODE_PAUSE).await;
        match context.node(progress).await {
            Ok(started) => node = started,
            Err(error) => tracing::warn!(error = %format!("{error:#}"), "the node is gone"),
        }
    }
}

/// Runs the container over its mounted root, from start to end.
async fn in_root(
    runtime: Runtime,
    folder: &Folder,
    mounted: &Mounted,
    args: &RunArgs,
    caught: &mut Caught,
) -> anyhow::Result<ExitStatus> {
    let config = ImageConfig::parse(&mounted.config)?;
    let options = args.options();
    let root = folder.path.join("rootfs");
    let name = options.user.clone().unwrap_or_else(|| config.user.clone());
    let looked_up = root.clone();
    // Reads the image's files, which may have to arrive first.
    let identity = tokio::task::spawn_blocking(move || user::identity(&name, &RootDir(&looked_up))).await??;
    let spec = spec::spec(&folder.id, &root, &config, &options, &identity)?;
    let mut container = Container::create(runtime, &folder.id, folder.path.join("bundle"), &spec)?;
    let shares_terminal = std::io::stdin().is_terminal();
    let mut process = container.run(Streams::Inherit, !shares_terminal)?;
    let pid = process.id().unwrap_or_default();
    let status = tokio::select! {
        status = process.wait() => status.context("wait for the container")?,
        never = caught.forward(pid, shares_terminal) => match never {},
    };
    let failure = if status.success() { None } else { container.failure() };
    container.delete()?;
    failure.map_or(Ok(status), |failure| Err(failure.into()))
}

/// What a `sluice run` that was killed left: its root would keep the node alive for ever.
async fn take_away(node: &mut Node, runtime: &Runtime, folder: Folder, progress: &Progress) {
    if runtime.is_running(&folder.id) {
        folder.leave();
        return;
    }
    if let Err(error) = runtime.delete(&folder.id) {
        tracing::warn!(error = %format!("{error:#}"), "clean up after a container that was killed");
    }
    leave(node, &folder, progress).await;
}

/// Takes the root away. Its folder goes with `folder`, but never while something is mounted in it.
async fn leave(node: &mut Node, folder: &Folder, progress: &Progress) {
    if let Err(status) = node.unmount(&folder.path.join("rootfs")).await
        && status.code() != tonic::Code::NotFound
    {
        tracing::warn!(error = status.message(), path = %folder.path.display(), "unmount the container's root");
    }
    if folder.keep {
        progress.note(&format!("what the container wrote is in {}", folder.part("upper")));
    }
}

impl RunArgs {
    fn options(&self) -> RunOptions {
        RunOptions {
            command: self.command.clone(),
            entrypoint: self.entrypoint.clone(),
            env: self.env.clone(),
            working_dir: self.workdir.clone(),
            user: self.user.clone(),
            terminal: self.tty,
            read_only: self.read_only,
            volumes: self.volume.clone(),
            network: self.net,
        }
    }
}

/// The command's own, or 128 and the signal's number as a shell has it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(RUN_FAILED)
}

fn variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err("NAME=VALUE expected".to_owned()),
    }
}

fn container_name(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    match starts_well && text.len() <= NAME_MAX && text.chars().all(good) {
        true => Ok(text.to_owned()),
        false => Err("letters, digits, `-`, `_` and `.` expected, a letter or digit first".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_folders_and_cannot_climb() {
        assert!(container_name("web-1.test_2").is_ok());
        for wrong in ["", ".", "..", "a/b", "-a", &"a".repeat(NAME_MAX + 1)] {
            assert!(container_name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn exit_codes_are_passed_on() {
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
    }
}
