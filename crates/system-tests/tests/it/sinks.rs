//! What happens in the mesh arrives in the sinks of the events service, whatever becomes of that service.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use bus::{Bus, NatsConfig};
use proto::{Event, EventKind};
use serde_json::Value;
use system_tests::mesh::Mesh;
use system_tests::noise;
use testkit::{ImageSpec, LayoutWriter, Tarball};
use tokio::runtime::Runtime;

const SOON: Duration = Duration::from_secs(120);
/// Requests that a webhook has under way at most.
const CONCURRENCY: usize = 4;

/// How often each `webhook-id` came.
type Received = Arc<Mutex<BTreeMap<String, usize>>>;

struct Webhook {
    url: String,
    received: Received,
    runtime: Runtime,
}

impl Webhook {
    fn start() -> anyhow::Result<Webhook> {
        let (runtime, received) = (Runtime::new()?, Received::default());
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let url = format!("http://{}/", listener.local_addr()?);
        let router = axum::Router::new().fallback(receive).with_state(received.clone());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Ok(Webhook { url, received, runtime })
    }

    fn received(&self) -> BTreeMap<String, usize> {
        self.received.lock().map(|received| received.clone()).unwrap_or_default()
    }
}

async fn receive(State(received): State<Received>, headers: HeaderMap) -> StatusCode {
    // As long as it takes to be killed meanwhile.
    tokio::time::sleep(Duration::from_millis(5)).await;
    let id = headers.get("webhook-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
    if let Ok(mut received) = received.lock() {
        *received.entry(id.to_owned()).or_default() += 1;
    }
    StatusCode::NO_CONTENT
}

fn lines(path: &std::path::Path) -> anyhow::Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // The last line may not be whole yet.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

fn until(what: &str, mut wanted: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !wanted()? {
        ensure!(begun.elapsed() < SOON, "{what}: not within {SOON:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

#[test]
fn events_arrive_once_whatever_becomes_of_the_service() -> anyhow::Result<()> {
    let mesh = Mesh::start_with(&[], &["frontend.region=us-1"])?;
    let webhook = Webhook::start()?;
    let file = mesh.scratch().path("events.json");
    let settings = [
        format!("events.sinks.audit={{ file = {{ path = {:?}, size = \"4MiB\" }} }}", file),
        format!(
            "events.sinks.hook={{ webhook = {{ url = {:?}, concurrency = {CONCURRENCY} }} }}",
            webhook.url
        ),
    ];
    let mut service = mesh.backend.service(mesh.scratch(), "events", &settings)?;
    let log = mesh.scratch().path("events.log");
    until("the stream", || {
        Ok(std::fs::read_to_string(&log).unwrap_or_default().contains("events are kept"))
    })?;

    // A node's own, of an image that it mounts.
    let mut layout = LayoutWriter::create(&mesh.scratch().path("layout"))?;
    layout.image("app", &ImageSpec::new([Tarball::new().file("data", &noise(1, 100_000)).finish()]))?;
    let reference = layout.reference("app");
    mesh.mount(&reference, "root")?;
    let of_node = |kind: &str| {
        let found = lines(&file)?;
        let is = |line: &&Value| line["data"]["kind"] == kind && line["subject"] == reference.as_str();
        anyhow::Ok(found.iter().find(is).cloned())
    };
    until("the node's events", || Ok(of_node("streaming")?.is_some() && of_node("complete")?.is_some()))?;
    let streaming = of_node("streaming")?.context("it was there")?;
    assert_eq!(streaming["source"], "/nodes/node/frontend", "{streaming}");
    let took = streaming["data"]["details"]["pulled_in"].as_str().context("how long it took")?;
    assert!(took.ends_with('s'), "{took}");
    let unjudged = of_node("unjudged")?.context("nobody judged it")?;
    assert_eq!(unjudged["source"], "/nodes/node/fetcher", "{unjudged}");

    // Many more, while the service is killed in the middle of it.
    let url = mesh.backend.nats.url();
    let bus = webhook.runtime.block_on(Bus::connect(&NatsConfig { url, ..NatsConfig::default() }))?;
    let many = 600;
    for number in 0..many {
        let event = Event::new(EventKind::Fallback, format!("reason-{number}"), "one of many");
        bus.events().tell(Event { node: "node-2".to_owned(), ..event });
        if number % 150 == 100 {
            std::thread::sleep(Duration::from_millis(50));
            service.kill()?;
            service.restart()?;
        }
    }
    let of_many = |line: &&Value| line["data"]["node"] == "node-2";
    until("all in the file", || Ok(lines(&file)?.iter().filter(of_many).count() >= many))?;
    let written = lines(&file)?;
    let mut ids: Vec<&str> = written.iter().filter_map(|line| line["id"].as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), written.len(), "one was written twice");
    assert_eq!(written.iter().filter(of_many).count(), many);

    until("all at the webhook", || {
        let received = webhook.received();
        Ok(ids.iter().all(|id| received.contains_key(*id)))
    })?;
    // What was under way when it was killed came again under its id, and nothing else.
    let again: usize = webhook.received().values().map(|times| times - 1).sum();
    assert!(again <= 4 * CONCURRENCY, "{again} came again");
    service.server.end()
}
