//! `sluice stop`: ends containers that `sluice run` started.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Context, take_away};
use crate::runtime::{Folder, Runtime};

/// Stop containers that `sluice run` started, in the foreground or with --detach
///
/// Each is told to end by the signal that its image names, or SIGTERM, and killed when it has not after its --stop-timeout. Returns when it
/// is gone, with what was mounted for it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice stop web
  sluice stop $(sluice run --detach debian:12 -- sleep 1000)")]
pub struct StopArgs {
    /// As `sluice run --detach` printed it, or --name said
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

pub async fn run(context: &Context, args: StopArgs) -> anyhow::Result<ExitCode> {
    super::require_root("stop a container")?;
    let parent = context.settings.state.join("run");
    let all = Folder::all(&parent)?;
    // All are told before one is waited for.
    let mut ending = Vec::new();
    for name in &args.names {
        let path = all.iter().find(|path| path.file_name().is_some_and(|file| file == name.as_str()));
        let Some(path) = path else { bail!("no container is named {name}: {}", known(&all)) };
        tell(path)?;
        ending.push(path.clone());
    }
    for path in ending {
        gone(context, path).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks who attends to the container to end it. If nobody does there is nobody to ask.
fn tell(path: &Path) -> anyhow::Result<()> {
    let attendant = Folder::attendant(path).and_then(|process| Ok(pidfd_open(process, PidfdFlags::empty())?));
    // As long as somebody holds the folder it is that process which was opened, and no other that got its number.
    let held = match Folder::lock(path.to_owned()) {
        Ok(Some(folder)) => {
            folder.leave();
            false
        }
        Ok(None) => true,
        // It has just gone.
        Err(_) => false,
    };
    if held {
        pidfd_send_signal(attendant?, Signal::TERM)
            .with_context(|| format!("tell who attends to {}", path.display()))?;
    }
    Ok(())
}

/// Waits until the container is gone, and takes away what nobody attends to.
async fn gone(context: &Context, path: PathBuf) -> anyhow::Result<()> {
    let left = tokio::task::spawn_blocking(move || Folder::released(&path)).await??;
    let Some(folder) = left else { return Ok(()) };
    if folder.keep && !folder.is_mounted() {
        folder.leave();
        return Ok(());
    }
    let runtime = Runtime::find(None, context.settings.state.join("runtime"))?;
    take_away::take_away(context, &runtime, folder, &context.progress()).await
}

fn known(all: &[PathBuf]) -> String {
    let names: Vec<_> = all.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    match names[..] {
        [] => "none runs".to_owned(),
        _ => format!("there are {}", names.join(", ")),
    }
}
