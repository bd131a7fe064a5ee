//! Room in memory for the tables of images that are incomplete: their maps, and what is known of each object.
//!
//! Tables are a part of the node's memory budget. A new image waits until others are complete, or is refused, and
//! then pulled without us: that costs time, and an image too many would cost the process. What the node has already is never
//! refused, since containers stand on it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::Refusal;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tonic::Status;

use crate::metrics;

/// The part of a memory budget that tables may take.
const PART: u64 = 8;
/// Bytes of tables for each byte of an encoded map: an object has 36 bytes there, and 60 here.
const GROWTH: u64 = 2;
/// How long a new image waits for others to be complete.
const WAIT: Duration = Duration::from_secs(20);
const KIB: u64 = 1024;

#[derive(Debug)]
pub(super) struct Room {
    /// In KiB.
    free: Arc<Semaphore>,
    all: u32,
    taken: Mutex<HashMap<String, OwnedSemaphorePermit>>,
}

/// Whether an image may be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    New,
    Kept,
}

impl Room {
    pub(super) fn within(budget: u64) -> Room {
        let all =
            u32::try_from(budget / PART / KIB).unwrap_or(u32::MAX).clamp(1, Semaphore::MAX_PERMITS as u32);
        Room { free: Arc::new(Semaphore::new(all as usize)), all, taken: Mutex::default() }
    }

    /// Takes room for an image whose encoded map has `map_len` bytes, until it is given back. One that is larger than all
    /// there is takes all.
    pub(super) async fn take(&self, image: &str, map_len: u64, claim: Claim) -> Result<(), Status> {
        let needed = map_len.saturating_mul(GROWTH).div_ceil(KIB).min(self.all.into()) as u32;
        let free = self.free.clone();
        let permit = match (free.clone().try_acquire_many_owned(needed), claim) {
            (Ok(permit), _) => permit,
            (Err(_), Claim::Kept) => {
                // Another may take some of it between the two: then this one counts for nothing.
                let left = free.available_permits() as u32;
                let Ok(permit) = free.try_acquire_many_owned(left.min(needed)) else { return Ok(()) };
                permit
            }
            (Err(_), Claim::New) => {
                tracing::info!(image, "waiting for memory: other images are incomplete");
                metrics::open_waited();
                match timeout(WAIT, free.acquire_many_owned(needed)).await {
                    Ok(Ok(permit)) => permit,
                    _ => return Err(self.refusal()),
                }
            }
        };
        self.taken().insert(image.to_owned(), permit);
        Ok(())
    }

    pub(super) fn give_back(&self, image: &str) {
        self.taken().remove(image);
    }

    fn refusal(&self) -> Status {
        metrics::open_refused();
        Refusal::NoRoom.status(format!(
            "images that are incomplete take all memory that there is for them ({} KiB): raise frontend.memory_budget, or \
             try again once they are complete",
            self.all
        ))
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<String, OwnedSemaphorePermit>> {
        // Every change is one insertion or removal.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_new_image_waits_and_one_that_is_here_does_not() {
        let room = Room::within(8 * 100 * KIB);
        room.take("one", 30 * KIB, Claim::New).await.unwrap();
        let refused = room.take("two", 30 * KIB, Claim::New).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains("100 KiB"), "{refused}");
        room.take("kept", 30 * KIB, Claim::Kept).await.unwrap();
        assert_eq!(room.free.available_permits(), 0);
        let waiting = room.take("two", 10 * KIB, Claim::New);
        let giving = async {
            tokio::time::sleep(WAIT / 2).await;
            room.give_back("one");
        };
        assert!(tokio::join!(waiting, giving).0.is_ok());
        room.give_back("two");
        room.give_back("kept");
        room.take("larger than all", 1000 * KIB, Claim::New).await.unwrap();
        room.give_back("larger than all");
        assert_eq!(room.free.available_permits(), 100);
    }
}
