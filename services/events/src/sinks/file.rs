//! A file: one JSON object a line, on the disk before the event counts as written.

use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use proto::Event;

use super::lines::{Line, Lines, Place};
use super::{Outcome, Sink, json};
use crate::config::FileConfig;

/// With the longest events fewer bytes than [`Lines`] reads to find what it has.
const BATCH_MAX: usize = 64;

pub(super) struct File {
    place: Place,
    /// None: to be opened. Only one batch is written at a time.
    open: Arc<Mutex<Option<Lines>>>,
}

impl File {
    pub(super) fn new(config: &FileConfig) -> File {
        let FileConfig { path, size, files } = config;
        let place = Place { path: path.clone(), size: size.as_u64(), files: *files };
        File { place, open: Arc::default() }
    }
}

impl Sink for File {
    fn batch_max(&self) -> usize {
        BATCH_MAX
    }

    fn write<'a>(&'a mut self, events: &'a [Event]) -> BoxFuture<'a, Vec<Outcome>> {
        let line = |event: &Event| {
            let mut text = json(event);
            text.push(b'\n');
            Line { id: event.id.clone(), text }
        };
        let lines: Vec<Line> = events.iter().map(line).collect();
        let (place, open) = (self.place.clone(), self.open.clone());
        Box::pin(async move {
            let path = place.path.display().to_string();
            let write = move || {
                let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
                // After an error it is opened anew: then what is whole in it is known.
                let mut file = match open.take() {
                    Some(file) => file,
                    None => Lines::open(place)?,
                };
                file.append(&lines)?;
                *open = Some(file);
                std::io::Result::Ok(())
            };
            let outcome = match tokio::task::spawn_blocking(write).await {
                Ok(Ok(())) => Outcome::Done,
                Ok(Err(error)) => Outcome::again(format!("writing {path}: {error}")),
                Err(error) => Outcome::again(format!("writing {path}: {error}")),
            };
            vec![outcome; events.len()]
        })
    }
}
