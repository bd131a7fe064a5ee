//! `sluice umount`: ends a mount.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use rustix::mount::{UnmountFlags, unmount};

use super::Context;

/// End a mount; `umount DIR` does the same
#[derive(Debug, Args)]
pub struct UmountArgs {
    dir: PathBuf,
}

pub async fn run(context: &Context, args: UmountArgs) -> anyhow::Result<ExitCode> {
    let target = std::path::absolute(&args.dir).with_context(|| format!("find {}", args.dir.display()))?;
    let failed = || format!("unmount {}", target.display());
    match context.running_node().await {
        Ok(mut node) => node.unmount(&target).await.with_context(failed)?,
        // The kernel knows the mount also when no frontend runs any more.
        Err(_) => unmount(&target, UnmountFlags::empty()).with_context(failed)?,
    }
    Ok(ExitCode::SUCCESS)
}
