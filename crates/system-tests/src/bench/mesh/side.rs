//! A mesh with everything that holds one together, or with nothing of it: NATS, a fetcher and a cache, and on the one side TLS, identities
//! and a quota service with limits that are far away, so that everything is counted and nothing refused.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use ed25519_dalek::SigningKey;
use image::record::ChunkRef;
use image::{Digest, Map};
use prost::Message as _;
use proto::content_client::ContentClient;
use proto::gatekeeper::GRANT_METADATA;
use proto::signed::{Domain, sign};
use proto::{Grant, Signed};
use store::{Index, Store, verify};
use testkit::port;
use tls::Tls;
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};

use crate::mesh::Link;
use crate::secured::{Secured, tls_config};
use crate::services::{self, Backend, Service};
use crate::{Scratch, metrics};

/// The node of either side.
pub(super) const NODE: &str = "node-1";
/// How long services may take to be there.
const READY_MAX: Duration = Duration::from_secs(60);
/// As the node dials a cache for what processes wait for.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const CACHE_MEMORY: &str = "cache.memory=1GiB";

pub(super) struct Side {
    pub(super) scratch: Scratch,
    kind: Kind,
    pub(super) cache_port: u16,
    cache_admin: u16,
    /// What the node shows to the cache, and with which key its grants are signed.
    tls: Tls,
    signer: SigningKey,
    store: Store,
    /// To NATS and to the cache, where the node stands behind one.
    links: Option<[Link; 2]>,
}

enum Kind {
    Plain(Box<Backend>),
    Secured { _mesh: Box<Secured>, node: PathBuf, services: Vec<Service> },
}

impl Side {
    /// Without anything. `link`: arguments of `sluice link`, between a node and all that it asks.
    pub(super) fn off(link: Option<&[&str]>, fetcher: &[String]) -> anyhow::Result<Side> {
        let (scratch, cache_port, cache_admin) = (Scratch::new()?, port::free()?, port::free()?);
        let cache_link = link.map(|link| Link::start(cache_port, link)).transpose()?;
        let cache = cache_settings("http", cache_port, cache_admin, cache_link.as_ref());
        let backend = Backend::start(&scratch, cache_port, fetcher, &cache)?;
        let nats_port = backend.nats.url().rsplit(':').next().and_then(|port| port.parse().ok());
        let links = links(cache_link, link, nats_port.context("NATS has a port")?)?;
        let signer = signer(scratch.state().join("fetcher.key"))?;
        let store = Store::open(&scratch.path("mesh-store").display().to_string(), &HashMap::new())?;
        let (kind, tls) = (Kind::Plain(Box::new(backend)), Tls::default());
        Ok(Side { scratch, kind, cache_port, cache_admin, tls, signer, store, links })
    }

    /// With all of it.
    pub(super) fn on(link: Option<&[&str]>, fetcher: &[String]) -> anyhow::Result<Side> {
        let (scratch, cache_port, cache_admin) = (Scratch::new()?, port::free()?, port::free()?);
        let mut mesh = Secured::start(&scratch)?;
        let node = mesh.node(NODE, "default")?;
        let cache_link = link.map(|link| Link::start(cache_port, link)).transpose()?;
        let links = links(cache_link, link, mesh.nats_port)?;
        let cache_link = links.as_ref().map(|links| &links[1]);
        let url = format!("store.url={}", scratch.path("mesh-store").display());
        let mut cache = cache_settings("https", cache_port, cache_admin, cache_link);
        cache.extend([format!("cache.listen=127.0.0.1:{cache_port}"), url.clone()]);
        let limits = ["content_requests", "content_bytes", "imports"].iter().flat_map(|metric| {
            ["minute", "day"].map(|window| format!("quota.limits.{metric}.{window}=1000000000000000"))
        });
        let quota = mesh.service(&scratch, "quota", &limits.collect::<Vec<_>>())?;
        let fetcher = mesh.service(&scratch, "fetcher", &[&[url], fetcher].concat())?;
        let mut cache = mesh.service(&scratch, "cache", &cache)?;
        cache.server.wait_for_port("cache", cache_port)?;
        let signer = signer(mesh.signing_key())?;
        let store = Store::open(&scratch.path("mesh-store").display().to_string(), &HashMap::new())?;
        let tls = tls_config(&node).open()?;
        let kind = Kind::Secured { _mesh: Box::new(mesh), node, services: vec![quota, fetcher, cache] };
        Ok(Side { scratch, kind, cache_port, cache_admin, tls, signer, store, links })
    }

    /// A frontend with this socket.
    pub(super) fn frontend(&self, name: &str) -> anyhow::Result<(Service, PathBuf)> {
        let socket = self.scratch.path(&format!("{name}.sock"));
        let mut settings = vec![
            format!("frontend.state={}", self.scratch.path(name).display()),
            format!("frontend.socket={}", socket.display()),
        ];
        let nats = |scheme: &str, port: u16| format!("nats.url={scheme}://127.0.0.1:{port}");
        let nats_link = self.links.as_ref().map(|links| links[0].port);
        let mut frontend = match &self.kind {
            Kind::Plain(backend) => {
                settings.push(format!("frontend.node={NODE}"));
                settings.push(format!("frontend.trusted_keys=[\"{}\"]", backend.key));
                settings.extend(nats_link.map(|port| nats("nats", port)));
                backend.service(&self.scratch, "frontend", &settings)?
            }
            Kind::Secured { node, .. } => {
                settings.extend(nats_link.map(|port| nats("tls", port)));
                let config = node.join("frontend.toml");
                services::configured(&self.scratch, "frontend", &config, &settings)?
            }
        };
        frontend.server.wait_until("frontend", || socket.exists())?;
        Ok((frontend, socket))
    }

    /// Of chunks, and an image that names them: its grant.
    pub(super) async fn keep(
        &self,
        chunks: &[(Digest, Vec<u8>)],
        others: &[Digest],
    ) -> anyhow::Result<Signed> {
        let project = self.store.project("")?;
        for (digest, stored) in chunks {
            project.put_chunk(*digest, stored.clone().into()).await?;
        }
        let names = chunks.iter().map(|(digest, stored)| (*digest, stored.len() as u32));
        let names = names.chain(others.iter().map(|digest| (*digest, 1)));
        let chunk = |(digest, stored_len): (Digest, u32)| ChunkRef { digest, plain_len: 1, stored_len };
        let map = Map { chunks: names.map(chunk).collect(), ..Map::default() };
        let plain = map.encode()?;
        let map = Digest::of(&plain);
        project.put_index(Index::Map, map, verify::seal_index(&plain)?.into()).await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let grant = Grant {
            project: "default".to_owned(),
            node: NODE.to_owned(),
            manifest_digest: format!("sha256:{}", "1".repeat(64)),
            expires_unix: now + 24 * 3_600,
            node_key: self.tls.own().map_or_else(Vec::new, |own| own.thumbprint.to_vec()),
            tree: Digest::of(b"a tree").as_bytes().to_vec(),
            map: map.as_bytes().to_vec(),
            ..Grant::default()
        };
        Ok(sign(&self.signer, Domain::Grant, grant.encode_to_vec()))
    }

    /// A connection to the cache, as the node makes one; `port`: of what leads there.
    pub(super) fn content(&self, port: u16) -> anyhow::Result<ContentClient<Channel>> {
        let endpoint = Endpoint::from_shared(format!("{}://127.0.0.1:{port}", self.tls.scheme()))?
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .tcp_nodelay(true);
        Ok(ContentClient::new(endpoint.connect_with_connector_lazy(self.tls.connector("cache"))))
    }

    /// Of what the cache counts: a sum over all series with this name.
    pub(super) fn cache_metric(&self, name: &str) -> anyhow::Result<f64> {
        metrics::sum(self.cache_admin, name)
    }

    /// Processor time of the cache so far, in seconds.
    pub(super) fn cache_processor(&self) -> anyhow::Result<f64> {
        let id = match &self.kind {
            Kind::Plain(backend) => backend.cache.server.id(),
            Kind::Secured { services, .. } => {
                services.last().context("the cache is the last service")?.server.id()
            }
        };
        processor_seconds(id)
    }

    /// Waits until the cache counts what is spent, where it is to be counted.
    pub(super) fn is_counted(&self) -> anyhow::Result<bool> {
        match self.kind {
            Kind::Plain(_) => Ok(true),
            Kind::Secured { .. } => {
                Ok(self.cache_metric("sluice_quota_claims_total{outcome=\"answered\"}")? > 0.0)
            }
        }
    }
}

/// User and system time of a process.
fn processor_seconds(id: u32) -> anyhow::Result<f64> {
    /// Of what the kernel tells processes; the same on all machines.
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    let after = stat.rsplit(')').next().context("a name in parentheses")?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).context("a time");
    Ok((ticks(11)? + ticks(12)?) / TICKS)
}

fn cache_settings(scheme: &str, port: u16, admin: u16, link: Option<&Link>) -> Vec<String> {
    let port = link.map_or(port, |link| link.port);
    vec![
        CACHE_MEMORY.to_owned(),
        format!("cache.advertise={scheme}://127.0.0.1:{port}"),
        format!("lifecycle.admin=127.0.0.1:{admin}"),
    ]
}

fn links(cache: Option<Link>, link: Option<&[&str]>, nats_port: u16) -> anyhow::Result<Option<[Link; 2]>> {
    let nats = link.map(|link| Link::start(nats_port, link)).transpose()?;
    Ok(nats.zip(cache).map(|(nats, cache)| [nats, cache]))
}

fn signer(file: PathBuf) -> anyhow::Result<SigningKey> {
    let bytes = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
    let bytes = <[u8; 32]>::try_from(bytes).ok().context("a key of 32 bytes")?;
    Ok(SigningKey::from_bytes(&bytes))
}

pub(super) fn with_grant<T>(message: T, grant: &Signed) -> Request<T> {
    let mut request = Request::new(message);
    let value = MetadataValue::from_bytes(&grant.encode_to_vec());
    request.metadata_mut().insert_bin(GRANT_METADATA, value);
    request
}

/// Waits, bounded, until it is so.
pub(super) async fn until(
    what: &str,
    mut holds: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let begun = std::time::Instant::now();
    while !holds().await? {
        ensure!(begun.elapsed() < READY_MAX, "not within {READY_MAX:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
