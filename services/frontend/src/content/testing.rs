//! A content server over a store folder that misbehaves on request, for tests.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bus::{Answer, Answering, Bus};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use image::map::Map;
use image::record::{ChunkRef, ObjectPlace};
use image::{Digest, Profile};
use prost::Message;
use proto::chunk_frame::Failure;
use proto::chunks_request::Priority;
use proto::content_server::{Content as ContentService, ContentServer};
use proto::gatekeeper::GRANT_METADATA;
use proto::{ChunkFrame, ChunksRequest, IndexFrame, IndexRequest, LocateReply, LocateRequest, Signed};
use store::{Index, ProjectStore, Store};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::{Access, Content, Mesh, Options};
use crate::events::NodeEvents;

/// One chunk that a replica sends: which, and for whom.
pub(crate) type Sent = (Digest, Priority);

/// How a replica behaves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// Refuse every request.
    pub(crate) refuse: bool,
    /// Refuse for lack of a grant.
    pub(crate) deny: bool,
    /// Refuse all grants but this one.
    pub(crate) only: Option<Signed>,
    /// Send nothing more of these chunks' streams, and keep them open.
    pub(crate) stall: Vec<Digest>,
    /// Cut the stream before these chunks.
    pub(crate) cut: Vec<Digest>,
    /// Send other bytes.
    pub(crate) corrupt: Vec<Digest>,
    /// Send nothing of this class, until the faults change.
    pub(crate) hold: Option<Priority>,
}

/// A store folder with content, a bus, and any number of replicas in front of it.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) folder: TempDir,
    pub(crate) bus: Bus,
    pub(crate) store: Store,
    pub(crate) replicas: Vec<TestReplica>,
    _answering: Option<Answering>,
}

/// One replica, in this process, on a port of its own.
#[derive(Clone, Debug)]
pub(crate) struct TestReplica {
    pub(crate) address: SocketAddr,
    store: ProjectStore,
    faults: watch::Sender<Faults>,
    /// Chunk streams that were asked for.
    streams: watch::Sender<usize>,
    sent: Arc<Mutex<Vec<Sent>>>,
}

/// Objects and the map over them.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) map: Arc<Map>,
    pub(crate) bytes: HashMap<Digest, Vec<u8>>,
}

impl Site {
    pub(crate) async fn new(replicas: usize) -> Site {
        let folder = TempDir::new().unwrap();
        let store = Store::open(folder.path().join("store").to_str().unwrap(), &HashMap::new()).unwrap();
        let bus = Bus::in_process();
        let mut site = Site { folder, bus, store, replicas: Vec::new(), _answering: None };
        for _ in 0..replicas {
            site.replicas.push(TestReplica::start(site.project()).await);
        }
        let endpoints: Vec<String> =
            site.replicas.iter().map(|replica| format!("http://{}", replica.address)).collect();
        let answer = Answer { in_flight: 8, instance: None };
        let answering = site.bus.answer(answer, move |_: LocateRequest| {
            std::future::ready(Ok(LocateReply { endpoints: endpoints.clone() }))
        });
        site._answering = (replicas > 0).then_some(answering.await.unwrap());
        site
    }

    pub(crate) fn project(&self) -> ProjectStore {
        self.store.project("default").unwrap()
    }

    /// The content of an image, with the store to fall back to or without.
    pub(crate) fn content(&self, with_store: bool, options: Options) -> Content {
        let store = with_store.then(|| self.store.clone());
        let access = Access {
            project: "default".to_owned(),
            grant: Signed::default(),
            manifest_digest: "sha256:test".to_owned(),
        };
        Mesh::new(self.bus.clone(), store, NodeEvents::new(self.bus.events().clone(), "node"), options)
            .content(access)
            .unwrap()
    }

    pub(crate) async fn keep(&self, plain: &[u8]) -> ChunkRef {
        let stored = Bytes::from(store::verify::seal_index(plain).unwrap());
        let digest = Digest::of(plain);
        self.project().put_chunk(digest, stored.clone()).await.unwrap();
        ChunkRef { digest, plain_len: plain.len() as u32, stored_len: stored.len() as u32 }
    }

    /// `small` shared chunks of ten objects each, and one object of `large` chunks.
    pub(crate) async fn sample(&self, seed: u8, small: u32, large: u32) -> Sample {
        let mut map = Map::default();
        let mut bytes = HashMap::new();
        for chunk in 0..small {
            let first_chunk = map.chunks.len() as u32;
            let mut plain = Vec::new();
            for index in 0..10 {
                let object = noise([seed, chunk as u8, index], 600 + usize::from(index) * 700);
                let (digest, len) = (Digest::of(&object), object.len() as u64);
                let offset = plain.len() as u32;
                map.objects.push(ObjectPlace { digest, len, first_chunk, chunk_count: 1, offset });
                plain.extend_from_slice(&object);
                bytes.insert(digest, object);
            }
            map.chunks.push(self.keep(&plain).await);
        }
        let first_chunk = map.chunks.len() as u32;
        let mut whole = Vec::new();
        for chunk in 0..large {
            let plain = noise([seed, 255, chunk as u8], 100_000 + chunk as usize * 1000);
            map.chunks.push(self.keep(&plain).await);
            whole.extend(plain);
        }
        if large > 0 {
            let (digest, len) = (Digest::of(&whole), whole.len() as u64);
            map.objects.push(ObjectPlace { digest, len, first_chunk, chunk_count: large, offset: 0 });
            bytes.insert(digest, whole);
        }
        map.objects.sort_by_key(|place| place.digest);
        Sample { map: Arc::new(map), bytes }
    }
}

impl Sample {
    pub(crate) fn profile(&self, positions: impl IntoIterator<Item = usize>) -> Profile {
        Profile { starts: 1, chunks: positions.into_iter().map(|at| self.map.chunks[at].digest).collect() }
    }

    /// The first object of the chunk at a position.
    pub(crate) fn object_at(&self, position: u32) -> Digest {
        self.map.objects.iter().find(|place| place.first_chunk == position).unwrap().digest
    }
}

impl TestReplica {
    pub(crate) async fn start(store: ProjectStore) -> TestReplica {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let replica = TestReplica {
            address: listener.local_addr().unwrap(),
            store,
            faults: watch::Sender::default(),
            streams: watch::Sender::default(),
            sent: Arc::default(),
        };
        let service = ContentServer::new(replica.clone());
        let serving = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serving);
        replica
    }

    pub(crate) fn set(&self, faults: Faults) {
        self.faults.send_replace(faults);
    }

    /// What was sent so far, in order.
    pub(crate) fn sent(&self) -> Vec<Sent> {
        self.sent.lock().unwrap().clone()
    }

    /// Waits until so many chunk streams were asked for.
    pub(crate) async fn asked(&self, streams: usize) {
        self.streams.subscribe().wait_for(|asked| *asked >= streams).await.unwrap();
    }

    async fn frames(self, index: u32, digest: Digest, priority: Priority) -> Vec<Result<ChunkFrame, Status>> {
        let mut faults = self.faults.subscribe();
        let behaviour = faults.wait_for(|faults| faults.hold != Some(priority)).await.unwrap().clone();
        if behaviour.stall.contains(&digest) {
            std::future::pending::<()>().await;
        }
        if behaviour.cut.contains(&digest) {
            return vec![Err(Status::unavailable("cut"))];
        }
        self.sent.lock().unwrap().push((digest, priority));
        let frame = ChunkFrame { index, ..ChunkFrame::default() };
        let Ok(stored) = self.store.chunk(digest).await else {
            return vec![Ok(ChunkFrame { failure: Failure::Missing.into(), ..frame })];
        };
        let mut stored = stored.to_vec();
        if behaviour.corrupt.contains(&digest) {
            let middle = stored.len() / 2;
            stored[middle] ^= 1;
        }
        let (first, second) = stored.split_at(stored.len() / 2);
        let first = ChunkFrame { data: Bytes::copy_from_slice(first), ..frame.clone() };
        let second = ChunkFrame { data: Bytes::copy_from_slice(second), last: true, ..frame };
        vec![Ok(first), Ok(second)]
    }

    fn check(&self, metadata: &tonic::metadata::MetadataMap) -> Result<(), Status> {
        let faults = self.faults.borrow();
        if faults.refuse {
            return Err(Status::unavailable("refused"));
        }
        let grant = metadata.get_bin(GRANT_METADATA).and_then(|grant| grant.to_bytes().ok());
        if faults.deny || grant.is_none() {
            return Err(Status::unauthenticated("no grant"));
        }
        let good = faults.only.as_ref().map(Message::encode_to_vec);
        if good.is_some_and(|good| grant.is_some_and(|grant| grant != good)) {
            return Err(Status::unauthenticated("the grant expired"));
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl ContentService for TestReplica {
    type GetIndexStream = Pin<Box<dyn Stream<Item = Result<IndexFrame, Status>> + Send>>;
    type GetChunksStream = Pin<Box<dyn Stream<Item = Result<ChunkFrame, Status>> + Send>>;

    async fn get_index(
        &self,
        request: Request<IndexRequest>,
    ) -> Result<Response<Self::GetIndexStream>, Status> {
        self.check(request.metadata())?;
        let digest = Digest::try_from(&request.get_ref().digest[..]).unwrap();
        let index = if request.get_ref().kind == 0 { Index::Tree } else { Index::Map };
        let mut stored = self.store.index(index, digest).await?.to_vec();
        if self.faults.borrow().corrupt.contains(&digest) {
            stored[5] ^= 1;
        }
        let frames: Vec<_> = stored.chunks(1000).map(|data| Ok(IndexFrame { data: data.to_vec() })).collect();
        Ok(Response::new(Box::pin(stream::iter(frames))))
    }

    async fn get_chunks(
        &self,
        request: Request<ChunksRequest>,
    ) -> Result<Response<Self::GetChunksStream>, Status> {
        self.check(request.metadata())?;
        self.streams.send_modify(|asked| *asked += 1);
        let request = request.into_inner();
        let priority = request.priority();
        let replica = self.clone();
        let frames = stream::iter(request.digests.into_iter().enumerate()).then(move |(index, digest)| {
            replica.clone().frames(index as u32, Digest::try_from(&digest[..]).unwrap(), priority)
        });
        Ok(Response::new(Box::pin(frames.flat_map(stream::iter))))
    }
}

/// Patience for tests: short where a failure is expected, and never what makes a test pass.
pub(crate) fn impatient() -> Options {
    Options {
        stall_timeout: Duration::from_millis(300),
        demand_patience: Duration::from_millis(700),
        indexes_at_once: 1,
    }
}

/// Bytes that do not compress, different for every seed.
pub(crate) fn noise(seed: [u8; 3], len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed).finalize_xof().fill(&mut bytes);
    bytes
}
