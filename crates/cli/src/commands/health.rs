//! `sluice health`: for the health checks of containers, whose images have no shell.

use std::process::ExitCode;

use clap::Args;

/// Ask a running service whether it can work: ends with 0 if so, else with 1 and one line that says why not
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice health --url http://127.0.0.1:9090/readyz      what `lifecycle.admin` serves
  sluice health --url unix:/run/sluice/node.sock        whether somebody listens there

Each service's program has the same command: fetcher health, cache health, …")]
pub struct HealthArgs {
    /// What is asked: http://HOST:PORT/PATH, which is good when it answers 200, or unix:PATH
    #[arg(long, value_name = "URL", default_value = lifecycle::health::URL)]
    url: String,
}

pub fn run(args: &HealthArgs) -> anyhow::Result<ExitCode> {
    lifecycle::health::report(&args.url)?;
    Ok(ExitCode::SUCCESS)
}
