//! A start: an image is mounted and its files are read for the first time, on a node that runs already, behind a link, out of a registry that
//! wants a password.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hyper_util::rt::TokioIo;
use proto::credential::{Basic, Kind};
use proto::node_client::NodeClient;
use proto::{
    AskerFacts, Credential, EvictRequest, MountRequest, ResolveRequest, UnmountRequest, mount_event,
};
use serde_json::{Value, json};
use testkit::registry::{PASSWORD, USER};
use testkit::{LayoutWriter, Registry};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::side::{NODE, Side, until};
use super::{Round, sides};
use crate::Numbered;
use crate::services::Service;

const LINK: [&str; 4] = ["--rtt", "20ms", "--bandwidth", "200Mbit"];
const NEAR: [&str; 4] = ["--rtt", "1ms", "--bandwidth", "1Gbit"];
/// Some megabytes: what a small service's start reads.
const FILES: u64 = 120;
const FILE_LEN: usize = 24_000;
/// Between two starts, for what the one before has left to do.
const REST: Duration = Duration::from_millis(150);

struct Node {
    side: Side,
    client: NodeClient<Channel>,
    root: PathBuf,
    _frontend: Service,
}

/// Seconds from the question to the last byte.
pub(super) async fn measure(rounds: usize) -> anyhow::Result<Value> {
    let scratch = tempfile::tempdir()?;
    let registry = Registry::start_private()?;
    let image = Numbered { files: FILES, len: FILE_LEN, seed: 3 };
    let mut layout = LayoutWriter::create(&scratch.path().join("layout"))?;
    layout.image("1", &image.image()?)?;
    let reference = registry.push(&layout.reference("1"), "app:1")?;
    let fetcher = [format!("fetcher.source.plain_http=[\"{}\"]", registry.host())];
    let mut result = serde_json::Map::new();
    for (name, link) in [("twenty_milliseconds", &LINK), ("one_millisecond", &NEAR)] {
        let mut nodes = [Side::off(Some(link), &fetcher)?, Side::on(Some(link), &fetcher)?]
            .into_iter()
            .map(Node::start)
            .collect::<anyhow::Result<Vec<_>>>()?;
        for node in &mut nodes {
            // Imports, makes all connections, and leaves a profile.
            let mut last = Ok(0.0);
            until("a first start", async || {
                last = node.begin(&reference).await;
                Ok(last.is_ok() && node.side.is_counted()?)
            })
            .await
            .with_context(|| format!("{last:?}"))?;
        }
        let mut times = Vec::new();
        for number in 0..rounds + 2 {
            let mut took = [0.0; 2];
            let order = if number % 2 == 0 { [0, 1] } else { [1, 0] };
            for at in order {
                tokio::time::sleep(REST).await;
                took[at] = nodes[at].begin(&reference).await?;
            }
            if number > 1 {
                times.push(Round { off: took[0], on: took[1] });
            }
        }
        result.insert(name.to_owned(), json!({ "seconds": sides(&times) }));
    }
    Ok(result.into())
}

impl Node {
    fn start(side: Side) -> anyhow::Result<Node> {
        let (frontend, socket) = side.frontend("node")?;
        let root = side.scratch.mount_point("root")?;
        Ok(Node { client: client(socket), root, _frontend: frontend, side })
    }

    /// One start, and everything is as before.
    async fn begin(&mut self, reference: &str) -> anyhow::Result<f64> {
        let begun = Instant::now();
        self.mount(reference).await?;
        let root = self.root.clone();
        let read = tokio::task::spawn_blocking(move || read_all(&root)).await?;
        let took = begun.elapsed().as_secs_f64();
        let target = self.root.display().to_string();
        self.client.unmount(UnmountRequest { target }).await?;
        let image = reference.to_owned();
        let mut last = None;
        until("the image is gone", async || {
            let evicted = self.client.evict(EvictRequest { image: image.clone() }).await;
            let gone = evicted.is_ok();
            last = evicted.err();
            Ok(gone)
        })
        .await
        .with_context(|| format!("{last:?}"))?;
        ensure!(read? == FILES as usize * FILE_LEN, "all was read");
        Ok(took)
    }

    async fn mount(&mut self, reference: &str) -> anyhow::Result<()> {
        let basic = Basic { username: USER.to_owned(), password: PASSWORD.to_owned() };
        let image = ResolveRequest {
            project: "default".to_owned(),
            reference: reference.to_owned(),
            node: NODE.to_owned(),
            plain_http: true,
            credential: Some(Credential { kind: Some(Kind::Basic(basic)) }),
            asker: Some(AskerFacts::default()),
            ..ResolveRequest::default()
        };
        let target = self.root.display().to_string();
        let request = MountRequest { image: Some(image), target, ..MountRequest::default() };
        let mut events = self.client.mount(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            if let Some(mount_event::Event::Mounted(_)) = event.event {
                return Ok(());
            }
        }
        anyhow::bail!("the mount ended without a result")
    }
}

fn client(socket: PathBuf) -> NodeClient<Channel> {
    let dial = tower::service_fn(move |_| {
        let path = socket.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address is not used: the connector knows the socket.
    NodeClient::new(Endpoint::from_static("http://node").connect_with_connector_lazy(dial))
}

fn read_all(root: &Path) -> anyhow::Result<usize> {
    let read = |number| anyhow::Ok(fs::read(root.join(format!("data/{number}")))?.len());
    (0..FILES).map(read).sum()
}
