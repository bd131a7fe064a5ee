//! The cache as a process of its own.

use anyhow::Context;
use bus::Introduction;
use cache::{Cache, Settings};
use lifecycle::Probe;
use proto::Role;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let about = "Serves image content from memory and disk in front of the object store";
    let Some(settings) = lifecycle::command_line::load::<Settings>("cache", about)? else {
        return Ok(());
    };
    let service = lifecycle::start("cache", &settings.lifecycle).await?;
    let trusted = settings.cache.trusted()?;
    let store = settings.store.open().context("opening the store")?;
    let bus = bus::Bus::connect(&settings.nats).await?;
    bus.events().told_by("cache", "");
    service.depend_on(Probe::BUS, bus.probe());
    let needs = checks::Needs {
        nats: vec![settings.nats.clone()],
        tls: vec![settings.cache.tls.clone()],
        ..checks::Needs::default()
    };
    checks::keep_looking(&service, needs);
    service.depend_on(Probe::STORE, store.probe());
    if trusted.is_empty() {
        let reason =
            "cache.trusted_keys is empty, so no grant counts: `sluice config key` prints a fetcher's";
        service.ready.depend_on("trusted keys").fails(reason);
    }
    let ready = service.ready.clone();
    let insecure =
        [("nats.insecure", settings.nats.insecure), ("cache.tls.insecure", settings.cache.tls.insecure)];
    let about = Introduction::of(lifecycle::VERSION, move || ready.check(), &insecure);
    let _there = bus.introduce(Role::Cache, about).await?;
    let (tasks, shutdown) = (&service.tasks, service.shutdown.clone());
    let cache = Cache::start(settings.cache, store, bus, trusted, tasks, shutdown).await?;
    service.depend_on(cache::REVOCATIONS, cache.revocations().probe());
    service.run().await
}
