//! Answers refresh(): chunks that stand in the store anew, compressed better, are read again, so that nobody is served the old ones.
//!
//! Best effort: what is not refreshed is right all the same, only larger.

use std::sync::Arc;

use bus::{Answer, Answering, Bus};
use image::Digest;
use proto::{RefreshReply, RefreshRequest};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use crate::content::Content;

/// Chunks of one request.
const CHUNKS_MAX: usize = 256;
/// Requests that are at work or wait; more are not taken.
const WAITING_MAX: usize = 8;

pub(crate) async fn answer(
    bus: &Bus,
    content: Arc<Content>,
    tasks: &TaskTracker,
    shutdown: CancellationToken,
) -> anyhow::Result<Answering> {
    let (tasks, room) = (tasks.clone(), Arc::new(Semaphore::new(WAITING_MAX)));
    let turn = Arc::new(Semaphore::new(1));
    let answer = Answer { in_flight: WAITING_MAX, instance: None };
    bus.answer(answer, move |request: RefreshRequest| {
        let taken = chunks(&request).map(|chunks| {
            let Ok(room) = room.clone().try_acquire_owned() else { return };
            let (content, turn, shutdown) = (content.clone(), turn.clone(), shutdown.clone());
            // The asker waits for nobody's reading.
            tasks.spawn(async move {
                let refresh = async {
                    let _turn = turn.acquire().await;
                    content.refresh(&request.project, &chunks).await;
                };
                shutdown.run_until_cancelled(refresh).await;
                drop(room);
            });
        });
        std::future::ready(taken.map(|()| RefreshReply {}))
    })
    .await
}

fn chunks(request: &RefreshRequest) -> Result<Vec<Digest>, Status> {
    if request.chunks.len() > CHUNKS_MAX {
        let count = request.chunks.len();
        return Err(Status::invalid_argument(format!("refresh: {count} chunks, of {CHUNKS_MAX} at most")));
    }
    let digest = |bytes: &Vec<u8>| <[u8; 32]>::try_from(&bytes[..]).map(Digest::from_bytes);
    let digests: Result<_, _> = request.chunks.iter().map(digest).collect();
    digests.map_err(|_| Status::invalid_argument("refresh: a digest has 32 bytes"))
}
