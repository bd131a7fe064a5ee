//! The identity service: gives nodes what proves who they are, and renews it.
//!
//! It keeps nothing but files in the folder of the authority, so any number of them work on one folder; while none runs, nodes that
//! have an identity go on for hours, and no request of theirs waits for it. What it signs are nodes: the key that it has in NATS
//! signs no service, and its certificates for nodes open no server. Who reads its folder can make certificates of any name, so it is
//! the best guarded process of a mesh.

mod kubernetes;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use identity::{Given, Issuer, Refused, Token, proves};
use proto::identity_server::{Identity, IdentityServer};
use proto::{EnrollPodRequest, EnrollRequest, IdentityReply, RenewIdentityRequest};
use serde::{Deserialize, Serialize};
use tls::{Clients, Name, Tls, connection_of};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

pub use kubernetes::Config as KubernetesConfig;
use kubernetes::Reviewer;

/// Requests that are worked on at a time; each signs twice and writes a small file. One more is told to come back.
const REQUESTS_MAX: usize = 64;
/// Tokens of pods that Kubernetes is asked about at the same time.
const REVIEWS_MAX: usize = 16;
/// A request: a token, a name and two keys.
const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// Streams of one connection: a node asks one thing.
const STREAMS_MAX: u32 = 8;
/// A node that connects and asks nothing is left after the sum of these.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Identities given, by kind (enroll, renew).
const GIVEN: &str = "sluice_identities_given_total";
/// Requests refused, by reason.
const REFUSED: &str = "sluice_identities_refused_total";

/// The `identity` section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where nodes ask; port 0 takes any that is free.
    pub listen: SocketAddr,
    /// The folder `authority` of an operator's set.
    pub authority: PathBuf,
    /// Lets in pods by their projected tokens; absent: none.
    pub kubernetes: Option<KubernetesConfig>,
}

/// The whole configuration of the service as a process of its own.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    pub lifecycle: lifecycle::Config,
    pub tls: tls::Config,
    pub identity: Config,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 7470)),
            authority: PathBuf::from("/etc/sluice/authority"),
            kubernetes: None,
        }
    }
}

/// Answers until `shutdown`; where it listens.
pub async fn start(
    config: Config,
    tls: Tls,
    tasks: &TaskTracker,
    shutdown: CancellationToken,
) -> anyhow::Result<SocketAddr> {
    anyhow::ensure!(
        tls.is_on(),
        "tls.ca_file, certificate_file and key_file: identities are given over TLS alone"
    );
    let issuer = Issuer::open(&config.authority).context("opening the authority (identity.authority)")?;
    let reviewer = match config.kubernetes {
        Some(kubernetes) => Some(Reviewer::new(kubernetes).await.context("identity.kubernetes")?),
        None => None,
    };
    let binding = || format!("binding the identity service to {}", config.listen);
    let listener = TcpListener::bind(config.listen).await.with_context(binding)?;
    let address = listener.local_addr().with_context(binding)?;
    let incoming = tls.listen("identity", listener, Clients::Any)?;
    let service = Service {
        issuer: Arc::new(issuer),
        reviewer,
        reviews: Semaphore::new(REVIEWS_MAX),
        turns: Arc::new(Semaphore::new(REQUESTS_MAX)),
    };
    let service = IdentityServer::new(service).max_decoding_message_size(REQUEST_BYTES_MAX);
    let served = Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
    tasks.spawn(async move {
        if let Err(error) = served.await {
            tracing::error!(%error, "answering nodes failed");
            shutdown.cancel();
        }
    });
    tracing::info!(%address, "giving identities");
    Ok(address)
}

struct Service {
    issuer: Arc<Issuer>,
    /// Of tokens of Kubernetes.
    reviewer: Option<Reviewer>,
    reviews: Semaphore,
    turns: Arc<Semaphore>,
}

#[tonic::async_trait]
impl Identity for Service {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<IdentityReply>, Status> {
        let (turn, request) = (self.turn()?, request.into_inner());
        self.work("enroll", turn, move |issuer| enroll(issuer, &request)).await
    }

    async fn enroll_pod(
        &self,
        request: Request<EnrollPodRequest>,
    ) -> Result<Response<IdentityReply>, Status> {
        let request = request.into_inner();
        let EnrollPodRequest { token, node, key, nats_key, proof } = &request;
        if !proves(key, proof, token, node, nats_key) {
            return Err(Refusal::NoProof.status());
        }
        let reviewer = self.reviewer.as_ref().ok_or_else(|| Refusal::NoKubernetes.status())?;
        // Anybody can have a token reviewed: a slow API server takes no turn from those who renew.
        let review = self.reviews.try_acquire().map_err(|_| Refusal::Busy.status())?;
        let node = reviewer.node(token, node).await.map_err(|refused| Refusal::Pod(refused).status())?;
        drop(review);
        let turn = self.turn()?;
        let projects = reviewer.projects();
        self.work("enroll-pod", turn, move |issuer| {
            if issuer.is_revoked(&node) {
                return Err(Refusal::Revoked(node));
            }
            issuer.give(&node, &projects, &request.key, &request.nats_key).map_err(Refusal::Failed)
        })
        .await
    }

    async fn renew(&self, request: Request<RenewIdentityRequest>) -> Result<Response<IdentityReply>, Status> {
        let names = connection_of(&request).peer.map(|peer| peer.names.clone()).unwrap_or_default();
        let (turn, request) = (self.turn()?, request.into_inner());
        self.work("renew", turn, move |issuer| renew(issuer, &names, &request)).await
    }
}

impl Service {
    fn turn(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.turns.clone().try_acquire_owned().map_err(|_| Refusal::Busy.status())
    }

    /// Signing and writing files: on a thread that may block.
    async fn work(
        &self,
        kind: &'static str,
        turn: OwnedSemaphorePermit,
        work: impl FnOnce(&Issuer) -> Result<Given, Refusal> + Send + 'static,
    ) -> Result<Response<IdentityReply>, Status> {
        let issuer = self.issuer.clone();
        let worked = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work(&issuer)
        });
        let given = worked.await.map_err(|_| Status::internal("the work was broken off"))?;
        match given {
            Ok(given) => {
                metrics::counter!(GIVEN, "kind" => kind).increment(1);
                tracing::info!(node = given.node, kind, "gave a node its identity");
                Ok(Response::new(reply(given)))
            }
            Err(refusal) => Err(refusal.status()),
        }
    }
}

fn enroll(issuer: &Issuer, request: &EnrollRequest) -> Result<Given, Refusal> {
    let EnrollRequest { token, node, key, nats_key, proof } = request;
    if !proves(key, proof, token, node, nats_key) {
        return Err(Refusal::NoProof);
    }
    if issuer.is_revoked(node) {
        return Err(Refusal::Revoked(node.clone()));
    }
    let token: Token = token.parse().map_err(Refusal::Token)?;
    let opened = issuer.tokens().redeem(&token, node, key).map_err(Refusal::Token)?;
    issuer.give(node, &opened.projects, key, nats_key).map_err(Refusal::Failed)
}

fn renew(issuer: &Issuer, names: &[Name], request: &RenewIdentityRequest) -> Result<Given, Refusal> {
    let RenewIdentityRequest { key, nats_key, proof } = request;
    let mut found: Option<(String, Vec<String>)> = None;
    for name in names {
        let Name::Node { project, node } = name else { return Err(Refusal::NoNode) };
        let (known, projects) = found.get_or_insert_with(|| (node.clone(), Vec::new()));
        if known != node {
            return Err(Refusal::NoNode);
        }
        projects.push(project.clone());
    }
    let (node, projects) = found.ok_or(Refusal::NoNode)?;
    if !proves(key, proof, "", &node, nats_key) {
        return Err(Refusal::NoProof);
    }
    if issuer.is_revoked(&node) {
        return Err(Refusal::Revoked(node));
    }
    issuer.give(&node, &projects, key, nats_key).map_err(Refusal::Failed)
}

/// Why a node is given nothing.
enum Refusal {
    Busy,
    /// It has not shown that it has the key.
    NoProof,
    /// The connection does not prove that it is a node.
    NoNode,
    Revoked(String),
    Token(Refused),
    /// A pod's token.
    Pod(kubernetes::Refused),
    /// There is no cluster whose pods are let in.
    NoKubernetes,
    Failed(anyhow::Error),
}

impl Refusal {
    fn status(self) -> Status {
        let (reason, status) = match self {
            Refusal::Busy => ("busy", Status::unavailable("the identity service is busy: ask again")),
            Refusal::NoProof => {
                ("proof", Status::unauthenticated("the request does not prove that its key is the asker's"))
            }
            Refusal::NoNode => (
                "certificate",
                Status::unauthenticated("renewing needs the node's own certificate, and one node's alone"),
            ),
            Refusal::Revoked(node) => ("revoked", Status::permission_denied(format!("{node} was revoked"))),
            Refusal::Failed(error) => return failed(&error),
            Refusal::Token(Refused::Failed(error)) => return failed(&error),
            Refusal::NoKubernetes => (
                "no-kubernetes",
                Status::failed_precondition(
                    "this identity service lets in no pods (identity.kubernetes): `sluice keys token` makes a token",
                ),
            ),
            Refusal::Pod(kubernetes::Refused::Unreachable(error)) => {
                tracing::error!(error, "a pod's token cannot be judged");
                ("unreachable", Status::unavailable("Kubernetes cannot be asked about the token: ask again"))
            }
            // Its pod knows where it is.
            Refusal::Pod(refused @ kubernetes::Refused::OtherNode(_)) => {
                ("token", Status::permission_denied(format!("the pod's token does not count: {refused}")))
            }
            Refusal::Pod(refused) => {
                tracing::warn!(%refused, "refused a pod's token");
                (
                    "token",
                    Status::permission_denied(
                        "the pod's token does not count: unknown, over, of another audience or service account, or on no node",
                    ),
                )
            }
            // Not which of them it was: who guesses learns nothing. The log says it.
            Refusal::Token(refused) => {
                tracing::warn!(%refused, "refused a token");
                (
                    "token",
                    Status::permission_denied(
                        "the token does not count: unknown, used, over, or for another node; `sluice keys token` makes a new one",
                    ),
                )
            }
        };
        metrics::counter!(REFUSED, "reason" => reason).increment(1);
        status
    }
}

fn failed(error: &anyhow::Error) -> Status {
    metrics::counter!(REFUSED, "reason" => "failed").increment(1);
    tracing::error!(error = format!("{error:#}"), "an identity could not be given");
    Status::internal("the identity could not be given: the service's log says why")
}

fn reply(given: Given) -> IdentityReply {
    IdentityReply {
        node: given.node,
        projects: given.projects,
        certificate: given.certificate,
        ca: given.ca,
        nats_jwt: given.nats_jwt,
        expires_unix: given.expires_unix,
        nats_url: given.nats_url,
        trusted_keys: given.trusted_keys,
    }
}
