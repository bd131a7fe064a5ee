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
    let needs = checks::Needs { nats: vec![settings.nats.clone()], ..checks::Needs::default() };
    checks::keep_looking(&service, needs);
    let (there, insecure) = (bus.clone(), [("nats.insecure", settings.nats.insecure)]);
    let quota = Quota::start(settings.quota, bus, &service.tasks, service.shutdown.clone()).await?;
    service.depend_on(quota::LIVE_LIMITS, quota.probe());
    let ready = service.ready.clone();
    let about = bus::Introduction::of(lifecycle::VERSION, move || ready.check(), &insecure);
    let _there = there.introduce(proto::Role::Quota, about).await?;
    service.run().await?;
    drop(quota);
    Ok(())
}
