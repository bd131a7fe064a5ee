//! `sluice policy push`: a plugin to a registry.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use policy::{Registries, RemoteName};
use serde::Serialize;

use super::super::Context;
use super::sign::read_key;
use crate::render;

/// Push a plugin to a registry; prints the source that a policy set names it by
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice policy push mine.wasm oci://registry.example/team/mine:1.0
  sluice policy push mine.wasm oci://registry.example/team/mine:1.0 --key mine.pem

Then in the policy set:  source = \"oci://registry.example/team/mine:1.0@sha256:…\", as it was printed.
The same file has the same digest, whenever it is pushed. Credentials are those of `docker login`.")]
pub struct PushArgs {
    /// A WebAssembly component; it is checked first, as `sluice policy check` does
    #[arg(value_name = "PLUGIN")]
    file: PathBuf,
    /// oci://HOST[:PORT]/REPOSITORY[:TAG]
    #[arg(value_name = "NAME")]
    to: RemoteName,
    /// Sign it as well, with this private key (PEM)
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

#[derive(Serialize)]
struct Pushed {
    source: String,
    signed: bool,
}

pub(super) async fn run(context: &Context, args: PushArgs) -> anyhow::Result<ExitCode> {
    let key = args.key.as_deref().map(read_key).transpose()?;
    let (config, access) = (&context.settings.policy, context.requests()?.access());
    let limits = config.limits.clone();
    let plugin = policy::read_plugin(&args.file, &limits)?;
    let title = args.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let bytes = plugin.clone();
    let outline = tokio::task::spawn_blocking(move || policy::outline(&bytes, limits)).await?;
    let outline = outline.with_context(|| format!("{} cannot be used", args.file.display()))?;
    let registries = Registries::new(config)?;
    let pushed = registries.push(plugin, &title, &outline, &args.to, access.clone()).await?;
    if let Some(key) = &key {
        registries.sign(&pushed, key, access).await?;
    }
    match context.global.json {
        true => render::json(&Pushed { source: pushed.to_string(), signed: key.is_some() })?,
        false => render::line(&pushed.to_string())?,
    }
    Ok(ExitCode::SUCCESS)
}
