//! The policy service as a process of its own.

use lifecycle::Probe;
use policy::{Policies, Settings};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let about = "Decides which images stream and what is fetched first, by plugins";
    let Some(settings) = lifecycle::command_line::load::<Settings>("policy", about)? else {
        return Ok(());
    };
    let service = lifecycle::start("policy", &settings.lifecycle).await?;
    let bus = bus::Bus::connect(&settings.nats).await?;
    service.depend_on(Probe::BUS, bus.probe());
    let needs = checks::Needs { nats: vec![settings.nats.clone()], ..checks::Needs::default() };
    checks::keep_looking(&service, needs);
    let ready = service.ready.clone();
    let insecure = [("nats.insecure", settings.nats.insecure)];
    let about = bus::Introduction::of(lifecycle::VERSION, move || ready.check(), &insecure);
    let _there = bus.introduce(proto::Role::Policy, about).await?;
    let events = bus.events().clone();
    events.told_by("policy", "");
    let policies = Policies::start(settings.policy, bus, &service.tasks, service.shutdown.clone()).await?;
    let ended = service.run().await;
    drop(policies);
    events.settle(bus::SETTLE).await;
    ended
}
