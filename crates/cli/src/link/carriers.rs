//! The threads that links run on.

use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::processor;

/// Kept short: the kernel knows threads by fifteen characters.
const NAME: &str = "simulated-link";
/// One for each direction of a connection that is busy.
const THREADS: usize = 2;

/// A runtime of their own. Dropped, it ends the links.
#[derive(Debug)]
pub struct Carriers {
    handle: Handle,
    /// Always there, until dropped.
    runtime: Option<Runtime>,
}

impl Carriers {
    pub fn new() -> anyhow::Result<Carriers> {
        let runtime =
            Builder::new_multi_thread().worker_threads(THREADS).thread_name(NAME).enable_all().build();
        let runtime = runtime.context("start the threads of simulated links")?;
        Ok(Carriers { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}

/// What the threads of all links of this process have taken of the processor, as long as they live.
pub fn processor_time() -> Duration {
    processor::of_threads(NAME)
}

impl Drop for Carriers {
    fn drop(&mut self) {
        // Without waiting: a runtime may be dropped inside another one only so.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
