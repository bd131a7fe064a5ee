//! The frontend as a process of its own.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use bus::{Bus, Introduction, NatsConfig};
use frontend::{Early, Frontend};
use lifecycle::Probe;
use serde::{Deserialize, Serialize};

/// What blocks on the disk at the end has so long: containers read on once the next process is there.
const LINGER: Duration = Duration::from_millis(200);

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    lifecycle: lifecycle::Config,
    nats: NatsConfig,
    frontend: frontend::Config,
    identity: identity::client::Config,
    /// The object store that chunks are read from when no cache has them; absent: only caches are asked.
    store: Option<store::Config>,
}

fn main() -> anyhow::Result<ExitCode> {
    if let Some(code) = frontend::holder_entry() {
        return Ok(code);
    }
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let served = runtime.block_on(serve());
    runtime.shutdown_timeout(LINGER);
    served.map(|()| ExitCode::SUCCESS)
}

async fn serve() -> anyhow::Result<()> {
    let about = "The node agent: mounts streamed images and brings their bytes";
    let Some(settings) = lifecycle::command_line::load::<Settings>("frontend", about)? else { return Ok(()) };
    let service = lifecycle::start("frontend", &settings.lifecycle).await?;
    let early = Early::open(&settings.frontend, &service.tasks, &service.shutdown)?;
    let bus = Bus::connect(&settings.nats).await.context("cannot connect to NATS")?;
    let events = bus.events().clone();
    events.told_by("frontend", &settings.frontend.node);
    let store = settings.store.map(|store| store.open()).transpose()?;
    let (trusted, shutdown) = (settings.frontend.trusted()?, service.shutdown.clone());
    service.depend_on(Probe::BUS, bus.probe());
    let needs = checks::Needs {
        nats: vec![settings.nats.clone()],
        tls: vec![settings.frontend.tls.clone()],
        ..checks::Needs::default()
    };
    checks::keep_looking(&service, needs);
    if let Some(store) = &store {
        service.depend_on(Probe::STORE, store.probe());
    }
    if trusted.is_empty() {
        let reason =
            "frontend.trusted_keys is empty, so no image is believed: `sluice config key` prints a fetcher's";
        service.ready.depend_on("trusted keys").fails(reason);
    }
    service.tasks.spawn(identity::client::keep_renewed(settings.identity, shutdown.clone()));
    let (present, ready) = (bus.clone(), service.ready.clone());
    let insecure = [
        ("nats.insecure", settings.nats.insecure),
        ("frontend.tls.insecure", settings.frontend.tls.insecure),
    ];
    let about = Introduction::of(lifecycle::VERSION, move || ready.check(), &insecure);
    let (node, stop) = (settings.frontend.node.clone(), shutdown.clone());
    service.tasks.spawn(async move { stop.run_until_cancelled(present.be_present(&node, about)).await });
    service.depend_on(checks::CLOCK, checks::clock_probe(bus.clone()));
    let frontend =
        Frontend::start(settings.frontend, early, store, bus, trusted, &service.tasks, shutdown).await?;
    tracing::info!(socket = %frontend.socket().display(), "serving this node");
    let ended = service.run().await;
    events.settle(LINGER).await;
    ended
}
