//! containerd's own socket: its images, blobs and snapshots in the namespace of Kubernetes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use hyper_util::rt::TokioIo;
use proto::containerd::content::content_client::ContentClient;
use proto::containerd::content::{Info, InfoRequest, ReadContentRequest};
use proto::containerd::images::images_client::ImagesClient;
use proto::containerd::images::{DeleteImageRequest, Image, ListImagesRequest};
use proto::containerd::snapshots::snapshots_client::SnapshotsClient;
use proto::containerd::snapshots::{Kind, ListSnapshotsRequest, StatSnapshotRequest};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Where the kubelet's images are.
pub const KUBERNETES: &str = "k8s.io";
/// How long one answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// How long the last removal may take: it waits until what nobody needs any more is gone from the disk.
const COLLECT_MAX: Duration = Duration::from_secs(600);
/// How long containerd may take from its start until it answers.
const START_MAX: Duration = Duration::from_secs(60);
const START_POLL: Duration = Duration::from_millis(200);
/// The list of all images is one message.
const MESSAGE_MAX: usize = 256 * 1024 * 1024;
/// Longer manifests and configurations are not read: containerd itself refuses them at 8 MiB.
const DOCUMENT_MAX: usize = 8 * 1024 * 1024;
/// Keys of snapshots that a pull is unpacking into begin so.
const UNPACKING: &str = "extract-";

/// Digits of the names of Docker's containers, and of their snapshots; its builder keeps others, which stand for no container.
const DOCKER_NAME: usize = 64;

pub type InNamespace = InterceptedService<Channel, Namespace>;

/// Says in which of its namespaces containerd is asked.
#[derive(Clone, Copy, Debug)]
pub struct Namespace(&'static str);

#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    namespace: &'static str,
    images: ImagesClient<InNamespace>,
    content: ContentClient<InNamespace>,
    snapshots: SnapshotsClient<InNamespace>,
}

impl Interceptor for Namespace {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("containerd-namespace", AsciiMetadataValue::from_static(self.0));
        Ok(request)
    }
}

impl Client {
    /// `namespace`: [`KUBERNETES`], or Docker's.
    pub async fn connect(socket: &Path, namespace: &'static str) -> anyhow::Result<Client> {
        let path = socket.to_owned();
        let dial = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The address is not used: the connector knows the socket.
        let channel = Endpoint::from_static("http://containerd").connect_with_connector(dial).await;
        let channel = channel.with_context(|| format!("no containerd answers on {}", socket.display()))?;
        let channel = InterceptedService::new(channel, Namespace(namespace));
        Ok(Client {
            socket: socket.to_owned(),
            namespace,
            images: ImagesClient::new(channel.clone()).max_decoding_message_size(MESSAGE_MAX),
            content: ContentClient::new(channel.clone()),
            snapshots: SnapshotsClient::new(channel),
        })
    }

    /// Like [`Client::connect`], for a containerd that was just started.
    pub async fn wait(socket: &Path, namespace: &'static str, snapshotter: &str) -> anyhow::Result<Client> {
        let started = Instant::now();
        loop {
            let answer = async {
                let mut client = Client::connect(socket, namespace).await?;
                client.images().await?;
                client.has_snapshot(snapshotter, "none").await?;
                anyhow::Ok(client)
            };
            match answer.await {
                Ok(client) => return Ok(client),
                Err(error) if started.elapsed() > START_MAX => {
                    return Err(
                        error.context(format!("containerd does not answer {START_MAX:?} after its restart"))
                    );
                }
                Err(_) => sleep(START_POLL).await,
            }
        }
    }

    /// Speaks to its content store by itself.
    pub fn content(&self) -> ContentClient<InNamespace> {
        self.content.clone()
    }

    /// Names and digests.
    pub async fn images(&mut self) -> anyhow::Result<Vec<(String, String)>> {
        let images = self.full_images().await?.into_iter();
        Ok(images.filter_map(|image| Some((image.name, image.target?.digest))).collect())
    }

    pub async fn full_images(&mut self) -> anyhow::Result<Vec<Image>> {
        let reply = answered(self.images.list(ListImagesRequest::default())).await;
        let reply = reply.with_context(|| format!("list the images of {}", self.socket.display()))?;
        Ok(reply.into_inner().images)
    }

    /// Takes a name off the list; with `collect` also what nobody needs any more, off the disk.
    pub async fn forget(&mut self, name: &str, collect: bool) -> anyhow::Result<()> {
        let request = DeleteImageRequest { name: name.to_owned(), sync: collect };
        let limit = if collect { COLLECT_MAX } else { ANSWER_MAX };
        match within(limit, self.images.delete(request)).await {
            Ok(_) => Ok(()),
            // Somebody was faster.
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(status).with_context(|| format!("remove image {name} from containerd")),
        }
    }

    /// A small blob; none: it is not here.
    pub async fn read(&mut self, digest: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let reading = async {
            let mut parts = self.content.read(request).await?.into_inner();
            let mut bytes = Vec::new();
            while let Some(part) = parts.message().await? {
                bytes.extend_from_slice(&part.data);
                if bytes.len() > DOCUMENT_MAX {
                    return Err(Status::out_of_range(format!("longer than {DOCUMENT_MAX} bytes")));
                }
            }
            Ok(bytes)
        };
        match answered(reading).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status).with_context(|| format!("read {digest} from containerd")),
        }
    }

    pub async fn has_blob(&mut self, digest: &str) -> anyhow::Result<bool> {
        Ok(self.info(digest).await?.is_some())
    }

    /// What containerd knows of a blob; none: it is not here.
    pub async fn info(&mut self, digest: &str) -> anyhow::Result<Option<Info>> {
        let request = InfoRequest { digest: digest.to_owned() };
        match answered(self.content.info(request)).await {
            Ok(reply) => Ok(Some(reply.into_inner().info.unwrap_or_default())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status).with_context(|| format!("ask containerd for {digest}")),
        }
    }

    pub async fn has_snapshot(&mut self, snapshotter: &str, chain: &str) -> anyhow::Result<bool> {
        let request = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: chain.to_owned() };
        match answered(self.snapshots.stat(request)).await {
            Ok(reply) => Ok(reply.into_inner().info.is_some_and(|info| info.kind() == Kind::Committed)),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) if status.code() == Code::InvalidArgument => {
                bail!(
                    "containerd does not know the snapshotter {snapshotter}: restart it, then run this again"
                )
            }
            Err(status) => {
                Err(status).with_context(|| format!("ask the snapshotter {snapshotter} for {chain}"))
            }
        }
    }

    fn is_container(&self, info: &proto::containerd::snapshots::Info) -> bool {
        let of_docker =
            || info.name.len() == DOCKER_NAME && info.name.bytes().all(|byte| byte.is_ascii_hexdigit());
        let named_so = match self.namespace == KUBERNETES {
            true => !info.name.starts_with(UNPACKING),
            false => of_docker(),
        };
        info.kind() == Kind::Active && named_so
    }

    /// How many containers stand on snapshots of `snapshotter`; none where containerd does not know it.
    pub async fn containers_on(&mut self, snapshotter: &str) -> anyhow::Result<usize> {
        let request = ListSnapshotsRequest { snapshotter: snapshotter.to_owned(), ..Default::default() };
        let mut snapshots = self.snapshots.clone();
        let counting = async {
            let mut parts = snapshots.list(request).await?.into_inner();
            let mut count = 0;
            while let Some(part) = parts.message().await? {
                let standing = |info: &&_| self.is_container(info);
                count += part.info.iter().filter(standing).count();
            }
            Ok(count)
        };
        match answered(counting).await {
            Ok(count) => Ok(count),
            Err(status) if status.code() == Code::InvalidArgument => Ok(0),
            Err(status) => Err(status).with_context(|| format!("list the snapshots of {snapshotter}")),
        }
    }
}

async fn answered<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    within(ANSWER_MAX, call).await
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late = || Status::deadline_exceeded(format!("containerd did not answer within {limit:?}"));
    timeout(limit, call).await.unwrap_or_else(|_| Err(late()))
}
