//! The gRPC service: takes requests apart, calls [`Snapshots`], puts answers together. What is asked comes from
//! containerd, which owns the socket; it is root's as all of this is.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures::Stream;
use proto::containerd::snapshots::snapshots_server::{Snapshots as Service, SnapshotsServer};
use proto::containerd::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind as WireKind, ListSnapshotsRequest,
    ListSnapshotsResponse, MountsRequest, MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse,
    RemoveSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest,
    UpdateSnapshotResponse, UsageRequest, UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::NamedService;
use tonic::{Request, Response, Status};

use super::filter::Filter;
use super::ledger::{Kind, Snapshot};
use super::{Labels, New, Snapshots};
use crate::ending::Ending;

/// How long a call waits for the snapshots of a process that starts; containerd gives most calls less.
const FOUND_MAX: Duration = Duration::from_secs(60);
/// Snapshots in one message of a list: some hundred KiB.
const LIST_PART: usize = 200;
/// The field of an update that means all labels.
const LABELS: &str = "labels";

/// Serves until `shutdown`; calls that are being answered then have a moment to finish. Calls wait until the snapshots are found, which whoever
/// gets this sends.
pub(crate) fn answer(
    listener: UnixListener,
    ending: &Ending,
    shutdown: CancellationToken,
) -> watch::Sender<Option<Snapshots>> {
    let (found, waiting) = watch::channel(None);
    let served = ending
        .server()
        .add_service(Sooner { found: waiting })
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.cancelled_owned());
    ending.spawn(async move {
        if let Err(error) = served.await {
            tracing::error!(%error, "the snapshotter's socket is no longer served");
        }
    });
    found
}

/// The service, before there is one.
#[derive(Clone, Debug)]
struct Sooner {
    found: watch::Receiver<Option<Snapshots>>,
}

impl Sooner {
    async fn found(mut self) -> Option<Snapshots> {
        let found = timeout(FOUND_MAX, self.found.wait_for(Option::is_some)).await;
        found.ok()?.ok()?.clone()
    }
}

impl NamedService for Sooner {
    const NAME: &'static str = SnapshotsServer::<Snapshots>::NAME;
}

impl tower::Service<http::Request<Body>> for Sooner {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let found = self.clone().found();
        Box::pin(async move {
            match found.await {
                Some(snapshots) => SnapshotsServer::new(snapshots).call(request).await,
                None => Ok(Status::unavailable("the frontend has not found its snapshots yet: ask again")
                    .into_http()),
            }
        })
    }
}

#[tonic::async_trait]
impl Service for Snapshots {
    type ListStream = Pin<Box<dyn Stream<Item = Result<ListSnapshotsResponse, Status>> + Send>>;

    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let mounts = self.make(new(Kind::Active, key, parent, labels)?).await?;
        Ok(Response::new(PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        let ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let mounts = self.make(new(Kind::View, key, parent, labels)?).await?;
        Ok(Response::new(ViewSnapshotResponse { mounts }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Result<Response<MountsResponse>, Status> {
        let mounts = Snapshots::mounts(self, request.into_inner().key).await?;
        Ok(Response::new(MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let CommitSnapshotRequest { name, key, labels, parent, .. } = request.into_inner();
        let name = named(name)?;
        Snapshots::commit(self, key, name, sorted(labels), given(parent)).await?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        Snapshots::remove(self, request.into_inner().key).await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let key = request.into_inner().key;
        let snapshot = Snapshots::stat(self, key.clone()).await?;
        Ok(Response::new(StatSnapshotResponse { info: Some(info(key, snapshot)) }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let UpdateSnapshotRequest { info: asked, update_mask, .. } = request.into_inner();
        let asked = asked.ok_or_else(|| Status::invalid_argument("the update names no snapshot"))?;
        let fields = update_mask.unwrap_or_default().paths;
        if let Some(other) = fields.iter().find(|field| *field != LABELS && label_of(field).is_none()) {
            return Err(Status::invalid_argument(format!("{other:?} of a snapshot cannot be changed")));
        }
        let (name, labels) = (asked.name.clone(), sorted(asked.labels));
        let change = move |now: &mut Labels| change_labels(now, labels, &fields);
        let changed = self.set_labels(name.clone(), change).await?;
        Ok(Response::new(UpdateSnapshotResponse { info: Some(info(name, changed)) }))
    }

    async fn list(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filters = request.into_inner().filters.iter().map(|text| Filter::parse(text)).collect();
        let found: Vec<Info> = Snapshots::list(self, filters)
            .await?
            .into_iter()
            .map(|(name, snapshot)| info(name, snapshot))
            .collect();
        let parts: Vec<_> =
            found.chunks(LIST_PART).map(|part| Ok(ListSnapshotsResponse { info: part.to_vec() })).collect();
        Ok(Response::new(Box::pin(futures::stream::iter(parts))))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        let usage = Snapshots::usage(self, request.into_inner().key).await?;
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        Ok(Response::new(UsageResponse { size: signed(usage.bytes), inodes: signed(usage.inodes) }))
    }

    async fn cleanup(&self, _request: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        self.clean().await?;
        Ok(Response::new(()))
    }
}

fn new(kind: Kind, key: String, parent: String, labels: HashMap<String, String>) -> Result<New, Status> {
    Ok(New { kind, key: named(key)?, parent: given(parent), labels: sorted(labels) })
}

fn named(name: String) -> Result<String, Status> {
    if name.is_empty() { Err(Status::invalid_argument("a snapshot needs a name")) } else { Ok(name) }
}

fn given(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn sorted(labels: HashMap<String, String>) -> BTreeMap<String, String> {
    labels.into_iter().collect()
}

/// `labels.NAME`, one label of an update.
fn label_of(field: &str) -> Option<&str> {
    field.strip_prefix("labels.")
}

/// Without fields, or with `labels`, all are replaced; else those that are named; one without a value goes.
fn change_labels(now: &mut Labels, mut asked: Labels, fields: &[String]) {
    if fields.is_empty() || fields.iter().any(|field| field == LABELS) {
        *now = asked;
        return;
    }
    for label in fields.iter().filter_map(|field| label_of(field)) {
        match asked.remove(label).filter(|value| !value.is_empty()) {
            Some(value) => now.insert(label.to_owned(), value),
            None => now.remove(label),
        };
    }
}

fn info(name: String, snapshot: Snapshot) -> Info {
    let kind = match snapshot.kind {
        Kind::View => WireKind::View,
        Kind::Active => WireKind::Active,
        Kind::Committed => WireKind::Committed,
    };
    Info {
        name,
        parent: snapshot.parent.unwrap_or_default(),
        kind: kind.into(),
        created_at: Some(SystemTime::into(snapshot.created)),
        updated_at: Some(SystemTime::into(snapshot.updated)),
        labels: snapshot.labels.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use hyper_util::rt::TokioIo;
    use proto::containerd::snapshots::snapshots_client::SnapshotsClient;
    use tokio::net::UnixStream;
    use tokio_util::task::TaskTracker;
    use tonic::transport::Endpoint;

    use super::*;
    use crate::events::NodeEvents;
    use crate::snapshots::Streaming;

    #[tokio::test]
    async fn a_call_waits_until_the_snapshots_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("snapshotter.sock");
        let shutdown = CancellationToken::new();
        let ending = Ending::new(TaskTracker::new(), shutdown.clone());
        let found = answer(UnixListener::bind(&socket).unwrap(), &ending, shutdown);
        let dial = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The server's first bytes come at once.
        let channel = Endpoint::from_static("http://node").connect_with_connector(dial).await.unwrap();
        let mut client = SnapshotsClient::new(channel);
        let asked = StatSnapshotRequest { key: "none".to_owned(), ..StatSnapshotRequest::default() };
        let mut call = std::pin::pin!(client.stat(asked));
        assert!(futures::poll!(&mut call).is_pending());
        let events = NodeEvents::new(bus::Bus::in_process().events().clone(), "node");
        let streaming = Streaming::Impossible { why: "a test".to_owned(), events };
        found.send_replace(Some(Snapshots::open(folder.path(), streaming).unwrap()));
        assert_eq!(call.await.unwrap_err().code(), tonic::Code::NotFound);
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn an_update_changes_what_its_mask_names() {
        let check = |fields: &[&str], expected: &[(&str, &str)]| {
            let mut now = labels(&[("a", "1"), ("b", "2")]);
            let fields: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
            change_labels(&mut now, labels(&[("b", "3"), ("c.d/e", "4")]), &fields);
            assert_eq!(now, labels(expected), "{fields:?}");
        };
        check(&[], &[("b", "3"), ("c.d/e", "4")]);
        check(&["labels"], &[("b", "3"), ("c.d/e", "4")]);
        check(&["labels.c.d/e"], &[("a", "1"), ("b", "2"), ("c.d/e", "4")]);
        check(&["labels.a"], &[("b", "2")]);
    }
}
