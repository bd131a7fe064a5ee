//! Ends the process when there is nothing left to do: for the node that a command started in passing.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::images::Images;

/// How often the node is looked at, as a part of the time that it must be idle.
const LOOKS: u32 = 10;

/// Cancels `shutdown` once the node was idle for `at_least`.
pub(crate) async fn end_when_idle(images: Images, at_least: Duration, shutdown: CancellationToken) {
    let mut busy = Instant::now();
    while shutdown.run_until_cancelled(sleep(at_least / LOOKS)).await.is_some() {
        if !images.idle() {
            busy = Instant::now();
        }
        if busy.elapsed() >= at_least {
            tracing::info!(?at_least, "nothing was mounted or downloaded: ending");
            shutdown.cancel();
        }
    }
}
