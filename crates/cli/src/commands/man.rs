//! `sluice man`: manual pages, for packages.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};

use crate::args::Cli;

/// Write the manual pages of sluice and its commands, as packages install them
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The folder that gets them, as in share/man/man1; made when absent
    folder: PathBuf,
}

pub fn run(args: &ManArgs) -> anyhow::Result<ExitCode> {
    let writing = || format!("write manual pages into {}", args.folder.display());
    std::fs::create_dir_all(&args.folder).with_context(writing)?;
    clap_mangen::generate_to(Cli::command(), &args.folder).with_context(writing)?;
    Ok(ExitCode::SUCCESS)
}
