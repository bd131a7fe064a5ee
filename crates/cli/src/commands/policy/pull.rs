//! `sluice policy pull`: a plugin from a registry.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use policy::{Access, PulledPlugin, Registries, RemoteName};
use serde::Serialize;

use super::super::Context;
use crate::render;

/// Pull a plugin from a registry and check it; prints the source that a policy set names it by
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice policy pull oci://registry.example/team/mine:1.0            what does this tag mean today?
  sluice policy pull oci://registry.example/team/mine@sha256:… -o mine.wasm

With policy.trust.public_keys it is only pulled when one of them signed it.")]
pub struct PullArgs {
    /// oci://HOST[:PORT]/REPOSITORY[:TAG][@sha256:HEX]
    #[arg(value_name = "NAME")]
    from: RemoteName,
    /// Write the plugin here
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Serialize)]
struct Pulled {
    source: String,
    bytes: usize,
    signed: bool,
}

pub(super) async fn run(context: &Context, args: PullArgs) -> anyhow::Result<ExitCode> {
    let plugin = pull(context, &args.from, context.requests()?.access()).await?;
    if let Some(file) = &args.output {
        std::fs::write(file, &plugin.bytes).with_context(|| format!("write {}", file.display()))?;
    }
    let source = plugin.name.to_string();
    match context.global.json {
        true => render::json(&Pulled { source, bytes: plugin.bytes.len(), signed: plugin.signed })?,
        false => render::line(&source)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// As the service would.
pub(super) async fn pull(
    context: &Context,
    name: &RemoteName,
    access: Access,
) -> anyhow::Result<PulledPlugin> {
    Registries::new(&context.settings.policy)?.pull(name, access).await
}
