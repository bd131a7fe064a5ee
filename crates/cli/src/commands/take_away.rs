//! What is left of a container after whoever attended to it was killed: taken away by a process that waits for just that.
//!
//! ```text
//! sluice run --starts--> sluice take-away    standard input: a pipe that only `sluice run` holds
//!            --one byte--> it ends            or the end of the input, with none: the container ends, and its mounts
//! ```

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::Context as _;
use clap::Args;

use super::Context;
use crate::args::Global;
use crate::node::Node;
use crate::progress::Progress;
use crate::runtime::{Folder, Runtime};
use crate::settings::{self, Settings};

/// Wait for the end of standard input, then take a container away whose attendant was killed
#[derive(Debug, Args)]
pub struct TakeAwayArgs {
    /// The container's folder
    folder: PathBuf,
    #[arg(long)]
    runtime: PathBuf,
}

/// The process that waits for the end of this one. Dropped, it is told that there is nothing to do.
#[derive(Debug)]
pub struct Waiting(Child);

impl Waiting {
    pub fn start(
        global: &Global,
        settings: &Settings,
        runtime: &Runtime,
        folder: &Folder,
    ) -> anyhow::Result<Waiting> {
        let log = settings.state.join("serve.log");
        let log = File::options().create(true).append(true).open(&log);
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.args(settings::flags(global)?).arg("take-away").arg(&folder.path);
        command.arg("--runtime").arg(runtime.program()).current_dir("/");
        // A disk without room for a log is no reason to leave a container behind.
        let log = log.map_or_else(|_| Stdio::null(), Stdio::from);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        // Whatever ends our group is not meant for it.
        let child = command.process_group(0).spawn().context("start what takes a container away")?;
        Ok(Waiting(child))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(mut input) = self.0.stdin.take() {
            let _gone_already = input.write_all(b".");
        }
    }
}

impl TakeAwayArgs {
    /// Waits for the end of who started this; whether it was one without a word. Before anything else of a program is made:
    /// this takes as long as the container runs.
    pub fn is_needed(&self) -> bool {
        loop {
            match std::io::stdin().read(&mut [0]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => return !matches!(read, Ok(1..)),
            }
        }
    }
}

pub async fn run(context: &Context, args: TakeAwayArgs) -> anyhow::Result<ExitCode> {
    let runtime = Runtime::find(Some(&args.runtime), context.settings.state.join("runtime"))?;
    let progress = Progress::new(true);
    // None: it is gone, or somebody else takes it away.
    if args.folder.exists()
        && let Some(folder) = Folder::lock(args.folder)?
    {
        take_away(context, &runtime, folder, &progress).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Kills what still runs in the container, and takes away all that there is of it.
pub async fn take_away(
    context: &Context,
    runtime: &Runtime,
    folder: Folder,
    progress: &Progress,
) -> anyhow::Result<()> {
    if let Err(error) = runtime.delete(&folder.id) {
        tracing::warn!(error = %format!("{error:#}"), "clean up after a container that was killed");
    }
    // No node is started for what is not mounted.
    if folder.is_mounted() {
        let mut node = context.node(progress).await?;
        leave(&mut node, &folder, progress).await;
    }
    Ok(())
}

/// Takes the root away. Its folder goes with `folder`, but never while something is mounted in it.
pub async fn leave(node: &mut Node, folder: &Folder, progress: &Progress) {
    if let Err(status) = node.unmount(&folder.path.join("rootfs")).await
        && status.code() != tonic::Code::NotFound
    {
        tracing::warn!(error = status.message(), path = %folder.path.display(), "unmount the container's root");
    }
    if folder.keep {
        progress.note(&format!("what the container wrote is in {}", folder.part("upper")));
    }
}
