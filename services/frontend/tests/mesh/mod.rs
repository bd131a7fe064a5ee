//! A whole mesh in this process: real fetcher, cache and frontend on the in-process bus, a folder as store,
//! an OCI layout as the source of images.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bus::Bus;
use cache::Cache;
use fetcher::Fetcher;
use frontend::{Config, Early, Frontend};
use hyper_util::rt::TokioIo;
use proto::mount_event::Event;
use proto::node_client::NodeClient;
use proto::{MountRequest, Mounted, NodeImage, Platform, ResolveRequest, StatusRequest, UnmountRequest};
use rustix::mount::UnmountFlags;
use store::Store;
use tempfile::TempDir;
use testkit::{ImageSpec, LayoutWriter};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// How long anything in a test may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Mesh {
    pub(crate) folder: TempDir,
    pub(crate) bus: Bus,
    pub(crate) layout: LayoutWriter,
    pub(crate) fetcher: Option<Fetcher>,
    pub(crate) cache: Option<Running>,
    targets: Vec<PathBuf>,
}

/// A service that can be ended.
pub(crate) struct Running {
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// A frontend and the way to ask it.
pub(crate) struct Node {
    pub(crate) client: NodeClient<Channel>,
    pub(crate) shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Mesh {
    pub(crate) async fn start() -> Mesh {
        let folder = tempfile::tempdir().unwrap();
        let layout = LayoutWriter::create(&folder.path().join("layout")).unwrap();
        let mut mesh =
            Mesh { folder, bus: Bus::in_process(), layout, fetcher: None, cache: None, targets: Vec::new() };
        mesh.start_fetcher().await;
        mesh.start_cache().await;
        mesh
    }

    pub(crate) async fn start_fetcher(&mut self) {
        let running = Running::new();
        let fetcher = Fetcher::start(
            self.fetcher_config(),
            self.store(),
            self.bus.clone(),
            &running.tasks,
            running.shutdown.clone(),
        );
        self.fetcher = Some(fetcher.await.unwrap());
    }

    pub(crate) async fn start_cache(&mut self) {
        let running = Running::new();
        let trusted = vec![fetcher::verifying_key(&self.fetcher_config()).unwrap()].into();
        let (config, bus) = (cache::Config::default(), self.bus.clone());
        Cache::start(config, self.store(), bus, trusted, &running.tasks, running.shutdown.clone())
            .await
            .unwrap();
        self.cache = Some(running);
    }

    /// Ends fetcher and cache: the node is alone.
    pub(crate) async fn go_away(&mut self) {
        self.fetcher = None;
        if let Some(cache) = self.cache.take() {
            cache.stop().await;
        }
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(self.path("store").to_str().unwrap(), &HashMap::new()).unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A frontend on the state folder `name`, with what `change` sets.
    pub(crate) async fn node(&self, name: &str, change: impl FnOnce(&mut Config)) -> anyhow::Result<Node> {
        let running = Running::new();
        let mut config = Config {
            // The holder is this program again, which a test is not.
            hold: false,
            node: name.to_owned(),
            state: self.path(name),
            socket: self.path(&format!("{name}.sock")),
            known_resolve_timeout: Duration::from_millis(300),
            ..Config::default()
        };
        change(&mut config);
        let socket = config.socket.clone();
        let trusted = vec![fetcher::verifying_key(&self.fetcher_config())?].into();
        let shutdown = running.shutdown.clone();
        let early = Early::open(&config, &running.tasks, &shutdown)?;
        Frontend::start(config, early, None, self.bus.clone(), trusted, &running.tasks, shutdown).await?;
        let dial = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://node").connect_with_connector(dial).await?;
        let Running { shutdown, tasks } = running;
        Ok(Node { client: NodeClient::new(channel), shutdown, tasks })
    }

    /// An image of one layer.
    pub(crate) fn image(&mut self, tag: &str, tar: Vec<u8>) -> String {
        self.layout.image(tag, &ImageSpec::new([tar])).unwrap()
    }

    /// A new, empty folder to mount at; unmounted at the end of the test, however it ends.
    pub(crate) fn target(&mut self, name: &str) -> PathBuf {
        let target = self.path(name);
        fs::create_dir_all(&target).unwrap();
        self.targets.push(target.clone());
        target
    }

    pub(crate) fn request(&self, tag: &str, target: &Path) -> MountRequest {
        let image = ResolveRequest {
            reference: self.layout.reference(tag),
            platform: Some(Platform {
                os: "linux".to_owned(),
                architecture: "amd64".to_owned(),
                variant: String::new(),
            }),
            ..ResolveRequest::default()
        };
        MountRequest {
            image: Some(image),
            target: target.to_str().unwrap().to_owned(),
            upper: String::new(),
            work: String::new(),
        }
    }

    fn fetcher_config(&self) -> fetcher::Config {
        fetcher::Config {
            signing_key_file: self.path("fetcher.key"),
            local_sources: true,
            ..fetcher::Config::default()
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        for target in &self.targets {
            while rustix::mount::unmount(target, UnmountFlags::DETACH).is_ok() {}
        }
    }
}

impl Running {
    fn new() -> Running {
        Running { shutdown: CancellationToken::new(), tasks: TaskTracker::new() }
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        tokio::time::timeout(PATIENCE, self.tasks.wait()).await.unwrap();
    }
}

impl Node {
    pub(crate) async fn mount(&mut self, request: MountRequest) -> Result<Mounted, Status> {
        let mut events = self.client.mount(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            if let Some(Event::Mounted(mounted)) = event.event {
                return Ok(mounted);
            }
        }
        panic!("the mount ended without an outcome");
    }

    pub(crate) async fn unmount(&mut self, target: &Path) -> Result<(), Status> {
        let target = target.to_str().unwrap().to_owned();
        self.client.unmount(UnmountRequest { target }).await.map(|_| ())
    }

    pub(crate) async fn image(&mut self, manifest: &str) -> Option<NodeImage> {
        let status = self.client.status(StatusRequest { reads: true }).await.unwrap().into_inner();
        status.images.into_iter().find(|image| image.manifest_digest == manifest)
    }

    pub(crate) async fn complete(&mut self, manifest: &str) {
        let request = proto::CompleteRequest { manifest_digest: manifest.to_owned() };
        let mut updates = self.client.complete(request).await.unwrap().into_inner();
        let mut complete = false;
        while let Some(update) = tokio::time::timeout(PATIENCE, updates.message()).await.unwrap().unwrap() {
            complete = update.complete;
        }
        assert!(complete);
    }

    /// Asks again and again until `holds`.
    pub(crate) async fn until(&mut self, manifest: &str, holds: impl Fn(&NodeImage) -> bool) -> NodeImage {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let image = self.image(manifest).await.unwrap();
            if holds(&image) {
                return image;
            }
            assert!(tokio::time::Instant::now() < deadline, "still {image:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the frontend as a signal would.
    pub(crate) async fn stop(self) {
        Running { shutdown: self.shutdown, tasks: self.tasks }.stop().await;
    }
}

/// Reads a file without holding up the services, which answer the read.
pub(crate) async fn read(path: PathBuf) -> std::io::Result<Vec<u8>> {
    tokio::task::spawn_blocking(move || fs::read(path)).await.unwrap()
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
