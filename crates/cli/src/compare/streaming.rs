//! The streaming way: private services that hold the image, and a fresh node for each start.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bus::Bus;
use image::{ImageRecord, Profile};
use proto::read_trace::ChunkClass;
use proto::{
    DownloadProgress, InspectRequest, MountRequest, ReadTrace, ResolveRequest, Resolved, Starts, StatusReply,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::containerd::Mount;
use super::report::{Processor, Start};
use super::scratch::Scratch;
use super::start::{Starter, drop_caches};
use super::{Plan, Source};
use crate::embedded::Embedded;
use crate::link::{Carriers, Counters, Link, Nic};
use crate::node::Node;
use crate::progress::Progress;
use crate::runtime::ImageConfig;
use crate::session::{self, Session};
use crate::settings::Settings;
use frontend::Early;

pub const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// How long the profile of a start that is over may take to reach the store, and what it read to be compressed again; and how
/// often is looked.
const PROFILE: Duration = Duration::from_secs(900);
const PROFILE_POLL: Duration = Duration::from_millis(100);

/// The mesh's side: fetcher, store and cache, each behind a link.
#[derive(Debug)]
pub struct Server<'a> {
    scratch: &'a Scratch,
    settings: Settings,
    services: Embedded,
    /// Between registry and fetcher.
    fetching: Link,
    /// Between cache and node: the node's own card.
    serving: Link,
    /// As nodes ask, through `fetching`.
    request: ResolveRequest,
    /// As `import` asks, without a link.
    direct: ResolveRequest,
}

/// Whether those after a start are helped by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lesson {
    Learned,
    Forgotten,
}

/// How one streamed start went, in detail.
#[derive(Clone, Debug, Default)]
pub struct StartUp {
    /// From the request for the mount.
    pub pulled: Duration,
    pub ready: Duration,
    /// Arrivals of chunks.
    pub trace: Vec<ReadTrace>,
    pub progress: DownloadProgress,
    /// What this start read; or the first that did.
    pub profile: Profile,
}

impl<'a> Server<'a> {
    pub(super) async fn start(
        scratch: &'a Scratch,
        folder: &Path,
        plan: &Plan,
        source: &Source,
        carriers: &Carriers,
    ) -> anyhow::Result<Server<'a>> {
        let fetching = Link::start(carriers, Nic::new(plan.shape), LOOPBACK)?;
        fetching.lead_to(&source.host);
        let serving = Link::start(carriers, Nic::new(plan.shape), LOOPBACK)?;
        let mut settings = Settings { state: folder.join("server"), ..Settings::default() };
        settings.cache.listen = LOOPBACK;
        settings.cache.advertise = Some(format!("http://{}", serving.address()));
        // The link is the registry by another name.
        settings.fetcher.same_registries =
            vec![vec![source.host.to_string(), fetching.address().to_string()]];
        settings.fill();
        // As in a mesh: nodes read through a link.
        settings.fetcher.starts_zstd_level = None;
        crate::node::make_state(&settings.state)?;
        let mut services = Embedded::new(Bus::in_process(), scratch.tasks(), CancellationToken::new());
        services.start_policies(&settings).await?;
        services.start_fetcher(&settings).await?;
        services.start_cache(&settings).await?;
        let cache = services.cache().context("the cache did not start")?;
        serving.lead_to(cache.address());
        let named = |host: &dyn std::fmt::Display| ResolveRequest {
            reference: format!("{host}/{}", source.name),
            plain_http: true,
            // The user's is for where the image came from.
            credential: None,
            ..plan.request.clone()
        };
        let (request, direct) = (named(&fetching.address()), named(&source.host));
        Ok(Server { scratch, settings, services, fetching, serving, request, direct })
    }

    /// Imports the image without a link, or finds it imported.
    pub async fn import(&self) -> anyhow::Result<Resolved> {
        let session = Session::over(self.services.bus().clone());
        let resolved = session.import(self.direct.clone(), &mut Progress::new(true)).await;
        resolved.context("import the image for the comparison")
    }

    /// Mounts the image on a node that has nothing, and starts it.
    pub async fn start_on_fresh_node(
        &self,
        folder: &Path,
        starter: &Starter,
        lesson: Lesson,
    ) -> anyhow::Result<(Start, StartUp)> {
        let node = FreshNode::start(self, folder, lesson).await?;
        let result = node.measure(self, starter, lesson).await;
        node.services.stop().await;
        result.context("streamed start")
    }

    pub async fn stop(self) {
        self.services.stop().await;
    }

    /// What both links have carried: a first pull crosses one after the other.
    fn moved(&self) -> Counters {
        let (fetched, served) = (self.fetching.counters(), self.serving.counters());
        Counters { up: fetched.up + served.up, down: fetched.down + served.down }
    }

    /// What the fetcher has learned from the image's starts.
    async fn learned(&self) -> anyhow::Result<Profile> {
        let profile = self.import().await?.profile;
        if profile.is_empty() {
            return Ok(Profile::default());
        }
        Ok(Profile::decode(&profile)?)
    }

    /// The profile of the starts that were reported, once what they read is stored as small as it gets: what a start finds that comes
    /// some minutes later.
    async fn settled_profile(&self) -> anyhow::Result<Profile> {
        let deadline = Instant::now() + PROFILE;
        loop {
            let Starts { reported, chunks, recompressed } = self.starts().await?;
            if reported > 0 && recompressed == chunks {
                return self.learned().await;
            }
            if Instant::now() > deadline {
                bail!(
                    "within {PROFILE:?} {reported} starts were reported, and {recompressed} of the {chunks} chunks \
                     that they read compressed again"
                );
            }
            tokio::time::sleep(PROFILE_POLL).await;
        }
    }

    async fn starts(&self) -> anyhow::Result<Starts> {
        let ResolveRequest { reference, platform, plain_http, project, credential, asker, .. } =
            self.direct.clone();
        let request = InspectRequest {
            reference,
            platform,
            plain_http,
            project,
            credential,
            asker,
            ..InspectRequest::default()
        };
        let reply = self.services.bus().call(request, session::ASK).await?;
        Ok(reply.starts.unwrap_or_default())
    }
}

/// A node that has seen no image yet.
struct FreshNode {
    folder: PathBuf,
    services: Embedded,
    client: Node,
}

impl FreshNode {
    async fn start(server: &Server<'_>, folder: &Path, lesson: Lesson) -> anyhow::Result<FreshNode> {
        let mut settings = server.settings.clone();
        settings.frontend.report_starts = lesson == Lesson::Learned;
        settings.frontend.state = folder.join("node");
        settings.frontend.socket = folder.join("node.sock");
        for part in ["rootfs", "upper", "work"] {
            std::fs::create_dir_all(folder.join(part))
                .with_context(|| format!("create {}", folder.display()))?;
        }
        let bus = server.services.bus().clone();
        let (tasks, shutdown) = (server.scratch.tasks(), CancellationToken::new());
        let early = Early::open(&settings.frontend, &tasks, &shutdown)?;
        let mut services = Embedded::new(bus, tasks, shutdown);
        // No way to the store but through the cache, and so through the link.
        services.start_frontend(&settings, early, None).await?;
        let client = Node::connect(settings.node_socket()).await?;
        Ok(FreshNode { folder: folder.to_owned(), services, client })
    }

    async fn measure(
        &self,
        server: &Server<'_>,
        starter: &Starter,
        lesson: Lesson,
    ) -> anyhow::Result<(Start, StartUp)> {
        let mut client = self.client.clone();
        let part = |name: &str| self.folder.join(name).display().to_string();
        let root = self.folder.join("rootfs");
        let request = MountRequest {
            image: Some(server.request.clone()),
            target: part("rootfs"),
            upper: part("upper"),
            work: part("work"),
        };
        drop_caches().await?;
        let (processor, before) = (Processor::now(), server.moved());
        let asked = Instant::now();
        let mounted = client.mount(request, &mut Progress::new(true)).await?;
        let pulled = Instant::now();
        let mount = Mount(root.clone());
        let config = ImageConfig::parse(&mounted.config)?;
        let started = starter.start("streamed", &root, &self.folder.join("bundle"), &config).await?;
        let (moved, processor) = (server.moved().since(before), processor.spent());
        let status = client.status(true).await?;
        let start = Start::new(asked, pulled, &started, moved, processor);
        let ready = started.ready - asked;
        let known = server.learned().await?;
        drop(started);
        client.unmount(&root).await?;
        drop(mount);
        let mut start_up = StartUp::of(status, &mounted.manifest_digest);
        // A start that the profile served well reads nothing that would be worth a report.
        start_up.profile = match lesson {
            Lesson::Learned => server.settled_profile().await?,
            Lesson::Forgotten => known,
        };
        start_up.pulled = pulled - asked;
        start_up.ready = ready;
        Ok((Start { round_trips: start_up.round_trips(), ..start }, start_up))
    }
}

impl StartUp {
    fn of(status: StatusReply, manifest_digest: &str) -> StartUp {
        let image = status.images.into_iter().find(|image| image.manifest_digest == manifest_digest);
        let image = image.unwrap_or_default();
        StartUp { trace: image.trace, progress: image.progress.unwrap_or_default(), ..StartUp::default() }
    }

    /// Questions that were asked because a read waited. Chunks that arrive together were asked for together.
    fn round_trips(&self) -> u64 {
        let ready = self.ready.as_micros() as u64;
        let waited = |arrival: &&ReadTrace| {
            arrival.class() == ChunkClass::Demand && arrival.waiters > 0 && arrival.at_us <= ready
        };
        // By the millisecond: both times are rounded.
        let asked = |arrival: &ReadTrace| arrival.at_us.saturating_sub(arrival.took_us) / 1000;
        let asked: HashSet<u64> = self.trace.iter().filter(waited).map(asked).collect();
        asked.len() as u64
    }

    /// Stored bytes that this start could not do without: tree, map, and the chunks that it read and that had
    /// arrived before it was ready.
    pub fn needed_bytes(&self, record: &ImageRecord) -> u64 {
        let read: HashSet<&[u8]> = self.profile.chunks.iter().map(|chunk| &chunk.as_bytes()[..]).collect();
        let ready = self.ready.as_micros() as u64;
        let in_time = |arrival: &&ReadTrace| arrival.at_us <= ready && read.contains(&arrival.chunk[..]);
        let chunks: u64 =
            self.trace.iter().filter(in_time).map(|arrival| u64::from(arrival.stored_bytes)).sum();
        record.tree.stored_len + record.map.stored_len + chunks
    }
}
