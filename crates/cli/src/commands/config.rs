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
    /// Print the public key of this machine's fetcher, for the trusted_keys of caches and frontends
    ///
    /// The key is made when there is none: settings name its file as fetcher.signing_key_file.
    Key,
}

pub fn run(global: &Global, command: ConfigCommand) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(global)?;
    settings.check()?;
    match command {
        ConfigCommand::Key => render::line(&public_key(&settings)?)?,
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

fn public_key(settings: &Settings) -> anyhow::Result<String> {
    crate::node::make_state(&settings.state)?;
    Ok(hex::encode(fetcher::verifying_key(&settings.fetcher)?.as_bytes()))
}
