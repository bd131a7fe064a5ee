//! One process that tells 2,000 events a second, each of its own, and a service that writes them to a file.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bus::Bus;
use proto::{Event, EventKind};
use serde_json::{Value, json};
use testkit::Server;

use crate::secured::nats_config;
use crate::{Scratch, Secured, binaries};

const PER_SECOND: u64 = 2_000;
/// Events told between two looks at the clock.
const AT_A_TIME: u64 = 20;
/// How long what was told may take to be written.
const WRITTEN_MAX: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What an emitter waits for its last ones, before it ends.
const SETTLE: Duration = Duration::from_secs(60);

/// What the emitter, a process of its own, reached, and what came of it.
pub(super) async fn measure(seconds: u64) -> anyhow::Result<Value> {
    let scratch = Scratch::new()?;
    let mesh = Secured::start(&scratch)?;
    let file = scratch.path("events.json");
    let sink = [
        format!("events.sinks.log.file.path={}", file.display()),
        "events.sinks.log.file.size=4GiB".to_owned(),
    ];
    let service = mesh.service(&scratch, "events", &sink)?;
    let count = seconds * PER_SECOND;
    let mut command = binaries::command("bench-mesh")?;
    command.arg("--emit").arg(mesh.folder("cache")).arg(count.to_string());
    let begun = Instant::now();
    let emitter = Server::spawn(command, &scratch.path("emitter.log"), "a binary of this workspace")?;
    let (mut most, mut most_service, mut written) = (0, 0, 0);
    while written < count {
        ensure!(
            begun.elapsed() < WRITTEN_MAX,
            "{written} of {count} events were written: {}\n{}",
            emitter.log(),
            service.server.log()
        );
        tokio::time::sleep(LOOK_EVERY).await;
        // Gone when it has told all.
        most = most.max(resident(emitter.id()).unwrap_or(0));
        most_service = most_service.max(resident(service.server.id())?);
        written = lines(&file)?;
    }
    let took = begun.elapsed().as_secs_f64();
    let told = emitter.log();
    let told: Value = serde_json::from_str(told.lines().last().context("it says what it did")?)?;
    Ok(json!({
        "events": count,
        "told_per_second": told["told_per_second"],
        "resident_before_bytes": told["resident_before_bytes"],
        "written_per_second": written as f64 / took,
        "emitter_peak_resident_bytes": most,
        "service_peak_resident_bytes": most_service,
        "twice": written - count,
    }))
}

/// The emitter: `folder` holds its identity.
pub async fn emit(folder: &Path, count: u64) -> anyhow::Result<Value> {
    let bus = Bus::connect(&nats_config(folder)?).await?;
    let events = bus.events().clone();
    events.told_by("cache", "");
    let before = resident(std::process::id())?;
    let begun = Instant::now();
    for number in 0..count {
        let event = Event::new(EventKind::Degraded, "bench", "an event of its own, with some words in it");
        events.tell(Event { image: format!("registry.example/app:{number}"), ..event });
        if number % AT_A_TIME == 0 {
            let due = Duration::from_secs_f64(number as f64 / PER_SECOND as f64);
            tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
        }
    }
    let per_second = count as f64 / begun.elapsed().as_secs_f64();
    events.settle(SETTLE).await;
    Ok(json!({ "told_per_second": per_second, "resident_before_bytes": before }))
}

fn lines(file: &Path) -> anyhow::Result<u64> {
    match fs::read(file) {
        Ok(text) => Ok(text.iter().filter(|byte| **byte == b'\n').count() as u64),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error.into()),
    }
}

fn resident(process: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
}
