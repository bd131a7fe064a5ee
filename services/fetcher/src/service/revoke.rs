//! revoke: what was given counts no more.

use std::sync::Arc;
use std::time::Duration;

use names::ImageName;
use prost::Message as _;
use proto::revocation::Scope;
use proto::signed::Domain;
use proto::{Revocation, RevokeReply, RevokeRequest};
use tonic::Status;

use super::Service;
use crate::import::unix_now;

/// Of two fetchers that revoke at once one waits: what each writes is the whole list.
const LEASE: &str = "revocations";
const LEASE_TTL: Duration = Duration::from_secs(15);
const LEASE_PAUSE: Duration = Duration::from_millis(200);
/// One that holds the lease for longer hangs.
const LEASE_WAIT: Duration = Duration::from_secs(20);

impl Service {
    pub(super) async fn revoke(self: Arc<Self>, request: RevokeRequest) -> Result<RevokeReply, Status> {
        if request.restored {
            return self.restored().await;
        }
        let asked = request.revocation.unwrap_or_default();
        let entries = match asked.scope() {
            Scope::Image => self.images_named(&asked).await?,
            _ => vec![asked],
        };
        let lease = self.list_lease().await?;
        let revoked = self.revoke_all(entries, request.undo).await;
        lease.release().await;
        revoked.map(|epoch| RevokeReply { epoch })
    }

    async fn revoke_all(&self, entries: Vec<Revocation>, undo: bool) -> Result<u64, Status> {
        let (now, revocations) = (unix_now(), self.grants.revocations());
        for entry in entries {
            let Revocation { scope, project, name, .. } = entry.clone();
            let list =
                revocations.changed(entry, undo, now, now.saturating_sub(self.grants.oldest())).await?;
            let signed = self.grants.sign(Domain::Revocations, list.encode_to_vec());
            revocations.keep(&signed, &self.bus).await?;
            let scope = Scope::try_from(scope).unwrap_or_default().as_str_name();
            tracing::warn!(scope, project, name, undo, epoch = list.epoch, "revoked");
        }
        Ok(revocations.epoch())
    }

    /// An operator says that the store was restored from a backup: what was revoked since is lost.
    async fn restored(&self) -> Result<RevokeReply, Status> {
        let lease = self.list_lease().await?;
        let kept = async {
            let list = self.grants.revocations().restored().await?;
            tracing::warn!(
                epoch = list.epoch,
                entries = list.entries.len(),
                "an older list of revocations is accepted"
            );
            let signed = self.grants.sign(Domain::Revocations, list.encode_to_vec());
            self.grants.revocations().keep(&signed, &self.bus).await?;
            Ok(RevokeReply { epoch: list.epoch })
        };
        let kept = kept.await;
        lease.release().await;
        kept
    }

    /// By manifest digest; a reference means every image that was imported under it.
    async fn images_named(&self, asked: &Revocation) -> Result<Vec<Revocation>, Status> {
        let project = self.project(&asked.project)?;
        let name = asked.name.parse::<ImageName>().map(|name| name.to_string());
        let of = |manifest: String| Revocation {
            project: project.name().to_owned(),
            name: manifest,
            ..asked.clone()
        };
        let records = self.all_records(&project).await?.believed.into_iter();
        let named = records.filter(|record| {
            record.manifest_digest == asked.name
                || name.as_ref().is_ok_and(|name| record.references.contains(name))
        });
        let found: Vec<Revocation> = named.map(|record| of(record.manifest_digest)).collect();
        match found.is_empty() {
            false => Ok(found),
            // Its grants live on where an image was removed.
            true if asked.name.starts_with("sha256:") => Ok(vec![of(asked.name.clone())]),
            true => Err(Status::not_found(format!(
                "{}: no such image in the project {}",
                asked.name,
                project.name()
            ))),
        }
    }

    async fn list_lease(&self) -> Result<bus::Lease, Status> {
        let begun = tokio::time::Instant::now();
        loop {
            if let Some(lease) = self.bus.lease(LEASE, LEASE_TTL).await? {
                return Ok(lease);
            }
            if begun.elapsed() > LEASE_WAIT {
                return Err(Status::unavailable("another fetcher is changing what is revoked: try again"));
            }
            tokio::time::sleep(LEASE_PAUSE).await;
        }
    }
}
