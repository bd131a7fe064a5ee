//! The task that decides what is fetched next.
//!
//! Everything that can happen is a [`Demand`] of a reader, a [`Control`] of the images' owner or an
//! [`Event`] of the scheduler's own tasks; one function applies each, then [`Scheduler::pump`] asks for what may be asked for. Nothing here waits.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::image::Digest;
use ::image::record::ChunkRef;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::bandwidth::Bandwidth;
use super::flights::{Flight, Flights, Joined};
use super::image::{Arrival, Image, ImageId};
use super::plan::Plan;
use super::request::{Request, Response};
use super::scan::Local;
use super::writer::{Job, Written};
use super::{Options, Shared};
use crate::content::{Class, FetchError, Plain};
use crate::metrics;
use crate::objects::PutError;

/// Stored bytes in flight for waiting reads. Twice what a gigabit link holds at 20 ms; what is beyond
/// waits here, not in the pipe, and not in our memory.
const DEMAND_BYTES: u64 = 6 * 1024 * 1024;
/// Stored bytes of a profile that are asked ahead. While this is in flight the next part is asked, so
/// that the whole profile costs one round trip.
const PREFETCH_BYTES: u64 = 4 * 1024 * 1024;
/// Stored bytes in flight for the background: what a read that comes now finds before it in the link.
/// 40 ms at 200 Mbit/s, and enough to fill that link at a round trip of 40 ms.
const BACKGROUND_BYTES: u64 = 1024 * 1024;
/// Plain bytes waiting for the disk at which lower classes ask for nothing more. Reads go on; at twice
/// this their chunks are not written any more, and fetched again by the background.
const WRITE_BYTES: usize = 8 * 1024 * 1024;
/// Jobs on blocking threads at a time: one large object's final check must not hold up small ones.
const WRITERS: usize = 2;
/// An image whose reads never pause still completes: this long after its mount a pause of
/// [`SHORT_QUIET`] is enough for its background.
const QUIET_FOR: Duration = Duration::from_secs(60);
const SHORT_QUIET: Duration = Duration::from_millis(200);
/// After the disk was full, how long nothing is written.
const DISK_FULL_FOR: Duration = Duration::from_secs(10);
/// After a failed background request or write: the first wait, and the longest.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Objects of an image that did not match their names before its background gives up: fetching again
/// does not mend a map.
const SPOILED_MAX: u32 = 3;
/// The longest sleep when nothing is due.
const IDLE: Duration = Duration::from_secs(60);

pub(super) type Waiter = oneshot::Sender<Result<Bytes, FetchError>>;

/// What the owner of the images asks.
#[derive(Debug)]
pub(super) enum Control {
    Add { image: Arc<Image>, plan: Box<Plan> },
    Remove { id: ImageId },
    Settle { done: oneshot::Sender<()> },
}

/// A read waits for the chunk at `position`.
#[derive(Debug)]
pub(super) struct Demand {
    pub(super) image: Arc<Image>,
    pub(super) position: u32,
    pub(super) waiter: Waiter,
}

/// What the scheduler's own tasks report.
#[derive(Debug)]
pub(super) enum Event {
    Scanned { image: Arc<Image>, local: Local },
    Responded(Response),
    Written(Written),
}

/// All that reaches the scheduler.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) control: mpsc::UnboundedReceiver<Control>,
    pub(super) demands: mpsc::Receiver<Demand>,
    pub(super) events: mpsc::Receiver<Event>,
}

#[derive(Debug)]
pub(super) struct Scheduler {
    shared: Arc<Shared>,
    options: Options,
    events: mpsc::Sender<Event>,
    tasks: TaskTracker,
    images: Vec<Present>,
    flights: Flights,
    /// Reads that wait for a place among [`DEMAND_BYTES`].
    queued: VecDeque<Queued>,
    jobs: VecDeque<Job>,
    /// Chunks that wait for the disk or are being written.
    writing: HashMap<Digest, Bytes>,
    writing_bytes: usize,
    /// Jobs by number: queued ones and running ones.
    job_sequence: u64,
    unwritten: BTreeSet<u64>,
    /// Who waits for all jobs before a number.
    settling: Vec<(u64, oneshot::Sender<()>)>,
    writers: usize,
    bandwidth: Bandwidth,
    gate: watch::Sender<Class>,
    last_demand: Option<Instant>,
    disk_full_until: Option<Instant>,
    wake: Instant,
}

/// One image and what is known of it.
#[derive(Debug)]
struct Present {
    image: Arc<Image>,
    plan: Plan,
    since: Instant,
    /// Its local objects are known: the background may begin.
    scanned: bool,
    failures: u32,
    retry: Option<Instant>,
    spoiled: u32,
}

#[derive(Debug)]
struct Queued {
    image: Arc<Image>,
    chunk: ChunkRef,
    waiters: Vec<Waiter>,
}

impl Scheduler {
    pub(super) fn new(
        shared: Arc<Shared>,
        options: Options,
        events: mpsc::Sender<Event>,
        tasks: TaskTracker,
    ) -> Scheduler {
        let now = Instant::now();
        Scheduler {
            shared,
            bandwidth: Bandwidth::new(options.background_bandwidth, now),
            options,
            events,
            tasks,
            images: Vec::new(),
            flights: Flights::default(),
            queued: VecDeque::new(),
            jobs: VecDeque::new(),
            writing: HashMap::new(),
            writing_bytes: 0,
            job_sequence: 0,
            unwritten: BTreeSet::new(),
            settling: Vec::new(),
            writers: 0,
            gate: watch::Sender::new(Class::Background),
            last_demand: None,
            disk_full_until: None,
            wake: now,
        }
    }

    pub(super) async fn run(mut self, mut inbox: Inbox, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(event) = inbox.events.recv() => self.apply(event),
                Some(control) = inbox.control.recv() => self.obey(control),
                Some(demand) = inbox.demands.recv() => self.demand(demand),
                () = tokio::time::sleep_until(self.wake.into()) => {}
            }
            // All chunks of one read, and reads of one moment, travel in one request.
            while let Ok(demand) = inbox.demands.try_recv() {
                self.demand(demand);
            }
            self.pump(Instant::now());
        }
        for present in &self.images {
            present.image.removed.cancel();
        }
    }

    fn obey(&mut self, control: Control) {
        match control {
            Control::Add { image, plan } => self.add(image, *plan),
            Control::Remove { id } => self.remove(&id),
            Control::Settle { done } => {
                self.settling.push((self.job_sequence, done));
                self.settle();
            }
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Scanned { image, local } => self.scanned(&image, &local),
            Event::Responded(response) => self.responded(response),
            Event::Written(written) => self.written(written),
        }
    }

    fn add(&mut self, image: Arc<Image>, plan: Plan) {
        self.remove(&image.id.clone());
        image.note_local(&plan);
        let since = Instant::now();
        self.images.push(Present {
            image,
            plan,
            since,
            scanned: false,
            failures: 0,
            retry: None,
            spoiled: 0,
        });
    }

    fn remove(&mut self, id: &ImageId) {
        self.images.retain(|present| {
            if present.image.id == *id {
                present.image.removed.cancel();
            }
            present.image.id != *id
        });
        let orphans: Vec<Queued>;
        let others: Vec<Queued>;
        (orphans, others) = self.queued.drain(..).partition(|queued| queued.image.id == *id);
        self.queued = others.into();
        for Queued { chunk, waiters, .. } in orphans {
            self.ask_elsewhere(chunk, waiters, FetchError::Cancelled(chunk.digest));
        }
    }

    /// A read needs a chunk that was neither in memory nor on the disk.
    fn demand(&mut self, demand: Demand) {
        let Demand { image, position, waiter } = demand;
        let chunk = image.map.chunks[position as usize];
        self.last_demand = Some(Instant::now());
        let held =
            self.shared.memory().get(&chunk.digest).or_else(|| self.writing.get(&chunk.digest).cloned());
        if let Some(bytes) = held {
            // The reader may have been killed.
            let _ = waiter.send(Ok(bytes));
            return;
        }
        if let Joined::Ask(waiter) = self.flights.join(&chunk.digest, waiter) {
            self.queue(image, chunk, vec![waiter]);
        }
    }

    fn queue(&mut self, image: Arc<Image>, chunk: ChunkRef, waiters: Vec<Waiter>) {
        match self.queued.iter_mut().find(|queued| queued.chunk.digest == chunk.digest) {
            Some(queued) => queued.waiters.extend(waiters),
            None => self.queued.push_back(Queued { image, chunk, waiters }),
        }
    }

    fn scanned(&mut self, image: &Arc<Image>, local: &Local) {
        if let Some(present) = self.images.iter_mut().find(|present| Arc::ptr_eq(&present.image, image)) {
            local.tell(&mut present.plan);
            present.scanned = true;
            self.note_progress();
        }
    }

    fn responded(&mut self, response: Response) {
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
        self.write(chunk.digest, plain.bytes);
    }

    fn failed(&mut self, image: &Arc<Image>, class: Class, chunk: ChunkRef, error: FetchError) {
        tracing::debug!(image = %image.id, chunk = %chunk.digest, ?class, %error, "a chunk did not come");
        if class != Class::Demand
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

    /// Asks for a chunk through any present image that has it; without one the waiters get `error`.
    fn ask_elsewhere(&mut self, chunk: ChunkRef, waiters: Vec<Waiter>, error: FetchError) {
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

    /// Queues what is not on the disk yet of an arrived chunk.
    fn write(&mut self, chunk: Digest, bytes: Bytes) {
        let mut targets = Vec::new();
        for present in &self.images {
            for position in present.plan.positions_of(&chunk) {
                for target in present.plan.targets(*position) {
                    if !targets.contains(&target) {
                        targets.push(target);
                    }
                }
            }
        }
        if targets.is_empty() || self.writing.contains_key(&chunk) {
            return;
        }
        if self.disk_full_until.is_some() || self.writing_bytes >= 2 * WRITE_BYTES {
            metrics::write_skipped();
            return;
        }
        self.writing_bytes += bytes.len();
        self.writing.insert(chunk, bytes.clone());
        self.unwritten.insert(self.job_sequence);
        self.jobs.push_back(Job { sequence: self.job_sequence, chunk, bytes, targets });
        self.job_sequence += 1;
    }

    fn written(&mut self, written: Written) {
        self.writers = self.writers.saturating_sub(1);
        self.writing.remove(&written.chunk);
        self.unwritten.remove(&written.sequence);
        self.settle();
        self.writing_bytes = self.writing_bytes.saturating_sub(written.bytes);
        for present in &mut self.images {
            for (object, index) in &written.pieces {
                present.plan.mark_piece(object, *index);
            }
            for object in &written.whole {
                present.plan.mark_local(object);
            }
            for object in &written.spoiled {
                present.plan.forget_pieces(object);
                present.spoiled += u32::from(super::plan::index_of(present.plan.map(), object).is_some());
            }
        }
        for object in &written.spoiled {
            tracing::error!(%object, "the chunks of an object do not make up the object; it stays remote");
        }
        match written.failed {
            None => {}
            Some(PutError::Full(object)) => {
                tracing::warn!(%object, "the disk is full: the background stops, reads go on from memory");
                self.disk_full_until = Some(Instant::now() + DISK_FULL_FOR);
            }
            Some(error) => {
                tracing::warn!(error = %anyhow::Error::new(error), "failed to keep a chunk");
                self.images.iter_mut().for_each(Present::postpone);
            }
        }
        metrics::disk_used(self.shared.objects.used());
        self.note_progress();
    }

    /// Tells those who wait for writes that are all done.
    fn settle(&mut self) {
        let oldest = self.unwritten.first().copied().unwrap_or(u64::MAX);
        for (_, done) in self.settling.extract_if(.., |(before, _)| *before <= oldest) {
            // Whoever asked may have stopped waiting.
            let _ = done.send(());
        }
    }

    /// Publishes what is local, and notices images that became complete.
    fn note_progress(&mut self) {
        for present in self.images.iter().filter(|present| present.scanned) {
            let before = present.image.progress.borrow().complete;
            present.image.note_local(&present.plan);
            if !before && present.plan.is_complete() {
                tracing::info!(image = %present.image.id, objects = present.plan.objects_local(), "image is complete");
                metrics::image_completed();
                let objects = self.shared.objects.clone();
                self.tasks.spawn_blocking(move || {
                    if let Err(error) = objects.sync() {
                        tracing::warn!(error = format!("{error:#}"), "failed to sync a complete image");
                    }
                });
            }
        }
        if self.images.iter().all(|present| present.plan.is_complete()) {
            self.shared.memory().clear();
        }
    }

    /// Asks for everything that may be asked for now, the highest class first.
    fn pump(&mut self, now: Instant) {
        self.wake = now + IDLE;
        self.start_writers();
        self.pump_demand(now);
        if self.flights.outstanding(Class::Demand) == 0 && self.may_write(now) {
            self.pump_prefetch(now);
            if self.options.background {
                self.pump_background(now);
            }
        }
        let lowest = self.flights.lowest_reading();
        self.gate.send_if_modified(|gate| std::mem::replace(gate, lowest) != lowest);
    }

    fn start_writers(&mut self) {
        while self.writers < WRITERS
            && let Some(job) = self.jobs.pop_front()
        {
            self.writers += 1;
            let (objects, events) = (self.shared.objects.clone(), self.events.clone());
            self.tasks.spawn_blocking(move || {
                // The scheduler is gone only when the node shuts down.
                let _ = events.blocking_send(Event::Written(job.run(&objects)));
            });
        }
    }

    fn pump_demand(&mut self, now: Instant) {
        while self.flights.outstanding_bytes(Class::Demand) < DEMAND_BYTES
            && let Some(first) = self.queued.front()
        {
            let image = first.image.clone();
            let mut chunks = Vec::new();
            while self.flights.outstanding_bytes(Class::Demand) < DEMAND_BYTES
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
            if self.flights.outstanding_bytes(Class::Prefetch) > PREFETCH_BYTES / 2 {
                return;
            }
            while self.flights.outstanding_bytes(Class::Prefetch) < PREFETCH_BYTES
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
            || self.flights.outstanding_bytes(Class::Background) > BACKGROUND_BYTES / 2
            || self.options.disk_budget.is_some_and(|budget| self.shared.objects.used() >= budget)
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
            let (flights, writing) = (&mut self.flights, &self.writing);
            let mut chunks = Vec::new();
            while flights.outstanding_bytes(Class::Background) < BACKGROUND_BYTES
                && self.bandwidth.wait_until(now).is_none()
                && let Some(position) = present
                    .plan
                    .next_background(|chunk| flights.contains(chunk) || writing.contains_key(chunk))
            {
                let chunk = present.plan.chunk(position);
                flights.ask(Class::Background, chunk, now);
                self.bandwidth.spend(chunk.stored_len.into());
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

    fn is_busy(&self, chunk: &Digest) -> bool {
        self.flights.contains(chunk) || self.writing.contains_key(chunk)
    }

    /// Whether what lower classes fetch could be kept.
    fn may_write(&mut self, now: Instant) -> bool {
        if let Some(until) = self.disk_full_until {
            if now < until {
                self.wake = self.wake.min(until);
                return false;
            }
            self.disk_full_until = None;
        }
        self.writing_bytes < WRITE_BYTES
    }
}

impl Present {
    /// `None` when the background may ask for this image now; otherwise when to look again.
    fn background_due(&self, now: Instant, last_demand: Option<Instant>, quiet: Duration) -> Option<Instant> {
        let never = now + IDLE;
        if !self.scanned || self.plan.is_complete() || self.spoiled > SPOILED_MAX || self.plan.has_prefetch()
        {
            return Some(never);
        }
        let quiet = if now >= self.since + QUIET_FOR { quiet.min(SHORT_QUIET) } else { quiet };
        let due = last_demand.unwrap_or(self.since) + quiet;
        let due = self.retry.map_or(due, |retry| retry.max(due));
        (due > now).then_some(due)
    }

    fn postpone(&mut self) {
        let wait = RETRY_FIRST.saturating_mul(1 << self.failures.min(16)).min(RETRY_MAX);
        self.failures += 1;
        self.retry = Some(Instant::now() + wait);
    }
}
