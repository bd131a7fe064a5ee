//! Who may read: a grant of the fetcher, for the project that is read, not yet expired.

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
#[derive(Clone, Debug)]
pub struct Gatekeeper {
    trusted: TrustedKeys,
}

impl Gatekeeper {
    pub fn new(trusted: TrustedKeys) -> Gatekeeper {
        Gatekeeper { trusted }
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
        let signed = Signed::decode(bytes).map_err(|error| invalid(&error))?;
        let payload = self.trusted.verify(Domain::Grant, &signed).map_err(|error| invalid(&error))?;
        let grant = Grant::decode(payload).map_err(|error| invalid(&error))?;
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
}
