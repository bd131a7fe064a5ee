//! The bus inside one process: a table of who answers what.
//!
//! Messages are encoded here too, so that nothing works in one process that would fail in a mesh.
//! The table is locked only to look up or change an entry, never while a request is handled.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::{broadcast, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::counters::Sums;
use crate::endpoint::Endpoint;
use crate::lease::Lease;
use crate::stream::{Outgoing, Streams};
use crate::table::Rows;
use crate::{GATHERED_MAX, Undelivered, wire};

/// Messages that a slow listener may lag behind; it then misses the oldest.
const LISTENER_LAG_MAX: usize = 256;

#[derive(Default)]
pub(crate) struct InProcess {
    /// Those who answer a subject, the next to be asked first.
    endpoints: Mutex<HashMap<String, VecDeque<Listener>>>,
    /// Those who listen to what is told on a subject.
    told: Mutex<HashMap<&'static str, broadcast::Sender<Bytes>>>,
    leases: Arc<Leases>,
    counters: Mutex<HashMap<String, Arc<Sums>>>,
    tables: Mutex<HashMap<String, Arc<Rows>>>,
    streams: Streams,
}

struct Listener {
    endpoint: Arc<Endpoint>,
    stop: CancellationToken,
}

/// The names that are held now.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    held: Mutex<HashSet<String>>,
}

/// One held name; free again when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    name: String,
    leases: Arc<Leases>,
}

impl InProcess {
    pub(crate) fn listen(&self, subject: String, endpoint: Arc<Endpoint>, stop: CancellationToken) {
        let mut endpoints = lock(&self.endpoints);
        endpoints.entry(subject).or_default().push_back(Listener { endpoint, stop });
    }

    pub(crate) async fn request(
        &self,
        subject: &str,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, Undelivered> {
        let endpoint = self.next(subject).ok_or(Undelivered::NoResponder)?;
        ask(&endpoint, subject, payload, deadline).await
    }

    /// The replies of everyone who listens on `subject`.
    pub(crate) async fn gather(&self, subject: &str, payload: Bytes, wait: Duration) -> Vec<Bytes> {
        let endpoints: Vec<Arc<Endpoint>> = match lock(&self.endpoints).get(subject) {
            Some(listeners) => listeners
                .iter()
                .filter(|listener| !listener.stop.is_cancelled())
                .take(GATHERED_MAX)
                .map(|listener| listener.endpoint.clone())
                .collect(),
            None => Vec::new(),
        };
        let asked = endpoints.iter().map(|endpoint| {
            let reply = ask(endpoint, subject, payload.clone(), wait);
            async { tokio::time::timeout(wait, reply).await.ok()?.ok() }
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// Who is to answer next; those who stopped are forgotten on the way.
    fn next(&self, subject: &str) -> Option<Arc<Endpoint>> {
        let mut endpoints = lock(&self.endpoints);
        let listeners = endpoints.get_mut(subject)?;
        listeners.retain(|listener| !listener.stop.is_cancelled());
        listeners.rotate_left(usize::from(listeners.len() > 1));
        let next = listeners.back().map(|listener| listener.endpoint.clone());
        if next.is_none() {
            endpoints.remove(subject);
        }
        next
    }

    pub(crate) fn tell(&self, subject: &'static str, payload: Bytes) {
        if let Some(listeners) = lock(&self.told).get(subject) {
            // They may all have gone.
            let _ = listeners.send(payload);
        }
    }

    pub(crate) fn hear(&self, subject: &'static str) -> broadcast::Receiver<Bytes> {
        let mut told = lock(&self.told);
        told.entry(subject).or_insert_with(|| broadcast::channel(LISTENER_LAG_MAX).0).subscribe()
    }

    /// Puts a message into the stream that keeps its subject, if there is one. False: it could not be kept there.
    pub(crate) fn keep(&self, message: impl FnOnce() -> Outgoing, subject: &str) -> bool {
        self.streams.keeping(subject).is_none_or(|stream| stream.publish(message()).is_ok())
    }

    pub(crate) fn streams(&self) -> &Streams {
        &self.streams
    }

    pub(crate) fn lease(&self, name: &str) -> Option<Lease> {
        lock(&self.leases.held)
            .insert(name.to_owned())
            .then(|| Lease::in_process(Held { name: name.to_owned(), leases: self.leases.clone() }))
    }

    pub(crate) fn sums(&self, name: &str, kept: Duration) -> Arc<Sums> {
        let mut counters = lock(&self.counters);
        counters.entry(name.to_owned()).or_insert_with(|| Arc::new(Sums::new(kept))).clone()
    }

    pub(crate) fn rows(&self, name: &str) -> Arc<Rows> {
        lock(&self.tables).entry(name.to_owned()).or_default().clone()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.leases.held).remove(&self.name);
    }
}

impl std::fmt::Debug for InProcess {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let endpoints = lock(&self.endpoints);
        formatter.debug_struct("InProcess").field("subjects", &endpoints.keys().collect::<Vec<_>>()).finish()
    }
}

async fn ask(
    endpoint: &Arc<Endpoint>,
    subject: &str,
    payload: Bytes,
    deadline: Duration,
) -> Result<Bytes, Undelivered> {
    let (sender, receiver) = oneshot::channel();
    let reply = |outcome| async {
        // The caller may have given up.
        let _ = sender.send(outcome);
    };
    endpoint.accept(payload, None, deadline, reply).await;
    match receiver.await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(status)) => Err(Undelivered::Status(wire::decode_status(wire::encode_status(&status)))),
        Err(_) => Err(Undelivered::Status(Status::unavailable(format!("{subject} went away")))),
    }
}

/// Nothing can panic while the tables are locked, so a poisoned one is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
