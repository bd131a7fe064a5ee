//! Serves content to nodes: trees, maps and chunks, from memory and disk in front of the object store.
//!
//! ```text
//! serve   gRPC content.v1: who may read (grant, proof) what (scope) and what it costs (costs), streams of frames in the order asked for
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
mod costs;
mod meters;
mod presence;
mod proof;
mod refresh;
mod repair;
mod scope;
mod serve;
mod tiers;

use std::net::SocketAddr;
use std::sync::Arc;

use allowance::Allowances;
use anyhow::Context;
use bus::Bus;
use proto::Role;
use proto::gatekeeper::Gatekeeper;
use proto::signed::TrustedKeys;
use revocations::Revocations;
use store::Store;
use tls::Clients;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use content::Content;
use presence::Presence;
use proof::Proof;
use repair::Repairs;
use scope::Scopes;
use tiers::Tiers;

pub use config::{Config, Disk, Settings};
pub use revocations::KNOWN as REVOCATIONS;

/// A cache that serves.
#[derive(Debug)]
pub struct Cache {
    address: SocketAddr,
    endpoint: String,
    revocations: Revocations,
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
        let incoming = config.tls.open()?.listen("cache", listener, Clients::Proven)?;
        let (known, end) = ((store.clone(), trusted.clone()), shutdown.clone());
        let revocations = Revocations::follow(known, bus.clone(), Role::Cache, tasks, end).await;
        let tiers = Tiers::open(&config).await?;
        let repairs = Repairs::new(bus.clone(), tasks.clone(), shutdown.clone());
        let content = Arc::new(Content::new(tiers, store, repairs, tasks.clone()));
        let allowances = Allowances::new(bus.clone(), config.quota.clone());
        let refreshing = refresh::answer(&bus, content.clone(), tasks, shutdown.clone()).await?;
        let presence = Presence::announce(bus, endpoint.clone(), tasks, shutdown.clone()).await?;
        let door = serve::Door {
            scopes: Scopes::new(trusted.clone(), config.memory.as_u64()),
            gatekeeper: Gatekeeper::new(trusted),
            proof: Proof::new(revocations.clone()),
            allowances,
        };
        let served = serve::serve(incoming, content.clone(), door, shutdown.clone());
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
        Ok(Cache { address, endpoint, revocations })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What counts no more, as far as it knows: for who asks whether it can work.
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// How nodes reach it: `http://host:port`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}
