//! The cache replicas that this node knows, and its connections to them.
//!
//! Asked of the bus when the node starts, and when needed again after a failure or [`KNOWN_FOR`]; what was known stays in use
//! while the bus does not answer. A new replica is connected to at once: the first read of a node is waited for. It has
//! two connections: one for what processes wait for, one for everything else. One task asks the bus at a time; readers never wait for it when something is known.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bus::Bus;
use image::Digest;
use proto::content_client::ContentClient;
use proto::{ChunksRequest, LocateRequest, Role};
use tls::Tls;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use super::Class;

/// How long a list of replicas is used without asking again.
const KNOWN_FOR: Duration = Duration::from_secs(30);
/// A failure asks the bus again at most this often.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// A bus that does not answer within this must not hold up a read.
const LOCATE_DEADLINE: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A dead connection is noticed within the sum of these.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// What a replica may send ahead of us on the connection of the lower classes. This much can stand in the
/// pipe before a demand read's first byte (40 ms at 200 Mbit/s), and it bounds one stream's speed
/// (50 MB/s at a round trip of 20 ms).
const BULK_WINDOW_BYTES: u32 = 1024 * 1024;
/// The same for demand, which nothing stands behind.
const DEMAND_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// More replicas than this in one answer are ignored: each costs two connections.
const REPLICAS_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct Endpoints {
    bus: Bus,
    tls: Tls,
    known: Mutex<Known>,
    asking: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    replicas: Arc<[Replica]>,
    asked: Option<Instant>,
    /// Somebody could not use what is known.
    doubted: bool,
}

/// One cache replica.
#[derive(Clone, Debug)]
pub(super) struct Replica {
    pub(super) url: String,
    demand: Channel,
    bulk: Channel,
}

impl Endpoints {
    pub(super) fn new(bus: Bus) -> Endpoints {
        Endpoints { bus, tls: Tls::default(), known: Mutex::default(), asking: tokio::sync::Mutex::new(()) }
    }

    pub(super) fn over(&self, tls: Tls) -> Endpoints {
        Endpoints { tls, ..Endpoints::new(self.bus.clone()) }
    }

    /// The replicas to ask now; none when the bus never told of one.
    pub(super) async fn current(&self) -> Arc<[Replica]> {
        if self.is_fresh() {
            return self.known().replicas.clone();
        }
        let none_known = self.known().replicas.is_empty();
        let asking = match none_known {
            true => Some(self.asking.lock().await),
            // Another task asks already: what is known will do.
            false => self.asking.try_lock().ok(),
        };
        if asking.is_some() && !self.is_fresh() {
            self.ask().await;
        }
        self.known().replicas.clone()
    }

    /// What is known did not work: ask the bus again soon.
    pub(super) fn doubt(&self) {
        self.known().doubted = true;
    }

    /// Leaves the connections to a replica that stalled: a new one does not wait for the old one's
    /// retransmissions.
    pub(super) fn reconnect(&self, url: &str) {
        let mut known = self.known();
        let renewed = known.replicas.iter().map(|replica| match replica.url == url {
            true => Replica::connect(url, &self.tls).unwrap_or_else(|_| replica.clone()),
            false => replica.clone(),
        });
        known.replicas = renewed.collect();
    }

    fn is_fresh(&self) -> bool {
        let known = self.known();
        let usable_for = if known.doubted || known.replicas.is_empty() { ASK_AGAIN_AFTER } else { KNOWN_FOR };
        known.asked.is_some_and(|asked| asked.elapsed() < usable_for)
    }

    async fn ask(&self) {
        let answer = self.bus.call_once(LocateRequest {}, LOCATE_DEADLINE).await;
        let mut known = self.known();
        known.asked = Some(Instant::now());
        match answer {
            Ok(reply) => {
                let mut urls = reply.endpoints;
                urls.sort();
                urls.dedup();
                urls.truncate(REPLICAS_MAX);
                known.replicas =
                    urls.iter().filter_map(|url| known_or_new(&known.replicas, url, &self.tls)).collect();
                known.doubted = false;
            }
            Err(status) => tracing::warn!(error = %status.message(), "failed to locate content replicas"),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Replica {
    /// Connects when first used.
    fn connect(url: &str, tls: &Tls) -> Result<Replica, tonic::transport::Error> {
        let endpoint = |window: u32| {
            let endpoint = Endpoint::from_shared(url.to_owned())?
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
                .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
                .initial_stream_window_size(window)
                .initial_connection_window_size(window)
                .tcp_nodelay(true);
            Ok(endpoint.connect_with_connector_lazy(tls.connector(Role::Cache.name())))
        };
        Ok(Replica {
            url: url.to_owned(),
            demand: endpoint(DEMAND_WINDOW_BYTES)?,
            bulk: endpoint(BULK_WINDOW_BYTES)?,
        })
    }

    /// Connects before anybody waits for it. Nothing is asked for, and without a grant nothing is given: the question is
    /// there for its connection.
    fn open(&self) {
        for class in [Class::Demand, Class::Background] {
            let mut client = self.client(class);
            tokio::spawn(async move {
                let refused = client.get_chunks(ChunksRequest::default());
                tokio::time::timeout(CONNECT_TIMEOUT, refused).await.map(drop)
            });
        }
    }

    pub(super) fn client(&self, class: Class) -> ContentClient<Channel> {
        ContentClient::new(match class {
            Class::Demand => self.demand.clone(),
            Class::Prefetch | Class::Background => self.bulk.clone(),
        })
    }
}

/// The order in which to ask the replicas for `digest`: indexes into `replicas`.
pub(super) fn ranked(replicas: &[Replica], digest: &Digest) -> Vec<usize> {
    let urls: Vec<String> = replicas.iter().map(|replica| replica.url.clone()).collect();
    let index_of = |url: &str| replicas.iter().position(|replica| replica.url == url);
    proto::placement::rank(&urls, digest.as_bytes()).into_iter().filter_map(index_of).collect()
}

/// [`ranked`], by address alone.
#[cfg(test)]
pub(super) fn ranked_urls(urls: &[String], digest: &Digest) -> Vec<usize> {
    let index_of = |url: &str| urls.iter().position(|other| other == url);
    proto::placement::rank(urls, digest.as_bytes()).into_iter().filter_map(index_of).collect()
}

fn known_or_new(known: &[Replica], url: &str, tls: &Tls) -> Option<Replica> {
    if let Some(replica) = known.iter().find(|replica| replica.url == url) {
        return Some(replica.clone());
    }
    if let Err(error) = tls.allows("frontend", url) {
        tracing::error!(%error, "ignored a content replica");
        return None;
    }
    let new = Replica::connect(url, tls).inspect_err(
        |error| tracing::warn!(url, %error, "ignored a content replica with an unusable address"),
    );
    new.inspect(Replica::open).ok()
}
