//! Grants whose signatures were verified: each is shown with every request, and verifying one costs more than all else that a
//! request for a chunk in memory does.
//!
//! Known by a digest of all their bytes, so nothing that was not verified passes for one that was. When a grant ends is looked at
//! each time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use proto::Grant;

/// Grants remembered: more than one cache's nodes have in use. Of more all are forgotten, and verified anew.
const GRANTS_MAX: usize = 4 * 1024;

#[derive(Debug, Default)]
pub(crate) struct Verified(Mutex<HashMap<[u8; 32], Grant>>);

impl Verified {
    /// What `encoded` says, verified by `verify` unless it was before.
    pub(crate) fn grant<E>(
        &self,
        encoded: &[u8],
        verify: impl FnOnce() -> Result<Grant, E>,
    ) -> Result<Grant, E> {
        let name = *blake3::hash(encoded).as_bytes();
        if let Some(grant) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&name) {
            return Ok(grant.clone());
        }
        let grant = verify()?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= GRANTS_MAX {
            known.clear();
        }
        known.insert(name, grant.clone());
        Ok(grant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
