//! A cache on a store of its own, and a client with grants.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bus::Bus;
use bytes::Bytes;
use bytesize::ByteSize;
use cache::{Cache, Config, Disk};
use ed25519_dalek::SigningKey;
use image::Digest;
use prost::Message;
use proto::chunk_frame::Failure;
use proto::chunks_request::Priority;
use proto::content_client::ContentClient;
use proto::gatekeeper::GRANT_METADATA;
use proto::index_request::Kind;
use proto::signed::{Domain, sign};
use proto::{ChunkFrame, ChunksRequest, Grant, IndexRequest, Signed};
use store::{ProjectStore, Store};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

/// Long enough for a busy machine; no test waits for it when all is well.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) struct Setup {
    pub(crate) bus: Bus,
    pub(crate) cache: Cache,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
    store: Store,
    _folder: tempfile::TempDir,
}

/// Grants of a fetcher's key, and such as must be refused.
pub(crate) struct Grants;

impl Setup {
    pub(crate) async fn start() -> Setup {
        Setup::start_on(None).await
    }

    pub(crate) async fn start_on(disk: Option<&Path>) -> Setup {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap(), &HashMap::new()).unwrap();
        let (bus, tasks, shutdown) = (Bus::in_process(), TaskTracker::new(), CancellationToken::new());
        let disk = disk.map(|path| Disk { path: path.to_owned(), capacity: ByteSize::mib(256) });
        let config = Config { memory: ByteSize::mib(64), disk, ..Config::default() };
        let trusted = vec![key(1).verifying_key()].into();
        let cache = Cache::start(config, store.clone(), bus.clone(), trusted, &tasks, shutdown.clone())
            .await
            .unwrap();
        Setup { bus, cache, tasks, shutdown, store, _folder: folder }
    }

    pub(crate) fn project(&self) -> ProjectStore {
        self.store.project("").unwrap()
    }

    pub(crate) async fn client(&self) -> ContentClient<Channel> {
        ContentClient::connect(self.cache.endpoint().to_owned()).await.unwrap()
    }

    pub(crate) async fn request(
        &self,
        chunks: &[(Digest, Bytes)],
        priority: Priority,
    ) -> Result<Streaming<ChunkFrame>, Status> {
        let request = ChunksRequest {
            digests: chunks.iter().map(|(digest, _)| digest.as_bytes().to_vec()).collect(),
            priority: priority.into(),
            ..ChunksRequest::default()
        };
        let request = with_grant(request, Some(&Grants::valid()));
        Ok(self.client().await.get_chunks(request).await?.into_inner())
    }

    /// The chunks as they arrive: checks that frames come in order and are whole.
    pub(crate) async fn chunks(
        &self,
        chunks: &[(Digest, Bytes)],
        priority: Priority,
    ) -> Result<Vec<Result<Bytes, Failure>>, Status> {
        let mut stream = self.request(chunks, priority).await?;
        let (mut received, mut partial) = (Vec::new(), Vec::new());
        while let Some(frame) = stream.message().await? {
            assert_eq!(frame.index as usize, received.len());
            partial.extend_from_slice(&frame.data);
            match frame.failure() {
                Failure::None if frame.last => received.push(Ok(std::mem::take(&mut partial).into())),
                Failure::None => {}
                failure => received.push(Err(failure)),
            }
        }
        assert_eq!(received.len(), chunks.len());
        Ok(received)
    }

    pub(crate) async fn index(&self, kind: Kind, digest: Digest) -> Result<Bytes, Status> {
        let request =
            IndexRequest { kind: kind.into(), digest: digest.as_bytes().to_vec(), ..IndexRequest::default() };
        let request = with_grant(request, Some(&Grants::valid()));
        let mut stream = self.client().await.get_index(request).await?.into_inner();
        let mut received = Vec::new();
        while let Some(frame) = stream.message().await? {
            received.extend_from_slice(&frame.data);
        }
        Ok(received.into())
    }
}

impl Grants {
    pub(crate) fn valid() -> Signed {
        signed(1, Grant { manifest_digest: manifest(1), ..grant() })
    }

    pub(crate) fn expired() -> Signed {
        signed(1, Grant { expires_unix: 1, ..grant() })
    }

    pub(crate) fn forged() -> Signed {
        signed(2, grant())
    }

    pub(crate) fn of_project(project: &str) -> Signed {
        signed(1, Grant { project: project.to_owned(), ..grant() })
    }
}

fn grant() -> Grant {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    Grant { expires_unix: now + 3600, ..Grant::default() }
}

fn signed(seed: u8, grant: Grant) -> Signed {
    sign(&key(seed), Domain::Grant, grant.encode_to_vec())
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

/// The public key of whoever signs valid grants, as a configuration has it.
pub(crate) fn trusted_key() -> String {
    hex::encode(key(1).verifying_key().as_bytes())
}

pub(crate) fn manifest(seed: u8) -> String {
    format!("sha256:{}", format!("{seed:02x}").repeat(32))
}

pub(crate) fn with_grant<T>(message: T, grant: Option<&Signed>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(grant) = grant {
        let value = MetadataValue::from_bytes(&grant.encode_to_vec());
        request.metadata_mut().insert_bin(GRANT_METADATA, value);
    }
    request
}

/// A chunk of `len` bytes that do not compress: its name and its stored bytes.
pub(crate) fn chunk(seed: u8, len: usize) -> (Digest, Bytes) {
    let mut plain = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut plain);
    (Digest::of(&plain), zstd::bulk::compress(&plain, 1).unwrap().into())
}

pub(crate) async fn deadline<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("nothing happened")
}
