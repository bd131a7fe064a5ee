//! Keeps the node's disk within its budget.
//!
//! Over the budget goes, in this order, until it is met: what no present image needs, then whole images
//! that are not mounted, the one used longest ago first. What a mounted image names never goes: its
//! overlay may hold it. [`decide`] is pure; [`enforce`] is the thin shell around it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use image::{Digest, Map};

use crate::downloads::ImageId;
use crate::metrics;
use crate::objects::{Held, Objects};

/// An image whose content is on the node, as far as eviction cares.
#[derive(Clone, Debug)]
pub struct Resident {
    pub id: ImageId,
    pub map: Arc<Map>,
    pub mounted: bool,
    pub last_used: SystemTime,
}

/// What is to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Images to forget, before their objects go.
    pub images: Vec<ImageId>,
    pub objects: Vec<Held>,
}

/// Which images and objects must go so that `used` bytes come down to `budget`.
pub fn decide(used: u64, budget: u64, held: &[Held], images: &[Resident]) -> Decision {
    let mut decision = Decision::default();
    let mut over = used.saturating_sub(budget);
    if over == 0 {
        return decision;
    }
    let mut candidates: Vec<&Resident> = images.iter().filter(|image| !image.mounted).collect();
    candidates.sort_by_key(|image| image.last_used);
    let mut left: Vec<&Held> = held.iter().collect();
    let mut present: Vec<&Resident> = images.iter().collect();
    let mut candidates = candidates.into_iter();
    loop {
        let unneeded;
        (unneeded, left) =
            left.into_iter().partition(|held| !present.iter().any(|image| names(image, &held.digest)));
        for held in unneeded {
            if over == 0 {
                return decision;
            }
            over = over.saturating_sub(held.bytes);
            decision.objects.push(*held);
        }
        match candidates.next() {
            Some(image) if over > 0 => {
                present.retain(|other| other.id != image.id);
                decision.images.push(image.id.clone());
            }
            _ => return decision,
        }
    }
}

/// The objects that only this image needs: what evicting it takes off the disk.
pub fn only_of(image: &ImageId, held: &[Held], images: &[Resident]) -> Vec<Held> {
    let (of, others): (Vec<&Resident>, Vec<&Resident>) = images.iter().partition(|other| other.id == *image);
    let only = |held: &&Held| {
        of.iter().any(|image| names(image, &held.digest))
            && !others.iter().any(|image| names(image, &held.digest))
    };
    held.iter().filter(only).copied().collect()
}

/// Brings the disk back within `budget`. Every image of the node must be among `images`, and none may be mounted
/// or added meanwhile; `forget` takes an image out of the downloads and its indexes off the disk before its
/// objects go. Blocking. Returns the bytes freed from objects.
pub fn enforce(
    objects: &Objects,
    budget: u64,
    images: &[Resident],
    mut forget: impl FnMut(&ImageId) -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let used = objects.measure().context("failed to measure the local objects")?;
    metrics::disk_used(used);
    let held = objects.held().context("failed to list the local objects")?;
    let decision = decide(used, budget, &held, images);
    let mut kept = HashSet::new();
    for image in &decision.images {
        if let Err(error) = forget(image) {
            tracing::warn!(%image, error = format!("{error:#}"), "kept an image that should be evicted");
            kept.insert(image);
        }
    }
    let kept: Vec<&Resident> = images.iter().filter(|image| kept.contains(&image.id)).collect();
    let going: Vec<Held> = decision
        .objects
        .into_iter()
        .filter(|held| !kept.iter().any(|image| names(image, &held.digest)))
        .collect();
    remove(objects, &going)
}

/// Takes objects off the disk; returns the bytes freed. Blocking.
pub fn remove(objects: &Objects, going: &[Held]) -> anyhow::Result<u64> {
    let mut freed = 0;
    for held in going {
        let removed =
            if held.partial { objects.remove_partial(&held.digest) } else { objects.remove(&held.digest) };
        freed += removed.with_context(|| format!("failed to evict object {}", held.digest))?;
    }
    metrics::evicted(freed);
    Ok(freed)
}

fn names(image: &Resident, object: &Digest) -> bool {
    image.map.objects.binary_search_by_key(object, |place| place.digest).is_ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use image::record::ObjectPlace;

    use super::*;

    fn held(name: u8) -> Held {
        Held { digest: Digest::of(&[name]), bytes: 10, partial: false }
    }

    fn image(id: &str, objects: &[u8], mounted: bool, age: u64) -> Resident {
        let place = |name: &u8| ObjectPlace {
            digest: Digest::of(&[*name]),
            len: 10,
            first_chunk: 0,
            chunk_count: 1,
            offset: 0,
        };
        let mut objects: Vec<ObjectPlace> = objects.iter().map(place).collect();
        objects.sort_by_key(|place| place.digest);
        let last_used = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - age);
        Resident {
            id: ImageId::new(id),
            map: Arc::new(Map { chunks: Vec::new(), objects }),
            mounted,
            last_used,
        }
    }

    /// (budget, images that must go, objects that must go, sorted)
    fn check(budget: u64, images: &[Resident], expected_images: &[&str], expected: &[u8]) {
        let held: Vec<Held> = (1..=6).map(held).collect();
        let decision = decide(60, budget, &held, images);
        let ids: Vec<&str> = decision.images.iter().map(ImageId::as_str).collect();
        assert_eq!(ids, expected_images, "budget {budget}");
        let mut went: Vec<u8> = (1..=6)
            .filter(|name| decision.objects.iter().any(|held| held.digest == Digest::of(&[*name])))
            .collect();
        went.sort_unstable();
        assert_eq!(went, expected, "budget {budget}");
    }

    #[test]
    fn the_unneeded_goes_first_then_the_longest_unused_and_never_the_mounted() {
        let images = [
            image("mounted", &[1, 2], true, 900),
            image("older", &[2, 3, 4], false, 500),
            image("newer", &[4, 5], false, 100),
        ];
        check(60, &images, &[], &[]);
        check(50, &images, &[], &[6]);
        check(40, &images, &["older"], &[3, 6]);
        check(20, &images, &["older", "newer"], &[3, 4, 5, 6]);
        check(0, &images, &["older", "newer"], &[3, 4, 5, 6]);
    }

    #[test]
    fn evicting_one_image_spares_what_others_share() {
        let images = [image("a", &[1, 2, 3], false, 1), image("b", &[2, 4], false, 1)];
        let held: Vec<Held> = (1..=6).map(held).collect();
        let going = only_of(&ImageId::new("a"), &held, &images);
        assert_eq!(going, [held[0], held[2]]);
    }

    #[test]
    fn frees_what_it_says_and_spares_an_image_that_cannot_be_forgotten() {
        let folder = tempfile::TempDir::new().unwrap();
        let objects = Objects::open(folder.path()).unwrap();
        for name in 1..=3u8 {
            objects.put(&Digest::of(&[name]), &[name]).unwrap();
        }
        let images = [image("stuck", &[1], false, 2), image("free", &[2], false, 1)];
        let freed = enforce(&objects, 0, &images, |id| match id.as_str() {
            "stuck" => anyhow::bail!("busy"),
            _ => Ok(()),
        });
        let there: Vec<bool> = (1..=3u8).map(|name| objects.contains(&Digest::of(&[name]))).collect();
        assert_eq!(there, [true, false, false]);
        assert_eq!(freed.unwrap(), 2 * objects.used());
    }
}
