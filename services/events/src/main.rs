//! The events service as a process of its own.

use events::{Settings, Sinks};
use lifecycle::Probe;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let about = "Writes what happened in the mesh to files, webhooks, NATS and Kubernetes";
    let Some(settings) = lifecycle::command_line::load::<Settings>("events", about)? else {
        return Ok(());
    };
    let service = lifecycle::start("events", &settings.lifecycle).await?;
    let bus = bus::Bus::connect(&settings.nats).await?;
    let own = bus.events().clone();
    own.told_by("events", "");
    service.depend_on(Probe::BUS, bus.probe());
    let needs = checks::Needs { nats: vec![settings.nats.clone()], ..checks::Needs::default() };
    checks::keep_looking(&service, needs);
    let (there, insecure) = (bus.clone(), [("nats.insecure", settings.nats.insecure)]);
    let sinks = Sinks::start(settings.events, bus, &service.tasks, service.shutdown.clone()).await?;
    service.depend_on(Sinks::STREAM, sinks.probe());
    let ready = service.ready.clone();
    let about = bus::Introduction::of(lifecycle::VERSION, move || ready.check(), &insecure);
    let _there = there.introduce(proto::Role::Events, about).await?;
    let ended = service.run().await;
    own.settle(bus::SETTLE).await;
    ended
}
