//! `sluice gc`: deletes stored content that no image names.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use proto::CollectRequest;
use serde::Serialize;

use super::Context;
use crate::render;
use crate::session;

/// Delete stored content that no image names
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice gc --dry-run
  sluice gc --grace 0s       only when no import is running")]
pub struct GcArgs {
    /// Only say what would be deleted
    #[arg(long)]
    dry_run: bool,
    /// Keep content that is younger than this: a running import may be about to name it
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = humantime::parse_duration)]
    grace: Duration,
}

/// `--json`.
#[derive(Debug, Serialize)]
struct Collected {
    dry_run: bool,
    deleted: u64,
    deleted_bytes: u64,
    kept: u64,
}

pub async fn run(context: &Context, args: GcArgs) -> anyhow::Result<ExitCode> {
    let session = context.session().await?;
    let request = CollectRequest {
        project: context.settings.project.clone(),
        grace_seconds: u32::try_from(args.grace.as_secs()).context("--grace is too long")?,
        dry_run: args.dry_run,
    };
    let reply = session.call(request, session::COLLECT).await.context("collect unneeded content")?;
    let collected = Collected {
        dry_run: args.dry_run,
        deleted: reply.deleted,
        deleted_bytes: reply.deleted_bytes,
        kept: reply.kept,
    };
    let verb = if args.dry_run { "would delete" } else { "deleted" };
    match context.global.json {
        true => render::json(&collected)?,
        false => render::line(&format!(
            "{verb} {} ({}), kept {}",
            collected.deleted,
            render::bytes(collected.deleted_bytes),
            collected.kept
        ))?,
    }
    session.close().await;
    Ok(ExitCode::SUCCESS)
}
