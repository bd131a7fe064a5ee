//! Chunks that came, and chunks that did not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::image::Digest;
use ::image::record::ChunkRef;

use super::{Present, Scheduler, Waiter};
use crate::content::{Class, FetchError, Plain};
use crate::downloads::flights::Flight;
use crate::downloads::image::{Arrival, Image};
use crate::downloads::request::Response;
use crate::metrics;

/// After a failed background request or write: the first wait, and the longest.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// For how long a quota that is used up stops the lower classes at most: then it is asked again, as a limit may be raised.
const SHORT_MAX: Duration = Duration::from_secs(5 * 60);

impl Scheduler {
    pub(super) fn responded(&mut self, response: Response) {
        let Response { image, class, fetched } = response;
        let chunk = fetched.chunk;
        self.flights.ended(class, &chunk);
        if class == Class::Demand {
            self.last_demand = Some(Instant::now());
        }
        match fetched.result {
            Ok(plain) => self.landed(&image, class, chunk, plain),
            Err(error) => self.failed(&image, class, chunk, error),
        }
    }

    fn landed(&mut self, image: &Image, class: Class, chunk: ChunkRef, plain: Plain) {
        let flight = self.flights.land(&chunk.digest);
        let waiters = flight.as_ref().map_or(0, |flight| flight.waiters.len());
        let arrived = Instant::now();
        let asked = flight.as_ref().map_or(arrived, |flight| flight.asked);
        metrics::chunk_received(class, plain.stored_len, (arrived - asked).as_secs_f64());
        self.shared.memory().insert(chunk.digest, plain.bytes.clone());
        for waiter in flight.into_iter().flat_map(|flight| flight.waiters) {
            // A reader may have been killed.
            let _ = waiter.send(Ok(plain.bytes.clone()));
        }
        let mut position = None;
        for present in self.images.iter_mut().filter(|present| present.image.id == image.id) {
            present.failures = 0;
            position = present.plan.positions_of(&chunk.digest).first().copied();
        }
        if let Some(position) = position {
            let waiters = waiters as u32;
            image.note_arrival(Arrival {
                asked,
                position,
                stored_len: plain.stored_len,
                class,
                waiters,
                arrived,
            });
        }
        if class == Class::Demand && waiters == 0 && position.is_some_and(|at| !image.was_touched(at)) {
            self.hold(chunk.digest, plain.bytes);
        } else {
            self.write(chunk.digest, plain.bytes);
        }
    }

    fn failed(&mut self, image: &Arc<Image>, class: Class, chunk: ChunkRef, error: FetchError) {
        tracing::debug!(image = %image.id, chunk = %chunk.digest, ?class, %error, "a chunk did not come");
        if let Some(retry) = error.short_for() {
            // Of other images too: a quota is a project's.
            let until = Instant::now() + retry.min(SHORT_MAX);
            self.short_until = Some(self.short_until.map_or(until, |short| short.max(until)));
            self.expect_again(image, class, &chunk.digest);
        }
        if class != Class::Demand
            && error.short_for().is_none()
            && let Some(present) = self.images.iter_mut().find(|present| Arc::ptr_eq(&present.image, image))
        {
            present.postpone();
        }
        let Some(Flight { waiters, .. }) = self.flights.fail(class, &chunk.digest) else { return };
        let cancelled = matches!(error, FetchError::Cancelled(_));
        if cancelled || class != Class::Demand {
            // A read that joined a lower class, or an image that is gone, has all its patience left.
            self.ask_elsewhere(chunk, waiters, error);
        } else {
            for waiter in waiters {
                let _ = waiter.send(Err(error.clone()));
            }
        }
    }

    /// What a prefetch did not get for want of quota is still what the start reads next.
    fn expect_again(&mut self, image: &Arc<Image>, class: Class, chunk: &Digest) {
        let present = self.images.iter_mut().find(|present| Arc::ptr_eq(&present.image, image));
        if let Some(present) = present.filter(|_| class == Class::Prefetch) {
            present.plan.prefetch_again(chunk);
        }
    }

    /// Asks for a chunk through any present image that has it; without one the waiters get `error`.
    pub(super) fn ask_elsewhere(&mut self, chunk: ChunkRef, waiters: Vec<Waiter>, error: FetchError) {
        if waiters.is_empty() {
            return;
        }
        let other =
            self.images.iter().rev().find(|present| !present.plan.positions_of(&chunk.digest).is_empty());
        match other.map(|present| present.image.clone()) {
            Some(image) => self.queue(image, chunk, waiters),
            None => waiters.into_iter().for_each(|waiter| {
                let _ = waiter.send(Err(error.clone()));
            }),
        }
    }

    /// A present image that has the chunk.
    pub(super) fn image_with(&self, chunk: &Digest) -> Option<Arc<Image>> {
        let has = |present: &&Present| !present.plan.positions_of(chunk).is_empty();
        self.images.iter().rev().find(has).map(|present| present.image.clone())
    }
}

impl Present {
    /// Something failed for this image: its background rests.
    pub(super) fn postpone(&mut self) {
        if self.retry.is_some_and(|retry| retry > Instant::now()) {
            // The other chunks of the same request failed for the same reason.
            return;
        }
        let wait = RETRY_FIRST.saturating_mul(1 << self.failures.min(16)).min(RETRY_MAX);
        self.failures += 1;
        self.retry = Some(Instant::now() + wait);
    }
}
