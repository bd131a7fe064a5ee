//! `sluice run`: a container whose root streams.

mod attend;
mod detached;

use std::convert::Infallible;
use std::io::IsTerminal as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use proto::{MountRequest, Mounted};
use rustix::process::Signal;

use attend::{Attended, Detached};
use detached::Started;

use super::Context;
use super::take_away::{Waiting, leave, take_away};
use crate::exit::{ExitWith, RUN_FAILED};
use crate::node::Node;
use crate::progress::Progress;
use crate::render;
use crate::runtime::container::Streams;
use crate::runtime::output::Kept;
use crate::runtime::signals::{self, Caught};
use crate::runtime::user::RootDir;
use crate::runtime::{
    Container, Folder, ImageConfig, Init, Network, RunOptions, Runtime, Volume, spec, user,
};

/// What a detached container prints, in its folder.
const OUTPUT: &str = "output";
/// Longest container name; runc makes folder names of it.
const NAME_MAX: usize = 100;
/// Before a node that is gone is looked for, or started.
const NODE_PAUSE: Duration = Duration::from_millis(500);

/// Run a command in a container whose files stream
///
/// Entrypoint, command, variables, directory and user are the image's own unless said otherwise. The container has a network of
/// its own with nothing in it but loopback; --net host gives it the machine's. What it writes is gone when it ends, unless --keep.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice run debian:12 -- cat /etc/os-release
  sluice run -t debian:12 -- bash
  sluice run --env MODE=test --volume $PWD:/src:ro --workdir /src oci:build/app -- make check
  sluice run --detach --name web --net host oci:build/web && sluice stop web

Signals are passed on to the command. A third Ctrl-C kills it, and so does SIGTERM when it has not ended after --stop-timeout.
With --tty, Ctrl-C goes to the command as any key does; `sluice stop NAME` ends it from elsewhere. A command that ignores signals,
such as sleep, ends by them with --init.

The exit code is the command's own, or 128 and the number of the signal that ended it; 127 when there is no such command, 126 when it
cannot be executed, 125 when sluice itself failed.")]
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
    #[arg(long, alias = "network", value_enum, default_value_t)]
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
    /// Return when the container runs, and print its name; `sluice stop NAME` ends it
    #[arg(short, long, conflicts_with = "tty")]
    detach: bool,
    /// Run the command below a first process that passes signals on and takes in orphans: for commands that ignore signals otherwise
    #[arg(long)]
    init: bool,
    /// How long the command may take to end after SIGTERM or `sluice stop` before it is killed
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    stop_timeout: Duration,
    /// Keep what the container wrote, and say where
    #[arg(long)]
    keep: bool,
    /// The command and its arguments, in place of the image's
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

pub async fn run(context: &Context, args: RunArgs) -> anyhow::Result<ExitCode> {
    if args.detach && !detached::is_attendant() {
        return start_detached(context).await.map_err(failed);
    }
    let status = container(context, args).await.map_err(failed)?;
    Ok(ExitCode::from(exit_code(status)))
}

/// An error of ours, unless it says otherwise.
fn failed(source: anyhow::Error) -> anyhow::Error {
    match source.downcast::<ExitWith>() {
        Ok(with) => with.into(),
        Err(source) => ExitWith { code: RUN_FAILED, source }.into(),
    }
}

async fn start_detached(context: &Context) -> anyhow::Result<ExitCode> {
    match detached::start().await? {
        Started::Failed(code) => Ok(code),
        Started::Running(name) => {
            render::line(&name)?;
            let output = context.settings.state.join("run").join(&name).join(OUTPUT);
            let ends = format!("`sluice stop {name}` ends the container");
            context.progress().note(&format!("{ends}; what it prints is in {}", output.display()));
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn container(context: &Context, args: RunArgs) -> anyhow::Result<ExitStatus> {
    super::require_root("run a container")?;
    if args.detach {
        detached::leave_session()?;
    }
    let mut caught = Caught::all()?;
    let mut progress = context.progress();
    let runtime = Runtime::find(args.runtime.as_deref(), context.settings.state.join("runtime"))?;
    let parent = context.settings.state.join("run");
    let mut node = context.node(&progress).await?;
    for left in Folder::left_behind(&parent)? {
        // Whose end nobody could wait for: one that runs is ended by `sluice stop`.
        if runtime.is_running(&left.id) {
            left.leave();
        } else if let Err(error) = take_away(context, &runtime, left, &progress).await {
            tracing::warn!(error = %format!("{error:#}"), "take a container away that was left behind");
        }
    }
    let folder = Folder::create(&parent, args.name.as_deref(), args.keep)?;
    let _waiting = Waiting::start(&context.global, &context.settings, &runtime, &folder)?;
    let request = MountRequest {
        image: Some(context.requests()?.resolve(&args.image).await?),
        target: folder.part("rootfs"),
        upper: folder.part("upper"),
        work: folder.part("work"),
    };
    let status = tokio::select! {
        mounted = node.mount(request, &mut progress) => {
            let mounted = mounted.with_context(|| format!("mount {}", args.image))?;
            tokio::select! {
                status = in_root(context, runtime, &folder, &mounted, &args, &mut caught) => status,
                never = keep(context, node.clone(), &progress) => match never {},
            }
        }
        signal = caught.ending() => Err(interrupted(signal)),
    };
    leave(&mut node, &folder, &progress).await;
    status
}

fn interrupted(signal: i32) -> anyhow::Error {
    let code = u8::try_from(128 + signal).unwrap_or(RUN_FAILED);
    ExitWith { code, source: anyhow::anyhow!("interrupted while the image was mounted") }.into()
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
    context: &Context,
    runtime: Runtime,
    folder: &Folder,
    mounted: &Mounted,
    args: &RunArgs,
    caught: &mut Caught,
) -> anyhow::Result<ExitStatus> {
    let config = ImageConfig::parse(&mounted.config)?;
    let options = args.options()?;
    let root = folder.path.join("rootfs");
    let name = options.user.clone().unwrap_or_else(|| config.user.clone());
    let looked_up = root.clone();
    // Reads the image's files, which may have to arrive first.
    let identity = tokio::task::spawn_blocking(move || user::identity(&name, &RootDir(&looked_up))).await??;
    let spec = spec::spec(&folder.id, &root, &config, &options, &identity)?;
    let mut container = Container::create(runtime.clone(), &folder.id, folder.path.join("bundle"), &spec)?;
    let streams = if args.detach { Streams::Capture } else { Streams::Inherit };
    // On a terminal a process of another group may not do everything, and the runtime does.
    let shares_group = !args.detach && on_terminal();
    let mut process = container.run(streams, !shares_group)?;
    let output = args.detach.then(|| Kept::of(&mut process, folder.path.join(OUTPUT))).transpose()?;
    let attended = Attended {
        runtime: &runtime,
        id: &folder.id,
        progress: &context.progress(),
        terminal: args.tty,
        detached: args.detach.then(|| Detached {
            stop_signal: signals::number_of(&config.stop_signal).unwrap_or(Signal::TERM.as_raw()),
            log: context.settings.state.join("serve.log"),
        }),
        grace: args.stop_timeout,
        reads_terminal: std::io::stdin().is_terminal(),
        shares_group,
    };
    let ended = attended.until_end(&container, &mut process, caught).await?;
    if let Some(output) = output {
        output.finish().await;
    }
    let failure = if ended.killed || ended.status.success() { None } else { container.failure() };
    container.delete()?;
    let Some(failure) = failure else { return Ok(ended.status) };
    Err(ExitWith { code: failure.command_code().unwrap_or(RUN_FAILED), source: failure.into() }.into())
}

fn on_terminal() -> bool {
    use std::io::{stderr, stdin, stdout};
    stdin().is_terminal() || stdout().is_terminal() || stderr().is_terminal()
}

impl RunArgs {
    fn options(&self) -> anyhow::Result<RunOptions> {
        Ok(RunOptions {
            command: self.command.clone(),
            entrypoint: self.entrypoint.clone(),
            env: self.env.clone(),
            working_dir: self.workdir.clone(),
            user: self.user.clone(),
            terminal: self.tty,
            read_only: self.read_only,
            volumes: self.volume.clone(),
            network: self.net,
            init: self.init.then(Init::of_this_program).transpose()?,
        })
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
