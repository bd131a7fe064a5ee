//! Credentials of pulls, sealed to the fetchers: whoever carries a request, or listens where it passes, reads none.

use std::time::Duration;

use prost::Message as _;
use proto::sealed::context;
use proto::signed::{Domain, TrustedKeys};
use proto::{Credential, InspectRequest, Refusal, ResolveRequest, SealingKey, SealingRequest};
use tls::sealing::seal;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::Status;

use crate::{Bus, Transport};

/// How long a fetcher may take to name its key.
const ASK_MAX: Duration = Duration::from_secs(10);
/// How long the key is used without asking again: after a change of keys nobody waits for longer.
const KNOWN_FOR: Duration = Duration::from_secs(5 * 60);

/// Seals, once it has asked for whom.
#[derive(Debug)]
pub struct Sealer {
    bus: Bus,
    trusted: TrustedKeys,
    known: Mutex<Option<(Vec<u8>, Instant)>>,
}

impl Sealer {
    /// `trusted`: the fetchers' keys. Without any, nobody can be told from another, and credentials go as they are.
    pub fn new(bus: Bus, trusted: TrustedKeys) -> Sealer {
        Sealer { bus, trusted, known: Mutex::default() }
    }

    /// The request with its credential sealed; as it is where nothing leaves this process.
    pub async fn resolve(&self, mut request: ResolveRequest) -> Result<ResolveRequest, Status> {
        if let Some(credential) = self.to_seal(&mut request.credential) {
            let context = context(&request.project, &request.reference, &request.node);
            request.sealed_credential = self.seal(&credential, &context).await?;
        }
        Ok(request)
    }

    /// The same.
    pub async fn inspect(&self, mut request: InspectRequest) -> Result<InspectRequest, Status> {
        if let Some(credential) = self.to_seal(&mut request.credential) {
            let context = context(&request.project, &request.reference, "");
            request.sealed_credential = self.seal(&credential, &context).await?;
        }
        Ok(request)
    }

    fn to_seal(&self, credential: &mut Option<Credential>) -> Option<Credential> {
        let leaves = matches!(self.bus.transport, Transport::Nats(_)) && !self.trusted.is_empty();
        if leaves { credential.take() } else { None }
    }

    async fn seal(&self, credential: &Credential, context: &[u8]) -> Result<Vec<u8>, Status> {
        let unusable = |error: &dyn std::fmt::Display| {
            Refusal::Denied.status(format!(
                "the credential is not sent: the key to seal it for is not to be trusted: {error}"
            ))
        };
        let mut known = self.known.lock().await;
        let fresh = known.as_ref().filter(|(_, asked)| asked.elapsed() < KNOWN_FOR);
        let public = match fresh {
            Some((public, _)) => public.clone(),
            None => {
                let reply = self.bus.call(SealingRequest {}, ASK_MAX).await?;
                let signed = reply.key.unwrap_or_default();
                let payload =
                    self.trusted.verify(Domain::SealingKey, &signed).map_err(|error| unusable(&error))?;
                let key = SealingKey::decode(payload).map_err(|error| unusable(&error))?;
                *known = Some((key.x25519.clone(), Instant::now()));
                key.x25519
            }
        };
        seal(&public, &credential.encode_to_vec(), context).map_err(|error| unusable(&error))
    }
}
