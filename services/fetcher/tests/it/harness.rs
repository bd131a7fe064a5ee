//! A fetcher, its store and a place for images.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use bus::Bus;
use fetcher::{Config, Fetcher};
use image::{Digest, ImageRecord, Map};
use proto::resolve_reply::Answer;
use proto::signed::{Domain, verify};
use proto::{FollowRequest, ImportProgress, InspectRequest, ResolveReply, ResolveRequest, Resolved, Starts};
use store::{Index, ProjectStore, Store};
use tempfile::TempDir;
use testkit::{LayoutWriter, Tarball};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Harness {
    pub(crate) folder: TempDir,
    pub(crate) config: Config,
    pub(crate) bus: Bus,
    pub(crate) store: Store,
    pub(crate) fetcher: Option<Fetcher>,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

impl Harness {
    pub(crate) async fn start() -> Harness {
        Harness::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(adjust: impl FnOnce(&mut Config)) -> Harness {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config {
            signing_key_file: folder.path().join("fetcher.key"),
            local_sources: true,
            ..Config::default()
        };
        adjust(&mut config);
        let address = folder.path().join("store").display().to_string();
        let store = Store::open(&address, &HashMap::new()).unwrap();
        let (bus, tasks, shutdown) = (Bus::in_process(), TaskTracker::new(), CancellationToken::new());
        let mut harness = Harness { folder, config, bus, store, fetcher: None, tasks, shutdown };
        harness.restart().await;
        harness
    }

    /// Another fetcher on the same store, bus and key.
    pub(crate) async fn another(&self) -> Fetcher {
        let (config, store, bus) = (self.config.clone(), self.store.clone(), self.bus.clone());
        Fetcher::start(config, store, bus, &self.tasks, self.shutdown.clone()).await.unwrap()
    }

    /// The fetcher is gone with all that it knew; a new one takes its place.
    pub(crate) async fn restart(&mut self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.fetcher = None;
        (self.tasks, self.shutdown) = (TaskTracker::new(), CancellationToken::new());
        self.fetcher = Some(self.another().await);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn layout(&self) -> LayoutWriter {
        LayoutWriter::create(&self.path("layout")).unwrap()
    }

    pub(crate) fn project(&self) -> ProjectStore {
        self.store.project("").unwrap()
    }

    pub(crate) fn request(&self, reference: &str) -> ResolveRequest {
        ResolveRequest {
            reference: reference.to_owned(),
            node: "node-1".to_owned(),
            platform: Some(proto::Platform {
                os: "linux".into(),
                architecture: "amd64".into(),
                variant: String::new(),
            }),
            ..ResolveRequest::default()
        }
    }

    pub(crate) async fn import(&self, reference: &str) -> Result<Resolved, Status> {
        self.resolve(self.request(reference)).await.map(|(resolved, _)| resolved)
    }

    /// Resolves to the end; also all progress on the way.
    pub(crate) async fn resolve(
        &self,
        request: ResolveRequest,
    ) -> Result<(Resolved, Vec<ImportProgress>), Status> {
        let mut shown = Vec::new();
        let (asker, node) = (request.project.clone(), request.node.clone());
        let mut reply: ResolveReply = self.bus.call(request, DEADLINE).await?;
        loop {
            let ticket = match reply.answer.unwrap() {
                Answer::Resolved(resolved) => return Ok((resolved, shown)),
                Answer::Importing(ticket) => ticket,
            };
            let progress = ticket.progress.unwrap();
            let follow = FollowRequest {
                ticket: ticket.ticket,
                wait_ms: 10_000,
                seen_revision: progress.revision,
                project: asker.clone(),
                node: node.clone(),
            };
            shown.push(progress);
            reply = self.bus.call_instance(&ticket.instance, follow, DEADLINE).await?;
        }
    }

    /// The record inside, once its signature holds.
    pub(crate) fn record(&self, resolved: &Resolved) -> ImageRecord {
        let key = fetcher::verifying_key(&self.config).unwrap();
        let payload = verify(&[key], Domain::ImageRecord, resolved.record.as_ref().unwrap()).unwrap();
        ImageRecord::decode(payload).unwrap()
    }

    /// What is known of the image's starts.
    pub(crate) async fn starts(&self, reference: &str) -> Starts {
        let ResolveRequest { reference, platform, .. } = self.request(reference);
        let request = InspectRequest { reference, platform, ..InspectRequest::default() };
        self.bus.call(request, DEADLINE).await.unwrap().starts.unwrap()
    }

    pub(crate) async fn map(&self, record: &ImageRecord) -> Map {
        let stored = self.project().index(Index::Map, record.map.digest).await.unwrap();
        Map::decode(&store::verify::open_index(&record.map.digest, &stored).unwrap()).unwrap()
    }

    /// Every object's bytes as the chunks of the image's map give them.
    pub(crate) async fn objects(&self, record: &ImageRecord) -> HashMap<Digest, Vec<u8>> {
        let (project, map) = (self.project(), self.map(record).await);
        let mut chunks = Vec::new();
        for chunk in &map.chunks {
            let stored = project.chunk(chunk.digest).await.unwrap();
            // Smaller where it was compressed again.
            assert!(stored.len() <= chunk.stored_len as usize);
            chunks.push(store::verify::open_chunk(&chunk.digest, &stored).unwrap());
        }
        let mut objects = HashMap::new();
        for place in &map.objects {
            let mut content = Vec::new();
            for slice in map.slices(place, 0..place.len) {
                let start = slice.chunk_offset as usize;
                content.extend_from_slice(&chunks[slice.chunk as usize][start..start + slice.len as usize]);
            }
            assert_eq!(Digest::of(&content), place.digest);
            objects.insert(place.digest, content);
        }
        objects
    }

    /// The plain bytes of an image's tree.
    pub(crate) async fn tree(&self, record: &ImageRecord) -> Vec<u8> {
        let stored = self.project().index(Index::Tree, record.tree.digest).await.unwrap();
        store::verify::open_index(&record.tree.digest, &stored).unwrap()
    }

    /// Where the store keeps a chunk.
    pub(crate) fn chunk_file(&self, digest: &Digest) -> PathBuf {
        self.path("store/default/chunks").join(digest.path())
    }
}

/// Bytes that compress by half, and differ for each seed.
pub(crate) fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 16);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
    }
    bytes.truncate(len);
    bytes
}

/// A layer with one file of each size class.
pub(crate) fn layer(seed: u64) -> Vec<u8> {
    Tarball::new()
        .directory("etc")
        .file("etc/inline", format!("inline {seed}").as_bytes())
        .file("etc/small", &content(seed, 10_000))
        .file("large", &content(seed + 1, 5_000_000))
        .symlink("link", "etc/small")
        .hard_link("hard", "etc/small")
        .finish()
}
