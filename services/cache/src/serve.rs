//! `content.v1`: streams of frames, in the order asked for.
//!
//! A stream reads ahead by a bounded number of chunks, each in a task of its own, so that a client
//! that reads slowly holds up nobody else. When the cache ends, streams end at once with
//! `UNAVAILABLE`: clients go on with another replica.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use allowance::Allowances;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use image::Digest;
use image::limits::CHUNK_STORED_MAX;
use names::Project;
use proto::chunk_frame::Failure;
use proto::chunks_request::Priority;
use proto::content_server::{Content as ContentService, ContentServer};
use proto::gatekeeper::Gatekeeper;
use proto::index_request::Kind as IndexKind;
use proto::refusal;
use proto::{ChunkFrame, ChunksRequest, Grant, IndexFrame, IndexRequest, Refusal};
use store::Index;
use tls::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};

use crate::content::{Content, Reader, Unserved};
use crate::costs::Costs;
use crate::meters;
use crate::proof::Proof;
use crate::repair::Image;
use crate::scope::Scopes;
use crate::tiers::Kind;

/// As the table of methods names them.
const GET_INDEX: &str = "/sluice.v1.Content/GetIndex";
const GET_CHUNKS: &str = "/sluice.v1.Content/GetChunks";
/// A frame's data; larger chunks come in several, so that streams of one connection take turns.
const FRAME_MAX: usize = 1024 * 1024;
/// Chunks of one request: at 32 bytes each half a megabyte, and more than a large image has.
const DIGESTS_MAX: usize = 16 * 1024;
/// A request with that many digests and some room.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;
const FRAME_BYTES_MAX: usize = FRAME_MAX + 1024;
/// Chunks that a stream reads before they are sent; a download has time.
const READ_AHEAD: usize = 16;
const READ_AHEAD_BACKGROUND: usize = 8;
/// Streams at a time, in the process and in one connection: with their read-ahead they bound the
/// memory that slow clients can take.
const STREAMS_MAX: usize = 512;
const CONNECTION_STREAMS_MAX: u32 = 128;
/// A node that is gone is noticed after the sum of these.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

const _: () = assert!(DIGESTS_MAX * 40 < REQUEST_BYTES_MAX && CHUNK_STORED_MAX < 4 * FRAME_MAX);

type Frames<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Who may read, what, and what it costs.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) gatekeeper: Gatekeeper,
    pub(crate) scopes: Scopes,
    pub(crate) proof: Proof,
    pub(crate) allowances: Allowances,
}

/// Serves what `incoming` brings until `shutdown`.
pub(crate) async fn serve(
    incoming: Incoming,
    content: Arc<Content>,
    door: Door,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let streams = Arc::new(Semaphore::new(STREAMS_MAX));
    let service = Service { content, door, streams, shutdown: shutdown.clone() };
    let service = ContentServer::new(service)
        .max_decoding_message_size(REQUEST_BYTES_MAX)
        .max_encoding_message_size(FRAME_BYTES_MAX);
    Server::builder()
        .max_concurrent_streams(CONNECTION_STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned())
        .await
}

struct Service {
    content: Arc<Content>,
    door: Door,
    streams: Arc<Semaphore>,
    shutdown: CancellationToken,
}

#[tonic::async_trait]
impl ContentService for Service {
    type GetIndexStream = Frames<IndexFrame>;
    type GetChunksStream = Frames<ChunkFrame>;

    async fn get_index(
        &self,
        request: Request<IndexRequest>,
    ) -> Result<Response<Frames<IndexFrame>>, Status> {
        let project = refusal::project(&request.get_ref().project)?;
        let grant = self.admit(request.metadata(), &project)?;
        self.door.proof.check(GET_INDEX, &request, &grant)?;
        let place = self.place()?;
        let asked = request.into_inner();
        let index = match asked.kind() {
            IndexKind::Tree => Index::Tree,
            IndexKind::Map => Index::Map,
        };
        let digest = digest(&asked.digest)?;
        let reader = self.reader(&project, &grant, "", Priority::Demand)?;
        self.door.scopes.check_index(&reader, &grant, index, digest).await?;
        let costs = Costs::of(&self.door.allowances, &project, Priority::Demand);
        costs.request().await?;
        let stored = self.content.get(&reader, Kind::Index(index), digest).await?;
        costs.sending(stored.len()).await?;
        let frames = split(stored).map(|data| Ok(IndexFrame { data: data.to_vec() }));
        Ok(Response::new(place.hold(stream::iter(frames))))
    }

    async fn get_chunks(
        &self,
        request: Request<ChunksRequest>,
    ) -> Result<Response<Frames<ChunkFrame>>, Status> {
        let begun = Instant::now();
        let project = refusal::project(&request.get_ref().project)?;
        let grant = self.admit(request.metadata(), &project)?;
        self.door.proof.check(GET_CHUNKS, &request, &grant)?;
        let place = self.place()?;
        let asked = request.into_inner();
        let reader = self.reader(&project, &grant, &asked.manifest_digest, asked.priority())?;
        if asked.digests.len() > DIGESTS_MAX {
            let refusal = format!("{} chunks in one request, at most {DIGESTS_MAX}", asked.digests.len());
            return Err(Status::invalid_argument(refusal));
        }
        let digests: Vec<Digest> =
            asked.digests.iter().map(|bytes| digest(bytes)).collect::<Result<_, _>>()?;
        self.door.scopes.check_chunks(&self.content, &reader, &grant, &digests).await?;
        metrics::histogram!(meters::CHECK_SECONDS).record(begun.elapsed());
        let costs = Costs::of(&self.door.allowances, &project, asked.priority());
        Ok(Response::new(place.hold(chunks(self.content.clone(), reader, costs, digests))))
    }
}

impl Service {
    /// The grant under which the project may be read; counts who has none.
    fn admit(&self, metadata: &MetadataMap, project: &Project) -> Result<Grant, Status> {
        self.door.gatekeeper.admit(metadata, project).inspect_err(|status| {
            let reason = if status.code() == Code::PermissionDenied { "other-project" } else { "no-grant" };
            metrics::counter!(meters::REFUSED, "reason" => reason).increment(1);
        })
    }

    fn place(&self) -> Result<Place, Status> {
        let permit = self.streams.clone().try_acquire_owned();
        let permit = permit.map_err(|_| Refusal::Busy.status("the cache has too many streams"))?;
        metrics::gauge!(meters::STREAMS).increment(1);
        Ok(Place { _permit: permit, shutdown: self.shutdown.clone() })
    }

    fn reader(
        &self,
        project: &Project,
        grant: &Grant,
        manifest: &str,
        class: Priority,
    ) -> Result<Reader, Status> {
        let granted = &grant.manifest_digest;
        if granted.is_empty() || !(manifest.is_empty() || granted == manifest) {
            metrics::counter!(meters::REFUSED, "reason" => "other-image").increment(1);
            return Err(Refusal::Denied.status(format!("the grant is for image {granted}, not {manifest}")));
        }
        let image = Image { project: project.to_string(), manifest: granted.clone() };
        Ok(Reader { project: self.content.project(project.as_str())?, image, class })
    }
}

/// One of the streams that may be served at a time.
struct Place {
    _permit: OwnedSemaphorePermit,
    shutdown: CancellationToken,
}

impl Place {
    /// `frames` until the cache ends; the place is free when the stream is gone.
    fn hold<T: Send + 'static>(
        self,
        frames: impl Stream<Item = Result<T, Status>> + Send + 'static,
    ) -> Frames<T> {
        let state = Some((self, Box::pin(frames)));
        Box::pin(stream::unfold(state, |state| async {
            let (place, mut frames) = state?;
            tokio::select! {
                biased;
                () = place.shutdown.cancelled() => {
                    Some((Err(Status::unavailable("the cache is shutting down")), None))
                }
                frame = frames.next() => match frame? {
                    Ok(frame) => Some((Ok(frame), Some((place, frames)))),
                    Err(status) => Some((Err(status), None)),
                },
            }
        }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        metrics::gauge!(meters::STREAMS).decrement(1);
    }
}

/// Chunks until the last one, or until one is refused: for want of quota, as all that follow would be.
fn chunks(
    content: Arc<Content>,
    reader: Reader,
    costs: Costs,
    digests: Vec<Digest>,
) -> impl Stream<Item = Result<ChunkFrame, Status>> {
    let ahead = match reader.class {
        Priority::Demand | Priority::Prefetch => READ_AHEAD,
        Priority::Background => READ_AHEAD_BACKGROUND,
    };
    let (reader, costs) = (Arc::new(reader), Arc::new(costs));
    let get = move |digest| {
        let (content, reader, costs) = (content.clone(), reader.clone(), costs.clone());
        let get = async move {
            costs.request().await?;
            let outcome = content.get(&reader, Kind::Chunk, digest).await;
            if let Ok(stored) = &outcome {
                costs.sending(stored.len()).await?;
            }
            Ok(outcome)
        };
        AbortOnDropHandle::new(tokio::spawn(get))
    };
    stream::iter((0..).zip(digests))
        .map(move |(index, digest)| {
            let outcome = get(digest);
            async move { (index, outcome.await) }
        })
        .buffered(ahead)
        .flat_map(|(index, outcome)| {
            let outcome = outcome.unwrap_or_else(|error| Ok(Err(Unserved::Unavailable(error.to_string()))));
            let frames = match outcome {
                Ok(outcome) => chunk_frames(index, outcome).into_iter().map(Ok).collect(),
                Err(refused) => vec![Err(refused)],
            };
            stream::iter(frames)
        })
}

fn chunk_frames(index: u32, outcome: Result<Bytes, Unserved>) -> Vec<ChunkFrame> {
    match outcome {
        Ok(stored) => {
            let mut frames: Vec<ChunkFrame> =
                split(stored).map(|data| ChunkFrame { index, data, ..ChunkFrame::default() }).collect();
            if let Some(last) = frames.last_mut() {
                last.last = true;
            }
            frames
        }
        Err(unserved) => {
            let failure = Failure::from(unserved).into();
            vec![ChunkFrame { index, last: true, failure, ..ChunkFrame::default() }]
        }
    }
}

/// `stored` in frames, without a copy; one empty frame when it is empty.
fn split(mut stored: Bytes) -> impl Iterator<Item = Bytes> {
    let frames = stored.len().div_ceil(FRAME_MAX).max(1);
    (0..frames).map(move |_| stored.split_to(stored.len().min(FRAME_MAX)))
}

fn digest(bytes: &[u8]) -> Result<Digest, Status> {
    Digest::try_from(bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}

impl From<Unserved> for Failure {
    fn from(unserved: Unserved) -> Failure {
        match unserved {
            Unserved::Missing(_) => Failure::Missing,
            Unserved::Corrupt(_) => Failure::Corrupt,
            Unserved::Unavailable(_) => Failure::Unavailable,
        }
    }
}

impl From<Unserved> for Status {
    fn from(unserved: Unserved) -> Status {
        match unserved {
            Unserved::Missing(reason) => Status::not_found(reason),
            Unserved::Corrupt(reason) => Status::data_loss(reason),
            Unserved::Unavailable(reason) => Status::unavailable(reason),
        }
    }
}
