//! `sluice check`: what is missing, and what to do about it.

mod mesh;
mod node;
mod report;
mod settings;

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::Context;
use report::Report;

/// Check that what this machine is configured for works: keys, TLS, NATS, store
///
/// Each line is one check: √ works, ‼ works but somebody should look, × does not work. The exit code is 1 when something does not work.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice check
  sluice check --this-node              also what streaming needs of this machine
  sluice check --mesh                   also who answers in the mesh, with which version, and whose clock is off
  sluice check --mesh -o json")]
pub struct CheckArgs {
    /// Also what a node needs: kernel, devices, its identity, a frontend that answers
    #[arg(long)]
    this_node: bool,
    /// Also all services of the mesh
    #[arg(long)]
    mesh: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

pub async fn run(context: &Context, args: CheckArgs) -> anyhow::Result<ExitCode> {
    let mut report = Report::default();
    settings::check(&context.settings, &mut report);
    let bus = settings::check_bus(&context.settings, &mut report).await;
    settings::check_store(&context.settings, &mut report).await;
    settings::check_registries(&context.settings, &mut report).await;
    if args.this_node {
        node::check(context, bus.as_ref(), &mut report).await;
    }
    if args.mesh {
        mesh::check(bus.as_ref(), &mut report).await;
    }
    match context.global.json || args.output == Output::Json {
        true => crate::render::json(&report)?,
        false => crate::render::print(report.text().as_bytes())?,
    }
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
