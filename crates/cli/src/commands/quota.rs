//! `sluice quota`: what a project may use of a mesh, and what of it is used.

use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use proto::quota_set_request::To;
use proto::{QuotaMetric, QuotaMode, QuotaSetRequest, QuotaShowRequest, QuotaStatus, QuotaWindow};
use quota::Amount;
use serde::Serialize;

use super::Context;
use crate::session::{self, Session};
use crate::{embedded::Embedded, render};

/// Show or change what projects may use of the mesh
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  sluice quota show                                         of the project of the settings
  sluice --project team-a quota show --json
  sluice --project team-a quota set content_requests minute 100000
  sluice --project team-a quota set content_bytes day 10TiB --shadow
  sluice quota set imports day 500 --every-project
  sluice --project team-a quota set content_bytes day forget

What is limited, and what happens then: docs/quota.md")]
pub enum QuotaCommand {
    /// Show each limit of the project, where it comes from, and what of it is drawn in this minute and day
    ///
    /// With --nats, or nats.url in the settings: what the quota services of the mesh say. Without, nobody can be asked: the limits of this
    /// command's own settings are shown.
    Show(ShowArgs),
    Set(SetArgs),
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Limits of a minute are of a project and a region [default: cache.quota.region of the settings]
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
}

/// Set a limit of the project from now on, before what the configuration says
///
/// It is kept in the mesh, and holds within a minute.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// content_requests, content_bytes or imports
    #[arg(value_parser = metric)]
    metric: QuotaMetric,
    /// minute (in each region) or day (of UTC)
    #[arg(value_parser = window)]
    window: QuotaWindow,
    /// A number, a size like 10GiB, unlimited; or forget: what the configuration says holds again
    #[arg(value_parser = Wanted::from_str, allow_hyphen_values = true)]
    limit: Wanted,
    /// Only watch: count and tell what would be refused, and refuse nothing
    #[arg(long)]
    shadow: bool,
    /// Of every project that has no limit of its own
    #[arg(long)]
    every_project: bool,
}

#[derive(Clone, Copy, Debug)]
enum Wanted {
    Amount(Amount),
    Forget,
}

impl FromStr for Wanted {
    type Err = quota::NotALimit;

    fn from_str(text: &str) -> Result<Wanted, quota::NotALimit> {
        match text {
            "forget" => Ok(Wanted::Forget),
            amount => amount.parse().map(Wanted::Amount),
        }
    }
}

/// `--json`, one of several.
#[derive(Debug, Serialize)]
struct Shown {
    name: String,
    metric: &'static str,
    window: &'static str,
    /// None: unlimited.
    limit: Option<u64>,
    mode: &'static str,
    source: String,
    used: u64,
    ends_in_seconds: u64,
}

pub async fn run(context: &Context, command: QuotaCommand) -> anyhow::Result<ExitCode> {
    match command {
        QuotaCommand::Show(args) => show(context, args).await,
        QuotaCommand::Set(args) => set(context, args).await,
    }
}

async fn show(context: &Context, args: ShowArgs) -> anyhow::Result<ExitCode> {
    let settings = &context.settings;
    let region = args.region.unwrap_or_else(|| settings.cache.quota.region.clone());
    let request = QuotaShowRequest { project: settings.project.to_string(), region };
    let reply = match &settings.nats {
        Some(nats) => Session::over(session::connect(nats).await?).call(request, session::ASK).await,
        None => {
            let embedded = Embedded::quota_only(settings).await?;
            let reply = embedded.bus().call(request, session::ASK).await;
            embedded.stop().await;
            reply
        }
    };
    let limits: Vec<Shown> = reply.context("show the quota")?.limits.into_iter().map(Shown::from).collect();
    match context.global.json {
        true => render::json(&limits)?,
        false => render::line(table(&limits).trim_end())?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn set(context: &Context, args: SetArgs) -> anyhow::Result<ExitCode> {
    let Some(nats) = &context.settings.nats else {
        bail!(
            "limits are set live in a mesh: name its server with --nats, or in the settings (nats.url); of a node alone they stand in its \
             settings (quota.limits)"
        );
    };
    let project = if args.every_project { String::new() } else { context.settings.project.to_string() };
    let mode = if args.shadow { QuotaMode::Shadow } else { QuotaMode::Enforce };
    let request = QuotaSetRequest {
        project,
        metric: args.metric.into(),
        window: args.window.into(),
        to: Some(match args.limit {
            Wanted::Amount(Amount::Limit(limit)) => To::Limit(limit),
            Wanted::Amount(Amount::Unlimited) => To::Unlimited(true),
            Wanted::Forget => To::Forget(true),
        }),
        mode: mode.into(),
    };
    let session = Session::over(session::connect(nats).await?);
    session.call(request, session::ASK).await.context("set the quota")?;
    Ok(ExitCode::SUCCESS)
}

impl From<QuotaStatus> for Shown {
    fn from(status: QuotaStatus) -> Shown {
        Shown {
            metric: status.metric().code(),
            window: status.window().code(),
            mode: if status.mode() == QuotaMode::Shadow { "shadow" } else { "enforce" },
            limit: status.limit,
            used: status.used,
            ends_in_seconds: Duration::from_millis(status.ends_in_ms).as_secs(),
            name: status.name,
            source: status.source,
        }
    }
}

fn table(limits: &[Shown]) -> String {
    let row = |shown: &Shown| {
        let limit = shown.limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
        let ends = format!("{} s", shown.ends_in_seconds);
        let mode = if shown.limit.is_some() { shown.mode } else { "" };
        [shown.metric, shown.window, &limit, mode, &shown.source, &shown.used.to_string(), &ends]
            .map(str::to_owned)
            .to_vec()
    };
    let columns = ["metric", "window", "limit", "mode", "from", "used", "ends in"];
    render::table(&columns, &[2, 5, 6], limits.iter().map(row).collect())
}

fn metric(text: &str) -> Result<QuotaMetric, String> {
    QuotaMetric::from_code(text)
        .ok_or_else(|| "content_requests, content_bytes or imports expected".to_owned())
}

fn window(text: &str) -> Result<QuotaWindow, String> {
    QuotaWindow::from_code(text).ok_or_else(|| "minute or day expected".to_owned())
}
