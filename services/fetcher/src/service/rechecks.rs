//! A renewal asks the image's registry again once it last showed the image long ago: who may no longer read an image there does not read
//! it here for ever.
//!
//! | the registry | the renewal |
//! |---|---|
//! | shows the image | goes on, and the time begins anew |
//! | refuses the credential that the node has for it now | `denied` |
//! | does not answer; has no such image any more; wants a credential, and the node has none | goes on for `grant_recheck_grace`, then `denied` |
//!
//! The credential of a pull is not kept, so that a node has none is no word against it; and registries delete images that run.

use std::time::Duration;

use image::ImageRecord;
use names::ImageName;
use proto::{Grant, Refusal, ResolveRequest};
use tonic::Status;

use super::Service;
use super::grants::Shown;
use crate::import::unix_now;
use crate::source::{Access, BlobPlace, Credential, LayerDescriptor, SourceError};

/// A renewal waits no longer for a registry: the node's own patience is about as long.
const ASK_MAX: Duration = Duration::from_secs(10);
/// Renewals that asked a registry, by outcome (shown, denied, unproven).
const RECHECKS: &str = "sluice_fetcher_grant_rechecks_total";

/// Registries that are asked at the same time: one that does not answer holds up no renewal of others' images.
pub(super) const ASKED_AT_ONCE: usize = 16;

#[derive(Clone, Copy, Debug)]
pub(super) struct Rechecks {
    /// Zero: never.
    pub(super) after: Duration,
    pub(super) grace: Duration,
}

/// What a registry says.
#[derive(Debug)]
enum Word {
    Shown,
    Denied(String),
    /// Neither yes nor no.
    Unproven(String),
}

/// What a renewal does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Ask,
    GoOn,
    Refuse,
}

impl Rechecks {
    /// With an image that was last shown so long ago.
    fn before_asking(&self, age: Duration) -> Next {
        if self.after.is_zero() || age < self.after { Next::GoOn } else { Next::Ask }
    }

    /// When the registry says neither yes nor no.
    fn unproven(&self, age: Duration) -> Next {
        if age < self.after.saturating_add(self.grace) { Next::GoOn } else { Next::Refuse }
    }
}

impl Service {
    /// Where and when the image of a grant was last shown to its holder, asking for it, as `image` says, when that is long ago. An error: it may
    /// be read no more.
    pub(super) async fn shown_again(
        &self,
        grant: &Grant,
        record: &ImageRecord,
        image: &ResolveRequest,
    ) -> Result<Shown, Status> {
        let shown = self.grants.shown(grant);
        // A clock that was put back makes nothing older.
        let age = Duration::from_secs(unix_now().saturating_sub(shown.at_unix));
        if self.rechecks.before_asking(age) == Next::GoOn {
            return Ok(shown);
        }
        let name = self.image_to_ask(&shown, record, image)?;
        let Some(name) = name else { return Ok(shown) };
        let place = self.place(&name);
        let (repository, manifest) = (place.repository.as_str(), grant.manifest_digest.as_str());
        let word = match self.recheck_turns.try_acquire() {
            Ok(_turn) => match tokio::time::timeout(ASK_MAX, self.ask_registry(&name, record, image)).await {
                Ok(word) => word?,
                Err(_) => Word::Unproven(format!("no answer within {ASK_MAX:?}")),
            },
            Err(_) => Word::Unproven("too many registries are being asked".to_owned()),
        };
        let count = |outcome| metrics::counter!(RECHECKS, "outcome" => outcome).increment(1);
        match word {
            Word::Shown => {
                count("shown");
                Ok(Shown { repository: repository.to_owned(), at_unix: unix_now() })
            }
            Word::Denied(reason) => {
                count("denied");
                tracing::warn!(repository, manifest, node = grant.node, reason, "a grant is not renewed");
                Err(Refusal::Denied.status(format!(
                    "{repository}: the registry no longer lets this node read {manifest}: {reason}"
                )))
            }
            Word::Unproven(reason) => {
                count("unproven");
                tracing::warn!(
                    repository,
                    manifest,
                    node = grant.node,
                    ?age,
                    reason,
                    "a registry does not show an image again"
                );
                match self.rechecks.unproven(age) {
                    Next::Refuse => Err(Refusal::Denied.status(format!(
                        "{repository}: the registry has not shown {manifest} to this node for {age:?} (fetcher.grant_recheck, grant_recheck_grace): {reason}"
                    ))),
                    _ => Ok(shown),
                }
            }
        }
    }

    /// What is to be asked for; nothing where there is no registry. An error: another repository than the grant's.
    fn image_to_ask(
        &self,
        shown: &Shown,
        record: &ImageRecord,
        image: &ResolveRequest,
    ) -> Result<Option<ImageName>, Status> {
        let digest = &record.manifest_digest;
        let is_part = is_part(record);
        let parsed = |text: &str| {
            text.parse::<ImageName>().map_err(|error| Refusal::Invalid.status(format!("renewal: {error}")))
        };
        if !shown.repository.is_empty() {
            let granted = parsed(&shown.repository)?;
            if granted.is_local() {
                return Ok(None);
            }
            let place = BlobPlace::of(&granted);
            if !image.reference.is_empty() && !place.holds(&image.reference) {
                let message = format!("renewal: {:?} is not of {}", image.reference, place.repository);
                return Err(Refusal::Invalid.status(message));
            }
            let text = if is_part { place.repository } else { format!("{}@{digest}", place.repository) };
            return parsed(&text).map(Some);
        }
        // Of an older fetcher: the image's own names are all that is known.
        let known = |reference: &&String| image.reference.is_empty() || **reference == image.reference;
        let reference = record.references.iter().find(known).or(record.references.first());
        let Some(reference) = reference else { return Ok(None) };
        let named = parsed(reference)?;
        match named.is_local() {
            true => Ok(None),
            false if is_part => Ok(Some(named)),
            false => parsed(&format!("{}@{digest}", BlobPlace::of(&named).repository)).map(Some),
        }
    }

    async fn ask_registry(
        &self,
        name: &ImageName,
        record: &ImageRecord,
        image: &ResolveRequest,
    ) -> Result<Word, Status> {
        let credential = self.credential(image)?.and_then(Credential::from_proto);
        let has_credential = credential.is_some();
        let access = Access { credential, plain_http: image.plain_http, own: false };
        let asked = async {
            let source = self.sources.open(name, access).await?;
            match record.layers.last().filter(|_| is_part(record)) {
                // A part has no manifest of its own.
                Some(layer) => source.show(&LayerDescriptor::of(layer)).await,
                None => source.show_root().await,
            }
        };
        Ok(match asked.await {
            Ok(()) => Word::Shown,
            Err(error @ SourceError::Denied { .. }) => Word::Denied(error.to_string()),
            Err(error @ SourceError::Unauthorized { .. }) if has_credential => {
                Word::Denied(error.to_string())
            }
            Err(error) => Word::Unproven(error.to_string()),
        })
    }
}

/// Named by its chain id: the lowest layers of an image.
fn is_part(record: &ImageRecord) -> bool {
    let chains = image::chain_ids(record.layers.iter().map(|layer| layer.diff_id.as_str()));
    chains.last().is_some_and(|last| last == record.manifest_digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_asked_when_its_word_is_old_and_waited_for_no_longer_than_said() {
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        let rechecks = Rechecks { after: hours(24), grace: hours(48) };
        for (age, before, unproven) in [
            (hours(0), Next::GoOn, Next::GoOn),
            (hours(23), Next::GoOn, Next::GoOn),
            (hours(24), Next::Ask, Next::GoOn),
            (hours(71), Next::Ask, Next::GoOn),
            (hours(72), Next::Ask, Next::Refuse),
        ] {
            assert_eq!((rechecks.before_asking(age), rechecks.unproven(age)), (before, unproven), "{age:?}");
        }
        let never = Rechecks { after: Duration::ZERO, ..rechecks };
        assert_eq!(never.before_asking(hours(100_000)), Next::GoOn);
        let at_once = Rechecks { grace: Duration::ZERO, ..rechecks };
        assert_eq!(at_once.unproven(hours(24)), Next::Refuse);
    }
}
