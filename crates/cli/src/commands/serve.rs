//! `sluice serve`: a whole node in one process.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use lifecycle::Probe;

use super::Context;
use crate::embedded::Embedded;

/// Run a node: policies, quotas, fetcher, cache and frontend in this process, in the foreground
///
/// `mount` and `run` start one in the background when none runs. Run it yourself, under a service manager, to keep it.
///
/// With --nats the policies are those of the mesh, unless policy.file or policy.set says which this node answers with; and so are the
/// quotas, unless there is a quota section.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice serve
  sluice serve --nats nats://127.0.0.1:4222      also serve others on that NATS server
  sluice serve --state /srv/sluice --store s3://bucket/sluice --set store.options.region=eu-west-1")]
pub struct ServeArgs {
    /// End when nothing was mounted or downloaded for this long
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    idle_exit: Option<Duration>,
    /// Leave the caller's session: for a node that outlives who started it
    #[arg(long, hide = true)]
    detached: bool,
}

pub async fn run(context: Context, args: ServeArgs) -> anyhow::Result<ExitCode> {
    super::require_root("serve a node")?;
    if args.detached {
        rustix::process::setsid().context("leave the caller's session")?;
    }
    let mut settings = context.settings;
    if context.global.verbose > 0 || context.global.quiet {
        let file = settings.lifecycle.log.file.take();
        settings.lifecycle.log = super::log_for(&context.global, settings.lifecycle.log);
        settings.lifecycle.log.file = file;
    }
    settings.frontend.exit_when_idle = args.idle_exit.or(settings.frontend.exit_when_idle);
    if args.detached {
        settings.lifecycle.log.file.get_or_insert_with(|| crate::node::log_file(&settings.state));
    }
    crate::node::make_state(&settings.state)?;
    let service = lifecycle::start("sluice", &settings.lifecycle).await?;
    let embedded = Embedded::node(&settings, service.tasks.clone(), service.shutdown.clone()).await;
    let embedded = embedded.context("start the node")?;
    embedded.depend(&service, &settings);
    service.depend_on(Probe::STORE, settings.open_store()?.probe());
    let buses = embedded.buses().clone();
    let there = buses.introduce(&settings, &service).await?;
    let ended = service.run().await;
    drop(there);
    buses.settle(bus::SETTLE).await;
    drop(embedded);
    ended.map(|()| ExitCode::SUCCESS)
}
