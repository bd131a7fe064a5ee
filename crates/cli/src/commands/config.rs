//! `sluice config`: the settings that result from files, environment and flags.

use std::process::ExitCode;

use clap::Subcommand;

use crate::args::Global;
use crate::render;
use crate::settings::{self, Settings};

/// Check or show the settings
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether the settings can be read, and what is wrong with them
    Check,
    /// Print the settings in effect as TOML, with secrets left out
    Show,
}

pub fn run(global: &Global, command: ConfigCommand) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(global)?;
    settings.check()?;
    match command {
        ConfigCommand::Show => render::line(lifecycle::config::show(&settings)?.trim_end())?,
        ConfigCommand::Check => {
            let files: Vec<_> =
                settings::files(global).iter().map(|file| file.display().to_string()).collect();
            let source = if files.is_empty() { "no file".to_owned() } else { files.join(", ") };
            render::line(&format!("ok ({source})"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
