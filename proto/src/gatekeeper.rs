//! Who may read: a grant of the fetcher, for the project that is read, not yet expired.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use names::Project;
use prost::Message;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::signed::{Domain, TrustedKeys};
use crate::{Grant, Refusal, Signed};

/// The metadata that carries an encoded `Signed` grant with every call.
pub const GRANT_METADATA: &str = "sluice-grant-bin";

/// Knows whose grants count.
#[derive(Debug)]
pub struct Gatekeeper {
    trusted: TrustedKeys,
    verified: Verified,
}

/// Grants whose signatures were verified, by all their bytes: each is shown with every request, and verifying one costs more than
/// all else that a request for a chunk in memory does. When one ends is looked at each time.
#[derive(Debug, Default)]
struct Verified(Mutex<HashMap<Vec<u8>, Grant>>);

/// Grants remembered, more than one cache's nodes have in use. Of more all are forgotten, and verified anew.
const VERIFIED_MAX: usize = 4 * 1024;

impl Gatekeeper {
    pub fn new(trusted: TrustedKeys) -> Gatekeeper {
        Gatekeeper { trusted, verified: Verified::default() }
    }

    /// The grant under which `project` may be read now.
    pub fn admit(&self, metadata: &MetadataMap, project: &Project) -> Result<Grant, Status> {
        self.admit_at(metadata, project, SystemTime::now())
    }

    fn admit_at(&self, metadata: &MetadataMap, project: &Project, now: SystemTime) -> Result<Grant, Status> {
        let value = metadata.get_bin(GRANT_METADATA).ok_or_else(|| Status::unauthenticated("no grant"))?;
        let invalid =
            |reason: &dyn std::fmt::Display| Status::unauthenticated(format!("invalid grant: {reason}"));
        let bytes = value.to_bytes().map_err(|error| invalid(&error))?;
        let verified = self.verified.grant(&bytes, || {
            let signed = Signed::decode(&*bytes).map_err(|error| invalid(&error))?;
            let payload = self.trusted.verify(Domain::Grant, &signed).map_err(|error| invalid(&error))?;
            Grant::decode(payload).map_err(|error| invalid(&error))
        });
        let grant = verified?;
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        if let Some(ago) = now.checked_sub(grant.expires_unix) {
            // A node renews it and asks again; one that has just got it has a fetcher whose clock is another.
            return Err(Status::unauthenticated(format!(
                "the grant expired {ago} s ago by this cache's clock"
            )));
        }
        if Project::named(&grant.project).as_ref() != Ok(project) {
            return Err(Refusal::Denied
                .status(format!("the grant is for project {:?}, not {project}", grant.project)));
        }
        Ok(grant)
    }
}

impl Verified {
    /// What `encoded` says, verified by `verify` unless it was before.
    fn grant<E>(&self, encoded: &[u8], verify: impl FnOnce() -> Result<Grant, E>) -> Result<Grant, E> {
        if let Some(grant) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(encoded) {
            return Ok(grant.clone());
        }
        let grant = verify()?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= VERIFIED_MAX {
            known.clear();
        }
        known.insert(encoded.to_vec(), grant.clone());
        Ok(grant)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ed25519_dalek::SigningKey;
    use tonic::Code;
    use tonic::metadata::MetadataValue;

    use super::*;
    use crate::signed::sign;

    const EXPIRES: u64 = 1000;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn carrying(bytes: &[u8]) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert_bin(GRANT_METADATA, MetadataValue::from_bytes(bytes));
        metadata
    }

    fn granted(seed: u8, domain: Domain) -> MetadataMap {
        let grant = Grant { project: "p".to_owned(), expires_unix: EXPIRES, ..Grant::default() };
        carrying(&sign(&key(seed), domain, grant.encode_to_vec()).encode_to_vec())
    }

    fn admit(metadata: &MetadataMap, project: &str, at: u64) -> Result<Grant, Code> {
        let gatekeeper = Gatekeeper::new(vec![key(1).verifying_key()].into());
        let now = UNIX_EPOCH + Duration::from_secs(at);
        gatekeeper.admit_at(metadata, &Project::named(project).unwrap(), now).map_err(|status| status.code())
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
    fn a_grant_is_verified_once_and_what_was_refused_each_time() {
        let verified = Verified::default();
        let mut asked = 0;
        for _ in 0..3 {
            let grant = verified.grant(b"one", || {
                asked += 1;
                Ok::<_, ()>(Grant { project: "p".to_owned(), ..Grant::default() })
            });
            assert_eq!(grant.unwrap().project, "p");
            assert!(verified.grant(b"two", || Err("no")).is_err());
        }
        assert_eq!(asked, 1);
    }
}
