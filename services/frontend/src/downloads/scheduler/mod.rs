//! The task that decides what is fetched next.
//!
//! Everything that can happen is a [`Demand`] of a reader, a [`Control`] of the images' owner or an
//! [`Event`] of the scheduler's own tasks; one function applies each, then [`Scheduler::pump`] asks for
//! what may be asked for. Nothing here waits. `arrivals` is what happens to chunks that came or did
//! not, `disk` what is written and local, `pump` what is asked next.

mod arrivals;
mod disk;
mod pump;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use ::image::record::ChunkRef;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::bandwidth::Bandwidth;
use super::flights::{Flights, Joined};
use super::held::Held;
use super::image::{Image, ImageId};
use super::plan::Plan;
use super::request::Response;
use super::scan::Local;
use super::writer::Written;
use super::writing::Writing;
use super::{Options, Shared, ahead};
use crate::content::{Class, FetchError};

/// Stored bytes asked for and not here at which nothing more is asked ahead of readers: what a link of 200
/// Mbit/s moves in a round trip of 20 ms. Asking ahead fills the time for which a reader waits anyway, and
/// what the reader needs next never stands behind more than this.
const AHEAD_BYTES: u64 = 512 * 1024;

pub(super) type Waiter = oneshot::Sender<Result<Bytes, FetchError>>;

/// What the owner of the images asks.
#[derive(Debug)]
pub(super) enum Control {
    Add { image: Arc<Image>, plan: Box<Plan> },
    Remove { id: ImageId },
    Settle { done: oneshot::Sender<()> },
}

/// A read needs the chunk at `position`, and without a waiter has it already.
#[derive(Debug)]
pub(super) struct Demand {
    pub(super) image: Arc<Image>,
    pub(super) position: u32,
    pub(super) waiter: Option<Waiter>,
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
    /// What reads need and the bound on demand in flight does not let out yet.
    queued: VecDeque<Queued>,
    writing: Writing,
    held: Held,
    bandwidth: Bandwidth,
    gate: watch::Sender<Class>,
    last_demand: Option<Instant>,
    /// The last first read of any chunk, wherever it was found.
    last_read: Option<Instant>,
    disk_full_until: Option<Instant>,
    /// A quota is used up: until then only what reads need is asked for.
    short_until: Option<Instant>,
    wake: Instant,
}

/// One image and what is known of it.
#[derive(Debug)]
struct Present {
    image: Arc<Image>,
    plan: Plan,
    since: Instant,
    /// Of its own background, below the one of all images together.
    bandwidth: Bandwidth,
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
            writing: Writing::default(),
            held: Held::new(options.buffers.held as usize),
            gate: watch::Sender::new(Class::Background),
            last_demand: None,
            last_read: None,
            disk_full_until: None,
            short_until: None,
            wake: now,
        }
    }

    pub(super) async fn run(mut self, mut inbox: Inbox, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                // Before events: what the scan of an image found is of no use before the image is known.
                Some(control) = inbox.control.recv() => self.obey(control),
                Some(event) = inbox.events.recv() => self.apply(event),
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
                self.writing.settle(done);
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
            bandwidth: Bandwidth::new(image.bandwidth, since),
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
        let now = Instant::now();
        let chunk = image.map.chunks[position as usize];
        self.last_read = Some(now);
        if let Some(bytes) = self.held.take(&chunk.digest) {
            self.shared.memory().insert(chunk.digest, bytes.clone());
            self.write(chunk.digest, bytes);
        }
        self.answer(&image, chunk, waiter, now);
        self.look_ahead(&image, position);
    }

    fn answer(&mut self, image: &Arc<Image>, chunk: ChunkRef, waiter: Option<Waiter>, now: Instant) {
        let Some(waiter) = waiter else { return };
        self.last_demand = Some(now);
        let held = self.shared.memory().get(&chunk.digest).or_else(|| self.writing.get(&chunk.digest));
        if let Some(bytes) = held {
            // The reader may have been killed.
            let _ = waiter.send(Ok(bytes));
        } else if let Joined::Ask(waiter) = self.flights.join(&chunk.digest, waiter, now) {
            self.queue(image.clone(), chunk, vec![waiter]);
        }
    }

    /// Asks for what is likely to be read after `position`, as far as the link has room in a round trip.
    fn look_ahead(&mut self, image: &Arc<Image>, position: u32) {
        let Some(present) = self.images.iter().find(|present| Arc::ptr_eq(&present.image, image)) else {
            return;
        };
        let queued: u64 = self.queued.iter().map(|queued| u64::from(queued.chunk.stored_len)).sum();
        let mut due = queued + self.flights.outstanding_bytes(Class::Demand);
        let mut chunks = Vec::new();
        for position in ahead::of(&present.plan, position, |run| image.touched(run)) {
            let chunk = present.plan.chunk(position);
            if due >= AHEAD_BYTES {
                break;
            }
            if present.plan.needs(position) && !self.is_busy(&chunk.digest) {
                due += u64::from(chunk.stored_len);
                chunks.push(chunk);
            }
        }
        for chunk in chunks {
            self.queue(image.clone(), chunk, Vec::new());
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
}
