//! `sluice compare`: a normal pull beside streaming, on this machine.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

use super::Context;
use super::link::ShapeArgs;
use crate::compare::ready::{HttpProbe, LinePattern, Ready};
use crate::compare::scratch::Scratch;
use crate::compare::{self, Plan};
use crate::render;
use crate::runtime::signals::Caught;
use crate::runtime::{Network, RunOptions, Volume};

/// Measure streaming against a normal containerd pull, on this machine
///
/// Both sides start the same container through the same runtime and the same simulated link, from cold caches: containerd
/// pulls from a private registry, sluice streams from a private cache that was filled before. By default the container is
/// ready when the image's first exposed TCP port takes connections, or, without one or with a CMD, when it exits with 0. Nothing of the machine's own containerd or sluice is used or changed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice compare oci:build/app -- app --version
  sluice compare debian:12 --rtt 20ms --bandwidth 200Mbit --rounds 3 -- apt-get --version
  sluice compare oci:build/web --ready-http 8080/health --first --plot start.svg
  sluice compare localhost:5000/db:1 --plain-http --ready-line 'ready for connections' --json

Needs root, containerd, ctr, and runc or crun; for images that are not in a plain-HTTP registry also docker-registry and skopeo.")]
pub struct CompareArgs {
    /// A registry reference, oci:DIR[:TAG] or docker-archive:FILE
    image: String,
    #[command(flatten)]
    shape: ShapeArgs,
    /// Ready when http://127.0.0.1:PORT/PATH answers with a success, asked inside the container's network
    #[arg(long, value_name = "PORT[/PATH]", conflicts_with = "ready_line")]
    ready_http: Option<HttpProbe>,
    /// Ready when a line of the container's output matches
    #[arg(long, value_name = "REGEX")]
    ready_line: Option<LinePattern>,
    /// Give up on a side that is not ready after this long
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Repeat everything and print medians
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Also measure the first pull ever: import through the link, mount and start
    #[arg(long)]
    first: bool,
    /// Draw the start-up of the first streamed start: what was read when, and what waited
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Set a variable of the container; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Run as this user
    #[arg(short, long)]
    user: Option<String>,
    /// Replace the image's entrypoint, and its command with it
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Show a file or folder of this machine in the container; may be repeated
    #[arg(long, value_name = "SRC:DST[:ro]")]
    volume: Vec<Volume>,
    /// The containers' network
    #[arg(long, alias = "network", value_enum, default_value_t)]
    net: Network,
    /// The OCI runtime [default: runc, else crun]
    #[arg(long, value_name = "PROGRAM")]
    runtime: Option<PathBuf>,
    /// The command and its arguments, in place of the image's
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

pub async fn run(context: &Context, args: CompareArgs) -> anyhow::Result<ExitCode> {
    super::require_root("compare")?;
    if context.global.username.is_some() {
        bail!("compare copies images with skopeo: log in with `skopeo login` instead of --username");
    }
    let plan = plan(context, &args).await?;
    let mut caught = Caught::new()?;
    let mut progress = context.progress();
    crate::node::make_state(&context.settings.state)?;
    let scratch = Scratch::new(&context.settings.state)?;
    let outcome = tokio::select! {
        outcome = Box::pin(compare::measure(&plan, &scratch, &mut progress)) => outcome,
        // What was started is owned by the future that ends here.
        _ = caught.next() => Err(anyhow::anyhow!("interrupted")),
    };
    scratch.close().await;
    let outcome = outcome?;
    if let Some(file) = &args.plot {
        let picture = compare::plot::svg(&outcome.report, &outcome.start_up);
        std::fs::write(file, picture).with_context(|| format!("write {}", file.display()))?;
    }
    match context.global.json {
        true => render::json(&outcome.report)?,
        false => render::line(compare::table::describe(&outcome.report).trim_end())?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn plan(context: &Context, args: &CompareArgs) -> anyhow::Result<Plan> {
    let request = context.requests()?.resolve(&args.image).await?;
    let ready = match (&args.ready_http, &args.ready_line) {
        (Some(probe), _) => Some(Ready::Http(probe.clone())),
        (None, Some(pattern)) => Some(Ready::Line(pattern.clone())),
        // Another command need not be the service that the image's own is.
        (None, None) if !args.command.is_empty() || args.entrypoint.is_some() => Some(Ready::Exit),
        (None, None) => None,
    };
    Ok(Plan {
        request,
        shape: args.shape.shape(),
        ready,
        timeout: args.timeout,
        rounds: args.rounds,
        first: args.first,
        runtime: args.runtime.clone(),
        options: RunOptions {
            command: args.command.clone(),
            entrypoint: args.entrypoint.clone(),
            env: args.env.clone(),
            user: args.user.clone(),
            volumes: args.volume.clone(),
            network: args.net,
            ..RunOptions::default()
        },
    })
}
