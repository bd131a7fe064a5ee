//! `node.v1`: what the command line and the container runtime ask of this node, on its unix socket.
//!
//! A thin door: takes the request apart, calls [`Images`], answers. Whoever may open the socket may do
//! everything here; its mode is 0600.

mod listen;

use std::pin::Pin;
use std::time::Duration;

use bus::EventStream;
use futures::{Stream, StreamExt};
use proto::mount_event::Event;
use proto::node_server::{Node, NodeServer};
use proto::{
    CompleteRequest, DownloadProgress, EventsRequest, EvictReply, EvictRequest, MountEvent, MountRequest,
    StatusReply, StatusRequest, UnmountReply, UnmountRequest,
};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::ending::Ending;
use crate::images::Images;
pub use listen::InUse;
pub(crate) use listen::{listen, listen_again, lock};

/// Events of a mount that wait for a slow listener; older news of an import is no loss.
const EVENTS_QUEUED: usize = 16;
/// How often progress is told while somebody waits for an image to be complete.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves until `shutdown`; calls that are being answered then have a moment to finish.
pub(crate) async fn serve(
    listener: UnixListener,
    images: Images,
    ending: &Ending,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let door = Door { images, shutdown: shutdown.clone() };
    ending
        .server()
        .add_service(NodeServer::new(door))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.cancelled_owned())
        .await
}

#[derive(Debug)]
struct Door {
    images: Images,
    shutdown: CancellationToken,
}

#[tonic::async_trait]
impl Node for Door {
    type MountStream = Answers<MountEvent>;
    type EventsStream = Answers<proto::Event>;
    type CompleteStream = Answers<DownloadProgress>;

    async fn mount(&self, request: Request<MountRequest>) -> Result<Response<Self::MountStream>, Status> {
        let (events, answers) = mpsc::channel(EVENTS_QUEUED);
        let (images, shutdown) = (self.images.clone(), self.shutdown.clone());
        let request = request.into_inner();
        tokio::spawn(async move {
            let listening = events.clone();
            let mount = images.mount(request, |ticket| {
                // A listener that is that slow gets the next one.
                listening.try_send(Ok(event(Event::Importing(ticket)))).ok();
            });
            // Nobody listens any more: nothing is mounted behind their back.
            let outcome = tokio::select! {
                outcome = mount => outcome,
                () = events.closed() => return,
                () = shutdown.cancelled() => Err(Status::unavailable("the frontend is ending")),
            };
            events.send(outcome.map(|mounted| event(Event::Mounted(mounted)))).await.ok();
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn unmount(&self, request: Request<UnmountRequest>) -> Result<Response<UnmountReply>, Status> {
        self.images.unmount(&request.into_inner().target).await?;
        Ok(Response::new(UnmountReply {}))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(self.images.status(request.into_inner().reads).await))
    }

    async fn complete(
        &self,
        request: Request<CompleteRequest>,
    ) -> Result<Response<Self::CompleteStream>, Status> {
        let manifest = self.images.named(&request.into_inner().manifest_digest)?;
        let (updates, answers) = mpsc::channel(1);
        let (images, shutdown) = (self.images.clone(), self.shutdown.clone());
        tokio::spawn(async move {
            let mut ticks = interval(PROGRESS_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
                let update = images.progress_of(&manifest);
                let last = update.as_ref().map_or(true, |progress| progress.complete);
                if updates.send(update).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let events = self.images.events().all();
        let shutdown = self.shutdown.clone().cancelled_owned();
        let told: EventStream = match request.into_inner().follow {
            true => Box::pin(events.recent_and_next().take_until(shutdown)),
            false => Box::pin(futures::stream::iter(events.recent())),
        };
        Ok(Response::new(Box::pin(told.map(Ok))))
    }

    async fn evict(&self, request: Request<EvictRequest>) -> Result<Response<EvictReply>, Status> {
        let manifest = self.images.named(&request.into_inner().image)?;
        let freed_bytes = self.images.evict(&manifest).await?;
        Ok(Response::new(EvictReply { freed_bytes }))
    }
}

fn event(event: Event) -> MountEvent {
    MountEvent { event: Some(event) }
}
