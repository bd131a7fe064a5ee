//! `sluice evict`: takes an image's content off this node.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use super::Context;
use crate::render;
use crate::request::Requests;

/// Take an image's content off this node; refused while it is mounted
#[derive(Debug, Args)]
pub struct EvictArgs {
    /// A reference or a manifest digest
    image: String,
}

pub async fn run(context: &Context, args: EvictArgs) -> anyhow::Result<ExitCode> {
    let image = Requests::reference(&args.image)?;
    let mut node = context.running_node().await?;
    let reply = node.evict(&image).await.with_context(|| format!("evict {}", args.image))?;
    match context.global.json {
        true => render::json(&serde_json::json!({ "freed_bytes": reply.freed_bytes }))?,
        false => render::line(&format!("freed {}", render::bytes(reply.freed_bytes)))?,
    }
    Ok(ExitCode::SUCCESS)
}
