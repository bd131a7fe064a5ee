//! Credentials of pulls that are under way: in memory, and only for as long as the pull goes on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Credential;

/// By image; the newest of several pulls at once stands last.
type Known = BTreeMap<String, Vec<(u64, Credential)>>;

#[derive(Debug, Default)]
pub(crate) struct Pulls {
    known: Arc<Mutex<Known>>,
}

/// Makes a credential known until dropped.
#[derive(Debug)]
pub struct Pull {
    image: String,
    number: u64,
    known: Arc<Mutex<Known>>,
}

impl Pulls {
    pub(crate) fn begin(&self, image: String, credential: Credential) -> Pull {
        let mut known = lock(&self.known);
        let of = known.entry(image.clone()).or_default();
        let number = of.last().map_or(0, |(last, _)| last + 1);
        of.push((number, credential));
        Pull { image, number, known: self.known.clone() }
    }

    pub(crate) fn of(&self, image: &str) -> Option<Credential> {
        let known = lock(&self.known);
        known.get(image)?.last().map(|(_, credential)| credential.clone())
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        let mut known = lock(&self.known);
        if let Some(of) = known.get_mut(&self.image) {
            of.retain(|(number, _)| *number != self.number);
            if of.is_empty() {
                known.remove(&self.image);
            }
        }
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    // Each change is one insertion or removal.
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_known_while_its_pull_goes_on() {
        let pulls = Pulls::default();
        let token = |text: &str| Credential::IdentityToken(text.to_owned());
        let first = pulls.begin("a".to_owned(), token("first"));
        let second = pulls.begin("a".to_owned(), token("second"));
        assert_eq!((pulls.of("a"), pulls.of("b")), (Some(token("second")), None));
        drop(second);
        assert_eq!(pulls.of("a"), Some(token("first")));
        drop(first);
        assert!(lock(&pulls.known).is_empty());
    }
}
