//! What every node of a measurement is connected to: a registry, NATS, a fetcher and a cache, each node behind a link.

use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use testkit::{ImageSpec, LayoutWriter, Registry, port};

use crate::kubernetes::busybox;
use crate::mesh::Link;
use crate::services::Backend;
use crate::{Scratch, binaries};

/// One round trip of the simulated link.
pub const ROUND_TRIP: Duration = Duration::from_millis(20);
const LINK: [&str; 4] = ["--rtt", "20ms", "--bandwidth", "200Mbit"];
/// Which of the links leads there.
const REGISTRY: usize = 0;
/// How long what a start read may take until it is known and compressed again: some 200 MB, on one processor.
const LEARNED_MAX: Duration = Duration::from_secs(300);
const LEARNED_POLL: Duration = Duration::from_millis(500);
/// Of a node whose starts help none after them.
pub const FORGOTTEN: [&str; 1] = ["frontend.report_starts=false"];

#[derive(Debug)]
pub struct Site {
    pub registry: Registry,
    pub backend: Backend,
    /// The image of a pod's own process.
    pub pause: String,
    /// Ports of a node's side.
    pub registry_port: u16,
    pub nats_port: u16,
    /// Nodes are measured one after the other, and of one node a single of these links carries the bulk: each having the
    /// bandwidth for itself gives nothing away.
    links: Mutex<[Link; 3]>,
    scratch: Scratch,
}

impl Site {
    pub fn start() -> anyhow::Result<Site> {
        let (scratch, registry, cache_port) = (Scratch::new()?, Registry::start()?, port::free()?);
        let cache = Link::start(cache_port, &LINK)?;
        let plain_http = format!("fetcher.source.plain_http=[\"{}\"]", registry.host());
        let advertise = format!("cache.advertise=http://127.0.0.1:{}", cache.port);
        let backend = Backend::start(&scratch, cache_port, &[plain_http], &[advertise])?;
        let nats = Link::start(port_of(&backend.nats.url())?, &LINK)?;
        let registry_link = Link::start(port_of(&registry.host())?, &LINK)?;
        let mut site = Site {
            registry,
            backend,
            pause: String::new(),
            registry_port: registry_link.port,
            nats_port: nats.port,
            links: Mutex::new([registry_link, nats, cache]),
            scratch,
        };
        site.pause = site.push_pause()?;
        Ok(site)
    }

    fn push_pause(&self) -> anyhow::Result<String> {
        let config = serde_json::json!({ "Entrypoint": ["/bin/busybox", "sleep", "100000"] });
        let spec = ImageSpec { config: Some(config), ..ImageSpec::new([busybox()?.finish()]) };
        Ok(self.add("pause", &spec)?.0)
    }

    /// Pushes an image and imports it: its reference, and its manifest's digest.
    pub fn add(&self, name: &str, spec: &ImageSpec) -> anyhow::Result<(String, String)> {
        let mut layout = LayoutWriter::create(&self.scratch.path(&format!("layout-{name}")))?;
        layout.image(name, spec)?;
        self.add_layout(name, &layout.reference(name))
    }

    /// The same of an image that somebody made.
    pub fn add_layout(&self, name: &str, layout: &str) -> anyhow::Result<(String, String)> {
        let reference = self.registry.push(layout, &format!("{name}:latest"))?;
        let imported = self.ask(&["import", &reference])?;
        let manifest = imported["images"][0]["manifest_digest"].as_str();
        Ok((reference, manifest.context("an import names its manifest")?.to_owned()))
    }

    /// Bytes that came to nodes so far.
    pub fn moved(&self) -> anyhow::Result<u64> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.iter_mut().map(came_over).sum()
    }

    /// Those of them that came from the registry.
    pub fn pulled(&self) -> anyhow::Result<u64> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        came_over(&mut links[REGISTRY])
    }

    /// Waits, bounded, until what a start of the image read is known, and stored as small as it gets.
    pub fn wait_until_learned(&self, reference: &str) -> anyhow::Result<()> {
        let asked = Instant::now();
        loop {
            let starts = &self.ask(&["inspect", reference])?["starts"];
            if starts["reported"] != 0 && starts["recompressed"] == starts["chunks"] {
                return Ok(());
            }
            ensure!(
                asked.elapsed() < LEARNED_MAX,
                "what the start read is not known, or not compressed again: {starts}"
            );
            sleep(LEARNED_POLL);
        }
    }

    /// Of the services, as a user does.
    fn ask(&self, words: &[&str]) -> anyhow::Result<serde_json::Value> {
        let output = binaries::command("sluice")?
            .args(["--nats", &self.backend.nats.url(), "--plain-http", "--json", "--state"])
            .arg(self.scratch.path("cli"))
            .args(words)
            .output()?;
        ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

fn came_over(link: &mut Link) -> anyhow::Result<u64> {
    let counters: serde_json::Value = serde_json::from_str(&link.tell("counters")?)?;
    counters["down"].as_u64().context("a link counts bytes")
}

fn port_of(address: &str) -> anyhow::Result<u16> {
    let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
    port.with_context(|| format!("{address} has no port"))
}
