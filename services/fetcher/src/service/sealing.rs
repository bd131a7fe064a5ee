//! sealing: credentials come sealed, and are opened here for the one request that they came with.

use std::sync::Arc;

use prost::Message as _;
use proto::sealed::context;
use proto::signed::Domain;
use proto::{Credential, InspectRequest, Refusal, ResolveRequest, SealingKey, SealingReply, SealingRequest};
use tonic::Status;

use super::Service;

impl Service {
    pub(super) async fn sealing(self: Arc<Self>, _: SealingRequest) -> Result<SealingReply, Status> {
        let key = SealingKey { x25519: self.sealing.public().to_vec() };
        Ok(SealingReply { key: Some(self.grants.sign(Domain::SealingKey, key.encode_to_vec())) })
    }

    /// What a request came with, sealed or, within one process, not.
    pub(super) fn credential(&self, request: &ResolveRequest) -> Result<Option<Credential>, Status> {
        let ResolveRequest { project, reference, node, sealed_credential, credential, .. } = request;
        self.opened(sealed_credential, &context(project, reference, node), credential)
    }

    pub(super) fn credential_to_inspect(
        &self,
        request: &InspectRequest,
    ) -> Result<Option<Credential>, Status> {
        let InspectRequest { project, reference, sealed_credential, credential, .. } = request;
        self.opened(sealed_credential, &context(project, reference, ""), credential)
    }

    fn opened(
        &self,
        sealed: &[u8],
        context: &[u8],
        plain: &Option<Credential>,
    ) -> Result<Option<Credential>, Status> {
        if sealed.is_empty() {
            return Ok(plain.clone());
        }
        // Nothing of it is said: it is a secret.
        let refused = || {
            Refusal::Denied
                .status("the sealed credential does not open: it is for another fetcher or request")
        };
        let opened = self.sealing.open(sealed, context).map_err(|_| refused())?;
        Credential::decode(&*opened).map(Some).map_err(|_| refused())
    }
}
