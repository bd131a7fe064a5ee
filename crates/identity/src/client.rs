//! A node asks for its identity, and again before it ends.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use proto::identity_client::IdentityClient;
use proto::{EnrollPodRequest, EnrollRequest, IdentityReply, RenewIdentityRequest};
use serde::{Deserialize, Serialize};
use tls::Connector;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::config::CA;
use crate::{Given, IDENTITY, Own, Token, now_unix};

/// One question and its answer.
const ASK_MAX: Duration = Duration::from_secs(20);
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// A pod's token is a signed text of one or two kilobytes.
const TOKEN_BYTES_MAX: u64 = 12 * 1024;
/// Between two tries while nobody answers, and between two looks at the clock.
const PAUSE: Duration = Duration::from_secs(30);
/// 1 while this node's identity counts.
const COUNTS: &str = "sluice_identity_valid";
/// Renewals that failed.
const FAILURES: &str = "sluice_identity_renewal_failures_total";

/// The `identity` section of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the identity service answers (`https://host:port`); absent: what the node has is not renewed by itself.
    pub address: Option<String>,
    /// The node's folder, as `sluice enroll` made it.
    pub folder: Option<PathBuf>,
    /// A pod's projected token, with which an identity that is over, as after a long time without power, is got anew. Read each time, as the
    /// kubelet replaces it.
    pub kubernetes_token_file: Option<PathBuf>,
}

/// A pod's projected token.
#[derive(Clone, Debug)]
pub struct PodToken {
    pub file: PathBuf,
    /// The fingerprint of the mesh's authority, as the token says nothing of it.
    pub authority: [u8; 32],
}

/// What the service gives for a token, kept in the node's folder.
pub async fn enroll(own: &Own, address: &str, token: &Token, node: &str) -> anyhow::Result<Given> {
    let mut client = IdentityClient::new(channel(address, Connector::pinned(token.authority, IDENTITY))?);
    let shown = token.to_string();
    let request = EnrollRequest {
        proof: own.prove(&shown, node)?,
        token: shown,
        node: node.to_owned(),
        key: own.key().to_vec(),
        nats_key: own.nats_key(),
    };
    let asking = || format!("enrolling {node} at {address}");
    let reply = timeout(ASK_MAX, client.enroll(request)).await.with_context(asking)?.with_context(asking)?;
    let given = given(reply.into_inner(), address);
    own.keep(&given)?;
    Ok(given)
}

/// The same for a pod's token. `node`: what it must say; empty: whatever it says.
pub async fn enroll_pod(own: &Own, address: &str, token: &PodToken, node: &str) -> anyhow::Result<Given> {
    let shown = read_token(&token.file)?;
    let mut client = IdentityClient::new(channel(address, Connector::pinned(token.authority, IDENTITY))?);
    let request = EnrollPodRequest {
        proof: own.prove(&shown, node)?,
        token: shown,
        node: node.to_owned(),
        key: own.key().to_vec(),
        nats_key: own.nats_key(),
    };
    let asking = || format!("enrolling at {address} with the pod's token {}", token.file.display());
    let reply =
        timeout(ASK_MAX, client.enroll_pod(request)).await.with_context(asking)?.with_context(asking)?;
    let given = Given {
        kubernetes_token_file: Some(std::path::absolute(&token.file)?),
        ..given(reply.into_inner(), address)
    };
    own.keep(&given)?;
    Ok(given)
}

fn read_token(file: &Path) -> anyhow::Result<String> {
    let reading = || format!("reading the pod's token {}", file.display());
    let mut text = String::new();
    std::fs::File::open(file)
        .with_context(reading)?
        .take(TOKEN_BYTES_MAX)
        .read_to_string(&mut text)
        .with_context(reading)?;
    Ok(text.trim().to_owned())
}

/// By which an authority is known whose certificate a file holds.
pub fn authority_of(file: &Path) -> anyhow::Result<[u8; 32]> {
    let reading = || format!("reading the authority's certificate {}", file.display());
    let pem = pem::parse(std::fs::read(file).with_context(reading)?).with_context(reading)?;
    Ok(tls::fingerprint(&pem.into_contents().into()))
}

/// The same for the certificate of before.
pub async fn renew(folder: &Path, address: &str) -> anyhow::Result<Given> {
    let own = Own::open(folder)?;
    let before = Own::given(folder)?.context("this node has no identity yet: `sluice enroll` gets one")?;
    let tls = own.tls().open()?;
    let mut client = IdentityClient::new(channel(address, tls.connector(IDENTITY))?);
    let request = RenewIdentityRequest {
        key: own.key().to_vec(),
        nats_key: own.nats_key(),
        proof: own.prove("", &before.node)?,
    };
    let asking = || format!("renewing the identity of {} at {address}", before.node);
    let reply = timeout(ASK_MAX, client.renew(request)).await.with_context(asking)?.with_context(asking)?;
    let kubernetes_token_file = before.kubernetes_token_file;
    let given = Given { kubernetes_token_file, ..given(reply.into_inner(), address) };
    own.keep(&given)?;
    Ok(given)
}

/// Once more with the pod's token, for the authority that is believed already.
async fn enroll_again(folder: &Path, address: &str, file: &Path, node: &str) -> anyhow::Result<Given> {
    let own = Own::open(folder)?;
    let authority = authority_of(&folder.join(CA))?;
    enroll_pod(&own, address, &PodToken { file: file.to_owned(), authority }, node).await
}

/// Renews in time, until `shutdown`. While nobody answers it is tried again, also when it is over already: a token is the way on then, and a
/// pod's is at hand.
pub async fn keep_renewed(config: Config, shutdown: CancellationToken) {
    let Config { address: Some(address), folder: Some(folder), kubernetes_token_file: pod } = config else {
        return;
    };
    let forever = async {
        loop {
            let read = Own::given(&folder);
            match read {
                Ok(Some(given)) => {
                    metrics::gauge!(COUNTS).set(f64::from(u8::from(given.expires_unix > now_unix())));
                    if given.renew_at_unix() <= now_unix() {
                        let renewed = match &pod {
                            Some(file) if given.expires_unix <= now_unix() => {
                                enroll_again(&folder, &address, file, &given.node).await
                            }
                            _ => renew(&folder, &address).await,
                        };
                        match renewed {
                            Ok(_) => tracing::info!(node = given.node, "the node's identity was renewed"),
                            Err(error) => {
                                metrics::counter!(FAILURES).increment(1);
                                let error = format!("{error:#}");
                                tracing::warn!(error, "the node's identity cannot be renewed");
                            }
                        }
                    }
                }
                Ok(None) => tracing::warn!(folder = %folder.display(), "this node has no identity"),
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the node's identity cannot be read")
                }
            }
            sleep(PAUSE).await;
        }
    };
    shutdown.run_until_cancelled(forever).await;
}

fn channel(address: &str, connector: Connector) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(address.to_owned())
        .with_context(|| format!("{address:?} is no address: https://host:port expected"))?;
    anyhow::ensure!(
        address.starts_with("https://"),
        "{address}: an identity is asked for over https:// alone"
    );
    Ok(endpoint.connect_timeout(CONNECT_MAX).connect_with_connector_lazy(connector))
}

fn given(reply: IdentityReply, address: &str) -> Given {
    Given {
        node: reply.node,
        projects: reply.projects,
        certificate: reply.certificate,
        ca: reply.ca,
        nats_jwt: reply.nats_jwt,
        expires_unix: reply.expires_unix,
        given_unix: 0,
        nats_url: reply.nats_url,
        trusted_keys: reply.trusted_keys,
        identity_url: address.to_owned(),
        kubernetes_token_file: None,
    }
}
