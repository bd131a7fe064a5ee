//! A normal containerd pull beside streaming, through the same simulated link, on one machine.
//!
//! ```text
//! normal     registry --[node's card]--> containerd --overlayfs--> runc
//! streaming  cache    --[node's card]--> frontend   --tree, objects--> runc
//! first      registry --[fetcher's card]--> fetcher --> store --> cache, then as streaming
//! ```
//!
//! Everything is private and temporary: registry, containerd, store, services, node. Each measured start has a fresh
//! containerd or a fresh node, and the machine's caches dropped before. Both sides make the same runtime bundle from the
//! same config, so they differ only in how the root comes to be and is read. Containers have a network of their own, which is
//! asked from inside whether they are ready; comparisons side by side share nothing but the machine.
//!
//! Resolving asks the registry through the fetcher's card also when the image is known: that stands for the round trip
//! to the services, and is to streaming's disadvantage.

pub mod containerd;
pub mod plot;
pub mod process;
pub mod ready;
pub mod registry;
pub mod report;
pub mod scratch;
pub mod start;
pub mod streaming;
pub mod table;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use image::ImageRecord;
use names::ImageName;
use proto::ResolveRequest;

use crate::commands::import;
use crate::link::{Carriers, Link, Nic, Shape};
use crate::progress::Progress;
use crate::runtime::{ImageConfig, RunOptions, Runtime};
use ready::Ready;
use registry::Registry;
use report::{ImageFacts, Report, Round, Start};
use scratch::Scratch;
use start::Starter;
use streaming::{Lesson, Server, StartUp};

/// What is to be compared.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The image, as it would be asked of a fetcher.
    pub request: ResolveRequest,
    pub shape: Shape,
    /// None: as the image's config lets one expect.
    pub ready: Option<Ready>,
    pub timeout: Duration,
    pub rounds: u32,
    pub first: bool,
    pub runtime: Option<PathBuf>,
    pub options: RunOptions,
}

/// The result: numbers, and the trace that a plot is made of.
#[derive(Debug)]
pub struct Outcome {
    pub report: Report,
    pub start_up: StartUp,
}

/// Where the image is served during the comparison.
#[derive(Debug)]
struct Source {
    /// The registry's address and the rest of the reference: `HOST:PORT`, `NAME:TAG`.
    host: String,
    name: String,
    _registry: Option<Registry>,
}

/// Measures everything in `plan`. Dropped at any point, it ends what it started; the folder is `scratch`'s to remove.
pub async fn measure(plan: &Plan, scratch: &Scratch, progress: &mut Progress) -> anyhow::Result<Outcome> {
    let runtime = Runtime::find(plan.runtime.as_deref(), scratch.path().join("runtime"))?;
    containerd::check_installed()?;
    let source = source(plan, scratch, progress).await?;
    let carriers = Carriers::new()?;
    let starter = Starter {
        runtime,
        prefix: scratch.name(),
        options: plan.options.clone(),
        ready: plan.ready.clone(),
        timeout: plan.timeout,
    };
    let mut rounds = Vec::new();
    let mut known = None;
    for number in 1..=plan.rounds {
        let round =
            Repetition { plan, scratch, source: &source, carriers: &carriers, starter: &starter, number };
        let (measured, record, start_up) = Box::pin(round.measure(progress)).await?;
        rounds.push(measured);
        known.get_or_insert((record, start_up));
    }
    let (record, start_up) = known.context("no round was measured")?;
    let image = ImageFacts::new(&plan.request.reference, &record);
    let config = ImageConfig::parse(&record.config)?;
    let ready = plan.ready.clone().unwrap_or_else(|| Ready::expected(&config));
    Ok(Outcome { report: Report::new(image, plan, &ready, rounds), start_up })
}

/// One round.
struct Repetition<'a> {
    plan: &'a Plan,
    scratch: &'a Scratch,
    source: &'a Source,
    carriers: &'a Carriers,
    starter: &'a Starter,
    number: u32,
}

impl Repetition<'_> {
    async fn measure(&self, progress: &Progress) -> anyhow::Result<(Round, ImageRecord, StartUp)> {
        let say = |what: &str| progress.note(&format!("round {}/{}: {what}", self.number, self.plan.rounds));
        let folder = self.scratch.path().join(format!("round-{}", self.number));
        std::fs::create_dir(&folder)?;
        let starting = Server::start(self.scratch, &folder, self.plan, self.source, self.carriers);
        let server = Box::pin(starting).await?;
        let mut first = None;
        if self.plan.first {
            say("first pull: import through the link, mount, start");
            let first_folder = folder.join("first");
            let start = server.start_on_fresh_node(&first_folder, self.starter, Lesson::Forgotten);
            first = Some(start.await?.0);
        } else {
            say("importing");
        }
        let resolved = server.import().await?;
        let record = import::record(&resolved)?;
        say("normal pull");
        let normal = self.normal(&folder.join("normal"), &record).await?;
        let [before, after] = ["streamed", "learned"].map(|name| folder.join(name));
        let start = |folder| server.start_on_fresh_node(folder, self.starter, Lesson::Learned);
        say("streaming, no earlier start known");
        let (streamed, start_up) = start(&before).await?;
        say("streaming, with the earlier start's profile");
        let (learned, after) = start(&after).await?;
        server.stop().await;
        let round = Round {
            normal,
            streamed,
            learned,
            first,
            import: resolved.imported.map(import::Summary::from),
            needed_bytes: after.needed_bytes(&record),
        };
        Ok((round, record, start_up))
    }

    async fn normal(&self, folder: &Path, record: &ImageRecord) -> anyhow::Result<Start> {
        let link = Link::start(self.carriers, Nic::new(self.plan.shape), streaming::LOOPBACK)?;
        link.lead_to(&self.source.host);
        let reference = format!("{}/{}", link.address(), self.source.name);
        let platform = self.plan.request.platform.clone().unwrap_or_default();
        let config = ImageConfig::parse(&record.config)?;
        containerd::start(folder, &reference, &platform, &link, &config, self.starter).await
    }
}

/// A registry that the user asked to be spoken to over plain HTTP is used as it is; everything else is copied into a
/// private one, since a link cannot stand in a TLS connection.
async fn source(plan: &Plan, scratch: &Scratch, progress: &Progress) -> anyhow::Result<Source> {
    let reference = &plan.request.reference;
    if plan.request.plain_http && !reference.parse::<ImageName>()?.is_local() {
        let (host, name) =
            reference.split_once('/').context("with --plain-http, HOST:PORT/NAME is expected")?;
        let host = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
        return Ok(Source { host, name: name.to_owned(), _registry: None });
    }
    progress.note("copying the image to a private registry");
    let registry = Registry::start(&scratch.path().join("registry")).await?;
    let name = registry.copy(reference, &plan.request.platform.clone().unwrap_or_default()).await?;
    Ok(Source { host: registry.address().to_string(), name, _registry: Some(registry) })
}
