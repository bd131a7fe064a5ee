//! `sluice project`: whether a project's images stream.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{ArgGroup, Args, ValueEnum};
use names::Project;
use proto::switch_request::To;
use proto::{Call, ProjectSwitch, ProjectsRequest, SwitchRequest};
use serde::Serialize;

use super::Context;
use crate::embedded::Embedded;
use crate::render;
use crate::session::{self, Session};

/// Show for which projects images stream, or switch a project off and on
///
/// Off: who asks for one of its images is refused, so nodes pull it the ordinary way. What streams already reads on until its grants end
/// (fetcher.grant_ttl, 12 hours), as none is renewed; `sluice revoke project` ends them within a minute. On again, they are renewed.
///
/// What is switched here counts before the settings of fetchers, at once and on all of them.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("whose"), after_help = "\
Examples:
  sluice project                                    all of which something is said
  sluice project team-a --json
  sluice project team-a --streaming off
  sluice project team-a --streaming forget          what the settings say holds again
  sluice project --every-project --streaming off    all that are not named")]
pub struct ProjectArgs {
    #[arg(group = "whose")]
    name: Option<Project>,
    #[arg(long, value_enum, value_name = "SWITCH", requires = "whose")]
    streaming: Option<Switch>,
    /// Every project of which nothing is said by name
    #[arg(long, requires = "streaming", group = "whose")]
    every_project: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
    /// Take back what was switched here
    Forget,
}

/// `--json`, one of several.
#[derive(Debug, Serialize)]
struct Shown {
    /// None: every project that is not named.
    project: Option<String>,
    streaming: bool,
    source: String,
}

pub async fn run(context: &Context, args: ProjectArgs) -> anyhow::Result<ExitCode> {
    let project = args.name.map(|name| name.to_string()).unwrap_or_default();
    match args.streaming {
        Some(switch) => {
            let to = match switch {
                Switch::On => To::Streaming(true),
                Switch::Off => To::Streaming(false),
                Switch::Forget => To::Forget(true),
            };
            ask(context, SwitchRequest { project, to: Some(to) }).await.context("switch the project")?;
        }
        None => show(context, project).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(context: &Context, project: String) -> anyhow::Result<()> {
    let reply = ask(context, ProjectsRequest { project }).await.context("show the projects")?;
    if !reply.unknown.is_empty() {
        render::say(&reply.unknown);
    }
    let shown: Vec<Shown> = reply.projects.into_iter().map(Shown::from).collect();
    match context.global.json {
        true => render::json(&shown),
        false => render::line(table(&shown).trim_end()),
    }
}

/// Of the mesh's fetchers; without a mesh the answer stands in this machine's files.
async fn ask<C: Call>(context: &Context, request: C) -> anyhow::Result<C::Reply> {
    let settings = &context.settings;
    if let Some(nats) = &settings.nats {
        return Ok(Session::over(session::connect(nats).await?).call(request, session::ASK).await?);
    }
    let embedded = Embedded::switches_only(settings).await?;
    let reply = embedded.bus().call(request, session::ASK).await;
    embedded.stop().await;
    Ok(reply?)
}

impl From<ProjectSwitch> for Shown {
    fn from(switch: ProjectSwitch) -> Shown {
        let ProjectSwitch { project, streaming, source } = switch;
        Shown { project: Some(project).filter(|project| !project.is_empty()), streaming, source }
    }
}

fn table(shown: &[Shown]) -> String {
    let row = |shown: &Shown| {
        let project = shown.project.as_deref().unwrap_or("(every other)");
        let streaming = if shown.streaming { "on" } else { "off" };
        [project, streaming, &shown.source].map(str::to_owned).to_vec()
    };
    render::table(&["project", "streaming", "from"], &[], shown.iter().map(row).collect())
}
