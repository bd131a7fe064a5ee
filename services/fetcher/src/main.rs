//! The fetcher as a process of its own, in a mesh on NATS.

use anyhow::Context;
use lifecycle::Probe;
use serde::{Deserialize, Serialize};

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    lifecycle: lifecycle::Config,
    nats: bus::NatsConfig,
    store: store::Config,
    fetcher: fetcher::Config,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Some(settings) = lifecycle::command_line::load::<Settings>("fetcher", "imports images")? else {
        return Ok(());
    };
    let service = lifecycle::start("fetcher", &settings.lifecycle).await?;
    let store = settings.store.open().with_context(|| format!("open the store {}", settings.store.url))?;
    let bus = bus::Bus::connect(&settings.nats).await.context("connect to NATS")?;
    service.depend_on(Probe::BUS, bus.probe());
    let push = &settings.fetcher.push;
    let needs = checks::Needs {
        nats: vec![settings.nats.clone()],
        private: vec![("the signing key is its owner's alone", settings.fetcher.signing_key_file.clone())],
        tls: push.listen.iter().map(|_| push.tls.clone()).collect(),
    };
    service.depend_on(Probe::STORE, store.probe());
    let ready = service.ready.clone();
    let insecure =
        [("nats.insecure", settings.nats.insecure), ("fetcher.push.tls.insecure", push.tls.insecure)];
    let about = bus::Introduction::of(lifecycle::VERSION, move || ready.check(), &insecure);
    let _there = bus.introduce(proto::Role::Fetcher, about).await?;
    let events = bus.events().clone();
    events.told_by("fetcher", "");
    let (tasks, shutdown) = (&service.tasks, service.shutdown.clone());
    let config = settings.fetcher;
    let fetcher = fetcher::Fetcher::start(config.clone(), store, bus, tasks, shutdown).await?;
    fetcher.listen_for_pushes(&config).await?;
    checks::keep_looking(&service, needs);
    service.depend_on(fetcher::REVOCATIONS, fetcher.revocations().probe());
    service.depend_on(fetcher::SWITCHES, fetcher.switches());
    tracing::info!(instance = fetcher.instance(), "answering");
    let ended = service.run().await;
    events.settle(bus::SETTLE).await;
    ended
}
