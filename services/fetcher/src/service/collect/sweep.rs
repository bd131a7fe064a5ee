//! What goes: listed first as a whole, so that it is known how much that is before anything is deleted.

use futures::{StreamExt, TryStreamExt, stream};
use proto::CollectReply;
use store::{Kind, ProjectStore, StoreError, Stored};
use tonic::Status;

use super::roots::{Marks, bytes_of};
use super::unread;

/// How large a part of the store, in percent of its objects or of their bytes, may go without that anybody removed the image that
/// named it. Imports that were cut short leave less, and so do layers of images that were imported again; of a store that
/// has lost its image records it is nearly all.
pub(super) const UNASKED_MAX_PERCENT: u64 = 25;
/// Deletions at the same time.
const DELETES_AT_ONCE: usize = 16;
/// What is deleted, in this order. Records of layers before their chunks: an import that finds such a record reads nothing of the layer,
/// also after a collection that was cut short.
const ORDER: [Kind; 7] =
    [Kind::Layer, Kind::Source, Kind::Profile, Kind::Repository, Kind::Chunk, Kind::Tree, Kind::Map];

#[derive(Debug, Default)]
pub(super) struct Plan {
    project: String,
    /// A store may hold ten million chunks: as small as can be.
    doomed: Vec<(Kind, [u8; 32])>,
    /// Of removed images, which say nothing any more once what they named is gone; and of attempts to import, which count for hours.
    notes: Vec<Stored>,
    all: Amount,
    goes: Amount,
    /// Of what goes, that which no removed image named.
    unasked: Amount,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amount {
    objects: u64,
    bytes: u64,
}

pub(super) async fn plan(
    project: &ProjectStore,
    marks: &Marks,
    expired: &(dyn Fn(&Stored) -> bool + Sync),
) -> Result<Plan, Status> {
    let mut plan = Plan { project: project.name().to_owned(), ..Plan::default() };
    for kind in ORDER {
        let mut listed = project.list(kind).boxed();
        while let Some(stored) = listed.try_next().await.map_err(|error| unread(project, &error))? {
            plan.all.add(&stored);
            if marks.named.keeps(&stored) || !expired(&stored) {
                continue;
            }
            let Some(name) = bytes_of(&stored.hex) else { continue };
            plan.goes.add(&stored);
            if !marks.removed.keeps(&stored) {
                plan.unasked.add(&stored);
            }
            plan.doomed.push((kind, name));
        }
    }
    let notes = project.list(Kind::Removed).chain(project.list(Kind::Attempts));
    let notes = notes.try_filter(|note| std::future::ready(expired(note)));
    plan.notes = notes.try_collect().await.map_err(|error| unread(project, &error))?;
    Ok(plan)
}

impl Plan {
    pub(super) fn reply(&self) -> CollectReply {
        CollectReply {
            deleted: self.goes.objects,
            deleted_bytes: self.goes.bytes,
            kept: self.all.objects - self.goes.objects,
            needs_force: String::new(),
        }
    }

    /// Why so much should not go without that somebody looks.
    pub(super) fn asks_for_force(&self) -> Option<String> {
        let too_much = |unasked: u64, all: u64| {
            u128::from(unasked) * 100 > u128::from(all) * u128::from(UNASKED_MAX_PERCENT)
        };
        let (unasked, all) = (self.unasked, self.all);
        (too_much(unasked.objects, all.objects) || too_much(unasked.bytes, all.bytes)).then(|| {
            format!(
                "collect {}: {} of {} objects ({} of {} bytes) would go, more than {UNASKED_MAX_PERCENT} % of the store, without that \
                 an image which named them was removed; nothing is deleted: see with `sluice ls` whether images are missing; \
                 `sluice gc --force` deletes so much all the same",
                self.project, unasked.objects, all.objects, unasked.bytes, all.bytes
            )
        })
    }

    pub(super) async fn carry_out(self, project: &ProjectStore) -> Result<(), StoreError> {
        for kind in ORDER {
            let of_kind = self.doomed.iter().filter(|(doomed, _)| *doomed == kind);
            delete(project, of_kind.map(|(kind, name)| (*kind, hex::encode(name)))).await?;
        }
        delete(project, self.notes.into_iter().map(|note| (note.kind, note.hex))).await
    }
}

async fn delete(
    project: &ProjectStore,
    doomed: impl Iterator<Item = (Kind, String)>,
) -> Result<(), StoreError> {
    let deletions = stream::iter(doomed.map(Ok));
    deletions
        .try_for_each_concurrent(
            DELETES_AT_ONCE,
            |(kind, hex)| async move { project.delete(kind, &hex).await },
        )
        .await
}

impl Amount {
    fn add(&mut self, stored: &Stored) {
        self.objects += 1;
        self.bytes += stored.size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_a_quarter_by_objects_or_by_bytes_is_asked_about() {
        let asks = |objects, bytes| {
            let (all, unasked) = (Amount { objects: 100, bytes: 1_000 }, Amount { objects, bytes });
            Plan { all, unasked, ..Plan::default() }.asks_for_force().is_some()
        };
        assert_eq!(UNASKED_MAX_PERCENT, 25);
        assert!(!asks(25, 250) && asks(26, 0) && asks(0, 251));
        assert!(Plan::default().asks_for_force().is_none(), "an empty store");
    }
}
