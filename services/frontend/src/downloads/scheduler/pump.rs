//! Decides what is asked for next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::image::Digest;
use ::image::record::ChunkRef;

use super::{Present, Scheduler};
use crate::content::Class;
use crate::downloads::image::Image;
use crate::downloads::request::Request;

/// An image whose reads never pause still completes: this long after its mount a pause of
/// [`SHORT_QUIET`] is enough for its background.
const QUIET_FOR: Duration = Duration::from_secs(60);
const SHORT_QUIET: Duration = Duration::from_millis(200);
/// Objects of an image that did not match their names before its background gives up: fetching again
/// does not mend a map.
const SPOILED_MAX: u32 = 3;
/// The longest sleep when nothing is due.
const IDLE: Duration = Duration::from_secs(60);

impl Scheduler {
    /// Asks for everything that may be asked for now, the highest class first.
    pub(super) fn pump(&mut self, now: Instant) {
        self.wake = now + IDLE;
        self.write_held(now);
        self.start_writers();
        self.queue_overdue(now);
        self.pump_demand(now);
        if self.flights.outstanding(Class::Demand) == 0 && !self.is_short(now) && self.may_write(now) {
            self.pump_prefetch(now);
            if self.options.background {
                self.pump_background(now);
            }
        }
        let lowest = self.flights.lowest_reading();
        self.gate.send_if_modified(|gate| std::mem::replace(gate, lowest) != lowest);
    }

    /// Whether the lower classes rest for want of quota.
    fn is_short(&mut self, now: Instant) -> bool {
        let Some(until) = self.short_until.filter(|until| *until > now) else { return false };
        self.wake = self.wake.min(until);
        true
    }

    /// Reads that joined a lower class which does not deliver ask for themselves.
    fn queue_overdue(&mut self, now: Instant) {
        let (overdue, next) = self.flights.overdue(now);
        self.wake = next.map_or(self.wake, |next| next.min(self.wake));
        for chunk in overdue {
            if let Some(image) = self.image_with(&chunk.digest) {
                self.queue(image, chunk, Vec::new());
            }
        }
    }

    fn pump_demand(&mut self, now: Instant) {
        while self.flights.outstanding_bytes(Class::Demand) < self.options.buffers.demand
            && let Some(first) = self.queued.front()
        {
            let image = first.image.clone();
            let mut chunks = Vec::new();
            while self.flights.outstanding_bytes(Class::Demand) < self.options.buffers.demand
                && self.queued.front().is_some_and(|queued| Arc::ptr_eq(&queued.image, &image))
                && let Some(queued) = self.queued.pop_front()
            {
                self.flights.ask(Class::Demand, queued.chunk, now);
                for waiter in queued.waiters {
                    self.flights.wait(&queued.chunk.digest, waiter);
                }
                chunks.push(queued.chunk);
            }
            self.request(Class::Demand, image, chunks);
        }
    }

    /// Asks for the next half of the window once half of it has arrived.
    fn pump_prefetch(&mut self, now: Instant) {
        for index in 0..self.images.len() {
            let mut chunks = Vec::new();
            if self.flights.outstanding_bytes(Class::Prefetch) > self.options.buffers.prefetch / 2 {
                return;
            }
            while self.flights.outstanding_bytes(Class::Prefetch) < self.options.buffers.prefetch
                && let Some(position) = self.images[index].plan.next_prefetch()
            {
                let chunk = self.images[index].plan.chunk(position);
                if !self.is_busy(&chunk.digest) {
                    self.flights.ask(Class::Prefetch, chunk, now);
                    chunks.push(chunk);
                }
            }
            let image = self.images[index].image.clone();
            self.request(Class::Prefetch, image, chunks);
        }
    }

    fn pump_background(&mut self, now: Instant) {
        if self.flights.outstanding(Class::Prefetch) > 0
            || self.flights.outstanding_bytes(Class::Background) > self.options.buffers.background / 2
            || self.is_over_budget()
        {
            return;
        }
        if let Some(later) = self.bandwidth.wait_until(now) {
            self.wake = self.wake.min(later);
            return;
        }
        // The image that waited longest goes first next time.
        for _ in 0..self.images.len() {
            self.images.rotate_left(1);
            let Some(present) = self.images.last_mut() else { return };
            if let Some(later) = present.background_due(now, self.last_demand, self.options.background_quiet)
            {
                self.wake = self.wake.min(later);
                continue;
            }
            if let Some(later) = present.bandwidth.wait_until(now) {
                self.wake = self.wake.min(later);
                continue;
            }
            let (flights, writing, held) = (&mut self.flights, &self.writing, &self.held);
            let mut chunks = Vec::new();
            while flights.outstanding_bytes(Class::Background) < self.options.buffers.background
                && self.bandwidth.wait_until(now).is_none()
                && present.bandwidth.wait_until(now).is_none()
                && let Some(position) = present.plan.next_background(|chunk| {
                    flights.contains(chunk) || writing.contains(chunk) || held.contains(chunk)
                })
            {
                let chunk = present.plan.chunk(position);
                flights.ask(Class::Background, chunk, now);
                self.bandwidth.spend(chunk.stored_len.into());
                present.bandwidth.spend(chunk.stored_len.into());
                chunks.push(chunk);
            }
            if !chunks.is_empty() {
                let image = present.image.clone();
                return self.request(Class::Background, image, chunks);
            }
        }
    }

    fn request(&self, class: Class, image: Arc<Image>, chunks: Vec<ChunkRef>) {
        if !chunks.is_empty() {
            let request = Request { class, image, chunks, gate: self.gate.subscribe() };
            self.tasks.spawn(request.run(self.events.clone()));
        }
    }

    pub(super) fn is_busy(&self, chunk: &Digest) -> bool {
        self.flights.contains(chunk) || self.writing.contains(chunk) || self.held.contains(chunk)
    }
}

impl Present {
    /// `None` when the background may ask for this image now; otherwise when to look again.
    pub(super) fn background_due(
        &self,
        now: Instant,
        last_demand: Option<Instant>,
        quiet: Duration,
    ) -> Option<Instant> {
        let never = now + IDLE;
        if !self.image.background
            || !self.scanned
            || self.plan.is_complete()
            || self.spoiled > SPOILED_MAX
            || self.plan.has_prefetch()
        {
            return Some(never);
        }
        let quiet = if now >= self.since + QUIET_FOR { quiet.min(SHORT_QUIET) } else { quiet };
        let due = last_demand.map_or(self.since, |demand| demand.max(self.since)) + quiet;
        let due = self.retry.map_or(due, |retry| retry.max(due));
        (due > now).then_some(due)
    }
}
