//! The quota service as a process of its own.

use anyhow::Context as _;
use lifecycle::Probe;
use quota::{Quota, Settings};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let about = "Hands out what projects may use of the mesh";
    let Some(settings) = lifecycle::command_line::load::<Settings>("quota", about)? else {
        return Ok(());
    };
    let service = lifecycle::start("quota", &settings.lifecycle).await?;
    let bus = bus::Bus::connect(&settings.nats).await.context("connect to NATS")?;
    service.depend_on(Probe::BUS, bus.probe());
    let quota = Quota::start(settings.quota, bus, &service.tasks, service.shutdown.clone()).await?;
    service.depend_on(quota::LIVE_LIMITS, quota.probe());
    service.run().await?;
    drop(quota);
    Ok(())
}
