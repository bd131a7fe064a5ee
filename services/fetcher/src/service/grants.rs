//! Grants: what a node shows a cache to be served an image's content.
//!
//! Given where a registry said yes to the caller's credential; renewed as long as the node shows the one before. So a node
//! needs no credential after the pull, and a grant that leaks is soon of no use.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use image::ImageRecord;
use prost::Message as _;
use proto::signed::Domain;
use proto::{Grant, RenewReply, RenewRequest, Resolution, Signed};
use tonic::Status;

use super::Service;
use crate::import::unix_now;
use crate::key::Keys;

#[derive(Debug)]
pub(super) struct Grants {
    keys: Keys,
    ttl: Duration,
    /// After it expired.
    renewable: Duration,
}

impl Grants {
    pub(super) fn new(keys: Keys, ttl: Duration, renewable: Duration) -> Grants {
        Grants { keys, ttl, renewable }
    }

    /// What it names of the image is what may be read under it, also after the image's record became another.
    pub(super) fn give(&self, node: &str, image: &ImageRecord) -> Signed {
        self.sign(Grant {
            project: image.project.clone(),
            node: node.to_owned(),
            manifest_digest: image.manifest_digest.clone(),
            tree: image.tree.digest.as_bytes().to_vec(),
            map: image.map.digest.as_bytes().to_vec(),
            ..Grant::default()
        })
    }

    fn sign(&self, grant: Grant) -> Signed {
        let grant = Grant { expires_unix: expires(SystemTime::now(), self.ttl), ..grant };
        self.keys.sign(Domain::Grant, grant.encode_to_vec())
    }

    /// Says that a question has this answer.
    pub(super) fn vouch(&self, question: Resolution, image: &ImageRecord) -> Signed {
        let resolution = Resolution { manifest_digest: image.manifest_digest.clone(), ..question };
        self.keys.sign(Domain::Resolution, resolution.encode_to_vec())
    }

    /// What a grant says, if a fetcher signed it; it may have expired.
    pub(super) fn believe(&self, signed: &Signed) -> Result<Grant, Status> {
        let refused =
            |error: String| Status::permission_denied(format!("the grant is not to be trusted: {error}"));
        let payload = self.keys.verify(Domain::Grant, signed).map_err(|error| refused(error.to_string()))?;
        Grant::decode(payload).map_err(|error| refused(error.to_string()))
    }

    /// The same, if it did not expire too long ago to be renewed.
    pub(super) fn renewable(&self, signed: &Signed) -> Result<Grant, Status> {
        let grant = self.believe(signed)?;
        if grant.expires_unix.saturating_add(self.renewable.as_secs()) <= unix_now() {
            let message = "the grant expired too long ago to be renewed: pull the image again";
            return Err(Status::permission_denied(message));
        }
        Ok(grant)
    }
}

/// In seconds, rounded up: no grant counts for less than it is said to.
fn expires(now: SystemTime, ttl: Duration) -> u64 {
    let end = now.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_add(ttl);
    end.as_secs().saturating_add(u64::from(end.subsec_nanos() > 0))
}

impl Service {
    pub(super) async fn renew(self: Arc<Self>, request: RenewRequest) -> Result<RenewReply, Status> {
        let grant = request.grant.ok_or_else(|| Status::invalid_argument("the request holds no grant"))?;
        let grant = self.grants.renewable(&grant)?;
        let manifest = &grant.manifest_digest;
        if self.records.image(&self.project(&grant.project)?, manifest).await?.is_none() {
            return Err(Status::not_found(format!("{manifest} is not in the store")));
        }
        // All but its end stays as it was: the node reads by the record that it has.
        Ok(RenewReply { grant: Some(self.grants.sign(grant)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    fn grants(folder: &std::path::Path, ttl: u64, renewable: u64) -> Grants {
        let config = Config { signing_key_file: folder.join("key"), ..Config::default() };
        let keys = Keys::load(&config).unwrap();
        Grants::new(keys, Duration::from_secs(ttl), Duration::from_secs(renewable))
    }

    #[test]
    fn a_grant_counts_for_as_long_as_it_is_said_to() {
        let now = UNIX_EPOCH + Duration::from_millis(10_900);
        assert_eq!(expires(now, Duration::from_secs(1)), 12, "not for a tenth of a second");
        assert_eq!(expires(now, Duration::from_millis(100)), 11);
    }

    #[test]
    fn a_grant_is_renewed_until_it_expired_too_long_ago() {
        let folder = tempfile::tempdir().unwrap();
        let given = grants(folder.path(), 0, 0);
        let grant = Grant {
            project: "p".to_owned(),
            node: "n".to_owned(),
            manifest_digest: "sha256:m".to_owned(),
            expires_unix: unix_now() - 10,
            ..Grant::default()
        };
        let expired = given.keys.sign(Domain::Grant, grant.encode_to_vec());
        let grant = grants(folder.path(), 0, 100).renewable(&expired).unwrap();
        assert_eq!((grant.project.as_str(), grant.node.as_str()), ("p", "n"));
        let error = grants(folder.path(), 0, 0).renewable(&expired).unwrap_err();
        assert!(error.message().contains("pull the image again"), "{error}");
        let other = tempfile::tempdir().unwrap();
        let error = grants(other.path(), 100, 100).believe(&expired).unwrap_err();
        assert_eq!(error.code(), tonic::Code::PermissionDenied);
    }
}
