//! Who may read: a grant of the fetcher, for the project that is read, not yet expired.

use std::time::{SystemTime, UNIX_EPOCH};

use ed25519_dalek::VerifyingKey;
use prost::Message;
use proto::signed::{Domain, verify};
use proto::{Grant, Signed};
use tonic::{Code, Status};
use tonic::metadata::MetadataMap;

use crate::meters;
use crate::verified::Verified;

/// The metadata that carries an encoded `Signed` grant with every call.
const GRANT: &str = "sluice-grant-bin";
/// What an empty project name means.
const DEFAULT_PROJECT: &str = "default";

/// Knows whose grants count.
#[derive(Debug)]
pub(crate) struct Gatekeeper {
    trusted: Vec<VerifyingKey>,
    verified: Verified,
}

impl Gatekeeper {
    pub(crate) fn new(trusted: Vec<VerifyingKey>) -> Gatekeeper {
        Gatekeeper { trusted, verified: Verified::default() }
    }

    /// The grant under which `project` may be read now.
    pub(crate) fn admit(&self, metadata: &MetadataMap, project: &str) -> Result<Grant, Status> {
        self.admit_at(metadata, project, SystemTime::now()).inspect_err(|status| {
            let reason = if status.code() == Code::PermissionDenied { "other-project" } else { "no-grant" };
            metrics::counter!(meters::REFUSED, "reason" => reason).increment(1);
        })
    }

    fn admit_at(&self, metadata: &MetadataMap, project: &str, now: SystemTime) -> Result<Grant, Status> {
        let value = metadata.get_bin(GRANT).ok_or_else(|| Status::unauthenticated("no grant"))?;
        let invalid =
            |reason: &dyn std::fmt::Display| Status::unauthenticated(format!("invalid grant: {reason}"));
        let bytes = value.to_bytes().map_err(|error| invalid(&error))?;
        let grant = self.verified.grant(&bytes, || {
            let signed = Signed::decode(&*bytes).map_err(|error| invalid(&error))?;
            let payload = verify(&self.trusted, Domain::Grant, &signed).map_err(|error| invalid(&error))?;
            Grant::decode(payload).map_err(|error| invalid(&error))
        })?;
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        if let Some(ago) = now.checked_sub(grant.expires_unix) {
            // A node renews it and asks again; one that has just got it has a fetcher whose clock is another.
            return Err(Status::unauthenticated(format!(
                "the grant expired {ago} s ago by this cache's clock"
            )));
        }
        if named(&grant.project) != named(project) {
            return Err(Status::permission_denied(format!(
                "the grant is for project {:?}, not {project:?}",
                grant.project
            )));
        }
        Ok(grant)
    }
}

/// A project's name, spelled out.
pub(crate) fn named(project: &str) -> &str {
    if project.is_empty() { DEFAULT_PROJECT } else { project }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ed25519_dalek::SigningKey;
    use proto::signed::sign;
    use tonic::metadata::MetadataValue;

    use super::*;

    const EXPIRES: u64 = 1000;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn carrying(bytes: &[u8]) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert_bin(GRANT, MetadataValue::from_bytes(bytes));
        metadata
    }

    fn granted(seed: u8, domain: Domain) -> MetadataMap {
        let grant = Grant { project: "p".to_owned(), expires_unix: EXPIRES, ..Grant::default() };
        carrying(&sign(&key(seed), domain, grant.encode_to_vec()).encode_to_vec())
    }

    fn admit(metadata: &MetadataMap, project: &str, at: u64) -> Result<Grant, Code> {
        let gatekeeper = Gatekeeper::new(vec![key(1).verifying_key()]);
        let now = UNIX_EPOCH + Duration::from_secs(at);
        gatekeeper.admit_at(metadata, project, now).map_err(|status| status.code())
    }

    #[test]
    fn admits_only_a_valid_grant_of_the_same_project() {
        let metadata = granted(1, Domain::Grant);
        assert_eq!(admit(&metadata, "p", EXPIRES - 1).unwrap().project, "p");
        assert_eq!(admit(&metadata, "p", EXPIRES), Err(Code::Unauthenticated));
        assert_eq!(admit(&metadata, "q", 0), Err(Code::PermissionDenied));
        assert_eq!(admit(&metadata, "", 0), Err(Code::PermissionDenied));
        assert_eq!(admit(&MetadataMap::new(), "p", 0), Err(Code::Unauthenticated));
        assert_eq!(admit(&granted(2, Domain::Grant), "p", 0), Err(Code::Unauthenticated));
        assert_eq!(admit(&granted(1, Domain::ImageRecord), "p", 0), Err(Code::Unauthenticated));
        assert_eq!(admit(&carrying(b"\xff\xff\xff"), "p", 0), Err(Code::Unauthenticated));
    }

    #[test]
    fn no_name_means_the_default_project() {
        assert_eq!(named(""), "default");
        assert_eq!(named("p"), "p");
    }
}
