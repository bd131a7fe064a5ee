//! The cache as a process of its own.

use anyhow::Context;
use cache::{Cache, Settings};

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
    let (tasks, shutdown) = (&service.tasks, service.shutdown.clone());
    Cache::start(settings.cache, store, bus, trusted, tasks, shutdown).await?;
    service.run().await
}
