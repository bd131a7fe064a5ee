//! Serves content to nodes: trees, maps and chunks, from memory and disk in front of the object store.
//!
//! ```text
//! serve   gRPC content.v1: who may read (grant), streams of frames in the order asked for
//!   └─ content   memory -> one flight per name: disk -> store, verified before anyone sees it
//!        ├─ tiers    memory and disk under byte budgets
//!        └─ repair   asks the fetcher to bring back what the store has lost or spoilt
//! presence  answers locate(), knows the other replicas
//! refresh   reads again what stands in the store anew
//! ```
//!
//! Keeps nothing that could not be read again from the store. Requests of different classes wait in
//! different queues, so that a read that a process waits for never waits behind a download.

mod config;
mod content;
mod meters;
mod presence;
mod refresh;
mod repair;
mod serve;
mod tiers;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use bus::Bus;
use proto::gatekeeper::Gatekeeper;
use proto::signed::TrustedKeys;
use store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use content::Content;
use presence::Presence;
use repair::Repairs;
use tiers::Tiers;

pub use config::{Config, Disk, Settings};

/// A cache that serves.
#[derive(Debug)]
pub struct Cache {
    address: SocketAddr,
    endpoint: String,
}

impl Cache {
    /// Binds, opens the disk tier, serves until `shutdown`, and answers locate() from when this
    /// returns. Grants must be signed by one of `trusted`.
    pub async fn start(
        config: Config,
        store: Store,
        bus: Bus,
        trusted: TrustedKeys,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Cache> {
        config.check()?;
        let binding = || format!("binding the cache to {}", config.listen);
        let listener = TcpListener::bind(config.listen).await.with_context(binding)?;
        let address = listener.local_addr().with_context(binding)?;
        let endpoint = config.endpoint(address)?;
        let tiers = Tiers::open(&config).await?;
        let repairs = Repairs::new(bus.clone(), tasks.clone(), shutdown.clone());
        let content = Arc::new(Content::new(tiers, store, repairs, tasks.clone()));
        let refreshing = refresh::answer(&bus, content.clone(), tasks, shutdown.clone()).await?;
        let presence = Presence::announce(bus, endpoint.clone(), tasks, shutdown.clone()).await?;
        let served = serve::serve(listener, content.clone(), Gatekeeper::new(trusted), shutdown.clone());
        tasks.spawn(async move {
            if let Err(error) = served.await {
                // Whoever runs it is of no use without it.
                tracing::error!(%error, "serving content failed");
                shutdown.cancel();
            }
            presence.end().await;
            refreshing.stop().await;
            content.close().await;
        });
        tracing::info!(%address, endpoint, "serving content");
        Ok(Cache { address, endpoint })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How nodes reach it: `http://host:port`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}
