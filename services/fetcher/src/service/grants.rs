//! Grants: what a node shows a cache to be served an image's content.
//!
//! Given where a registry said yes to the caller's credential; renewed as long as the node shows the one before, and now and then
//! the registry says yes again ([`super::rechecks`]). So a grant that leaks is soon of no use.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use image::ImageRecord;
use prost::Message as _;
use proto::signed::Domain;
use proto::{Grant, RenewReply, RenewRequest, Resolution, ResolveRequest, Signed};
use revocations::Revocations;
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
    revocations: Revocations,
}

/// Who a grant is for.
#[derive(Clone, Debug, Default)]
pub(super) struct Holder {
    pub(super) node: String,
    /// The thumbprint of the node's key; empty in a mesh without TLS.
    pub(super) key: Vec<u8>,
    pub(super) shown: Shown,
    /// When what it is given ends at the latest, in seconds.
    pub(super) until_unix: Option<u64>,
}

/// Where the image was shown to the holder, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) repository: String,
    pub(super) at_unix: u64,
}

impl Grants {
    pub(super) fn new(keys: Keys, ttl: Duration, renewable: Duration, revocations: Revocations) -> Grants {
        Grants { keys, ttl, renewable, revocations }
    }

    /// What it names of the image is what may be read under it, also after the image's record became another. An error: the node
    /// was revoked.
    pub(super) fn give(&self, holder: &Holder, image: &ImageRecord) -> Result<Signed, Status> {
        let grant = Grant {
            project: image.project.clone(),
            manifest_digest: image.manifest_digest.clone(),
            tree: image.tree.digest.as_bytes().to_vec(),
            map: image.map.digest.as_bytes().to_vec(),
            repository: holder.shown.repository.clone(),
            shown_unix: holder.shown.at_unix,
            ..Grant::default()
        };
        self.grant(holder, grant)
    }

    /// Where and when a registry last showed the image, as far as the grant says so; at the latest when it was given.
    pub(super) fn shown(&self, grant: &Grant) -> Shown {
        let given = grant.expires_unix.saturating_sub(self.ttl.as_secs());
        let at_unix = if grant.shown_unix == 0 { given } else { grant.shown_unix };
        Shown { repository: grant.repository.clone(), at_unix }
    }

    /// From now on, to this holder.
    fn grant(&self, holder: &Holder, grant: Grant) -> Result<Signed, Status> {
        self.revocations.admit_node(&grant.project, &holder.node)?;
        let expires = expires(SystemTime::now(), self.ttl);
        let grant = Grant {
            node: holder.node.clone(),
            node_key: holder.key.clone(),
            expires_unix: holder.until_unix.map_or(expires, |until| expires.min(until)),
            epoch: self.revocations.epoch(),
            ..grant
        };
        Ok(self.keys.sign(Domain::Grant, grant.encode_to_vec()))
    }

    pub(super) fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    pub(super) fn sign(&self, domain: Domain, payload: Vec<u8>) -> Signed {
        self.keys.sign(domain, payload)
    }

    /// How old a grant may be, in seconds, that can still be renewed.
    pub(super) fn oldest(&self) -> u64 {
        self.ttl.saturating_add(self.renewable).as_secs()
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
        self.revocations.admit(&grant)?;
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
        self.projects.check(&grant.project)?;
        let (node, key) = (grant.node.clone(), checked_key(request.node_key)?);
        let manifest = &grant.manifest_digest;
        let Some(image) = self.records.image(&self.project(&grant.project)?, manifest).await? else {
            return Err(Status::not_found(format!("{manifest} is not in the store")));
        };
        // The context of a sealed credential: what the grant says, and not what the request says of itself.
        let asked = ResolveRequest {
            project: grant.project.clone(),
            node: grant.node.clone(),
            ..request.image.unwrap_or_default()
        };
        let shown = self.shown_again(&grant, &image.record, &asked).await?;
        // What may be read stays as it was: the node reads by the record that it has.
        let grant = Grant { repository: shown.repository.clone(), shown_unix: shown.at_unix, ..grant };
        let holder = Holder { node, key, shown, until_unix: None };
        Ok(RenewReply { grant: Some(self.grants.grant(&holder, grant)?) })
    }
}

/// A thumbprint, or nothing.
pub(super) fn checked_key(key: Vec<u8>) -> Result<Vec<u8>, Status> {
    match key.len() {
        0 | 32 => Ok(key),
        length => Err(Status::invalid_argument(format!("a node's key is named by 32 bytes, not {length}"))),
    }
}

#[cfg(test)]
mod tests {
    use image::record::IndexRef;

    use super::*;
    use crate::Config;

    async fn grants(folder: &std::path::Path, ttl: u64, renewable: u64) -> Grants {
        let config = Config { signing_key_file: folder.join("key"), ..Config::default() };
        let keys = Keys::load(&config).unwrap();
        let store = store::Store::open(folder.join("store").to_str().unwrap(), &Default::default()).unwrap();
        let (tasks, shutdown) = Default::default();
        let bus = bus::Bus::in_process();
        let revocations =
            Revocations::follow((store, keys.trusted()), bus, proto::Role::Fetcher, &tasks, shutdown).await;
        Grants::new(keys, Duration::from_secs(ttl), Duration::from_secs(renewable), revocations)
    }

    #[test]
    fn a_grant_counts_for_as_long_as_it_is_said_to() {
        let now = UNIX_EPOCH + Duration::from_millis(10_900);
        assert_eq!(expires(now, Duration::from_secs(1)), 12, "not for a tenth of a second");
        assert_eq!(expires(now, Duration::from_millis(100)), 11);
    }

    #[tokio::test]
    async fn a_grant_is_renewed_until_it_expired_too_long_ago() {
        let folder = tempfile::tempdir().unwrap();
        let given = grants(folder.path(), 0, 0).await;
        let grant = Grant {
            project: "p".to_owned(),
            node: "n".to_owned(),
            manifest_digest: "sha256:m".to_owned(),
            expires_unix: unix_now() - 10,
            ..Grant::default()
        };
        let expired = given.keys.sign(Domain::Grant, grant.encode_to_vec());
        let grant = grants(folder.path(), 0, 100).await.renewable(&expired).unwrap();
        assert_eq!((grant.project.as_str(), grant.node.as_str()), ("p", "n"));
        let error = grants(folder.path(), 0, 0).await.renewable(&expired).unwrap_err();
        assert!(error.message().contains("pull the image again"), "{error}");
        let other = tempfile::tempdir().unwrap();
        let error = grants(other.path(), 100, 100).await.believe(&expired).unwrap_err();
        assert_eq!(error.code(), tonic::Code::PermissionDenied);
    }

    fn image() -> ImageRecord {
        let index = IndexRef { digest: image::Digest::of(b""), plain_len: 0, stored_len: 0 };
        ImageRecord {
            project: "p".to_owned(),
            manifest_digest: "sha256:m".to_owned(),
            references: Vec::new(),
            config: Vec::new(),
            tree: index,
            map: index,
            layers: Vec::new(),
            files: 0,
            plain_bytes: 0,
            stored_bytes: 0,
            imported_unix: 0,
            imported_by: String::new(),
        }
    }

    #[tokio::test]
    async fn a_grant_names_the_key_and_the_epoch_and_a_revoked_node_gets_none() {
        let folder = tempfile::tempdir().unwrap();
        let grants = grants(folder.path(), 100, 100).await;
        let holder = Holder { node: "n1".to_owned(), key: vec![7; 32], ..Holder::default() };
        let signed = grants.give(&holder, &image()).unwrap();
        let given = grants.renewable(&signed).unwrap();
        assert_eq!((given.node_key, given.epoch), (vec![7; 32], 0));
        assert!(checked_key(vec![1]).is_err());
        let of_image = proto::Revocation {
            scope: proto::revocation::Scope::Image.into(),
            project: "p".to_owned(),
            name: "sha256:m".to_owned(),
            ..Default::default()
        };
        let node = proto::Revocation {
            scope: proto::revocation::Scope::Node.into(),
            name: "n1".to_owned(),
            ..Default::default()
        };
        let bus = bus::Bus::in_process();
        let revoke = async |entry| {
            let list = grants.revocations().changed(entry, false, 1, 0).await.unwrap();
            grants
                .revocations()
                .keep(&grants.sign(Domain::Revocations, list.encode_to_vec()), &bus)
                .await
                .unwrap();
        };
        revoke(of_image).await;
        let error = grants.renewable(&signed).unwrap_err();
        assert!(error.message().contains("pull the image again"), "{error}");
        grants.renewable(&grants.give(&holder, &image()).unwrap()).unwrap();
        revoke(node).await;
        assert!(grants.give(&holder, &image()).is_err());
        grants.give(&Holder { node: "n2".to_owned(), ..holder }, &image()).unwrap();
    }
}
