//! One request of the scheduler: a task that reports every chunk's end, also when it is cancelled.

use std::collections::HashMap;
use std::sync::Arc;

use image::record::ChunkRef;
use tokio::sync::mpsc;

use super::image::Image;
use super::scheduler::Event;
use crate::content::{Class, FetchError, Fetched, Gate};

#[derive(Debug)]
pub(super) struct Request {
    pub(super) class: Class,
    pub(super) image: Arc<Image>,
    /// Each once.
    pub(super) chunks: Vec<ChunkRef>,
    pub(super) gate: Gate,
}

/// The end of one chunk of a request.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) image: Arc<Image>,
    pub(super) class: Class,
    pub(super) fetched: Fetched,
}

impl Request {
    pub(super) async fn run(self, events: mpsc::Sender<Event>) {
        let Request { class, image, chunks, gate } = self;
        let mut left: HashMap<_, ChunkRef> = chunks.iter().map(|chunk| (chunk.digest, *chunk)).collect();
        let report = async |fetched| {
            let response = Response { image: image.clone(), class, fetched };
            // The scheduler is gone only when the node shuts down.
            let _ = events.send(Event::Responded(response)).await;
        };
        let (out, mut arrivals) = mpsc::channel(1);
        let mut fetching = Box::pin(image.content.fetch(class, chunks, gate, out));
        let mut fetched_all = false;
        loop {
            tokio::select! {
                biased;
                () = image.removed.cancelled() => break,
                arrival = arrivals.recv() => match arrival {
                    Some(fetched) => {
                        left.remove(&fetched.chunk.digest);
                        report(fetched).await;
                    }
                    None => break,
                },
                () = &mut fetching, if !fetched_all => fetched_all = true,
            }
        }
        for chunk in left.into_values() {
            report(Fetched { chunk, result: Err(FetchError::Cancelled(chunk.digest)) }).await;
        }
    }
}
