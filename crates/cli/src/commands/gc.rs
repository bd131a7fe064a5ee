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
  sluice gc --grace 0s       only when no import is running

Nothing is deleted while a record is not believed or cannot be read, for example as a fetcher with another key wrote it: what it \
names may be in use. `sluice ls` lists such records; trust their key (fetcher.trusted_keys), or forget them (`sluice rm --force`).

What removed images named goes without a question. When more than a quarter of the store, by objects or by bytes, would go besides, \
image records may be missing, and --force is asked for.")]
pub struct GcArgs {
    /// Only say what would be deleted
    #[arg(long)]
    dry_run: bool,
    /// Keep content that is younger than this: a running import may be about to name it
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// Delete also when that is more than a quarter of the store and no image was removed
    #[arg(long)]
    force: bool,
}

/// `--json`.
#[derive(Debug, Serialize)]
struct Collected {
    dry_run: bool,
    deleted: u64,
    deleted_bytes: u64,
    kept: u64,
    /// Why `--force` will be asked for, if it will.
    #[serde(skip_serializing_if = "String::is_empty")]
    needs_force: String,
}

pub async fn run(context: &Context, args: GcArgs) -> anyhow::Result<ExitCode> {
    let session = context.session().await?.with_context(|| super::no_store(context))?;
    let request = CollectRequest {
        project: context.settings.project.to_string(),
        grace_seconds: u32::try_from(args.grace.as_secs()).context("--grace is too long")?,
        dry_run: args.dry_run,
        force: args.force,
    };
    let reply = session.call(request, session::COLLECT).await;
    let reply = reply.with_context(|| format!("collect unneeded content{}", hint(context)))?;
    let collected = Collected {
        dry_run: args.dry_run,
        deleted: reply.deleted,
        deleted_bytes: reply.deleted_bytes,
        kept: reply.kept,
        needs_force: if args.force { String::new() } else { reply.needs_force },
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
    if !collected.needs_force.is_empty() {
        context.progress().note(&format!("it takes --force: {}", collected.needs_force));
    }
    session.close().await;
    Ok(ExitCode::SUCCESS)
}

/// Whoever has no key of their own believes no record of this store.
fn hint(context: &Context) -> String {
    let key = &context.settings.fetcher.signing_key_file;
    match context.settings.nats.is_none() && !key.exists() {
        true => format!(" (there is no signing key at {}: is --state another?)", key.display()),
        false => String::new(),
    }
}
