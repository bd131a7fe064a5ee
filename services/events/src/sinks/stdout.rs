//! Standard output: one JSON object a line.

use std::io::Write as _;

use futures::future::BoxFuture;
use proto::Event;

use super::{Outcome, Sink, json};

const BATCH_MAX: usize = 64;

pub(super) struct Stdout;

impl Sink for Stdout {
    fn batch_max(&self) -> usize {
        BATCH_MAX
    }

    fn write<'a>(&'a mut self, events: &'a [Event]) -> BoxFuture<'a, Vec<Outcome>> {
        let mut lines: Vec<u8> = Vec::new();
        for event in events {
            lines.extend(json(event));
            lines.push(b'\n');
        }
        Box::pin(async move {
            // Whoever reads it may be slow.
            let write = tokio::task::spawn_blocking(move || {
                let mut out = std::io::stdout().lock();
                out.write_all(&lines).and_then(|()| out.flush())
            });
            let outcome = match write.await {
                Ok(Ok(())) => Outcome::Done,
                Ok(Err(error)) => Outcome::again(format!("standard output: {error}")),
                Err(error) => Outcome::again(format!("standard output: {error}")),
            };
            vec![outcome; events.len()]
        })
    }
}
