//! Keeps the node's disk within its budget.
//!
//! Over the budget goes, in this order, until it is met: what no present image needs, then whole images
//! that are not mounted, the one used longest ago first. What a mounted image names never goes: its
//! overlay may hold it.
//!
//! A node may hold a million objects: they are looked at one shard at a time, and what images name is read from files.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use image::Digest;

use crate::downloads::ImageId;
use crate::metrics;
use crate::objects::{Held, Names, Objects};

/// An image whose content is on the node, as far as eviction cares.
#[derive(Clone, Debug)]
pub struct Resident {
    pub id: ImageId,
    pub names: Arc<Names>,
    pub mounted: bool,
    pub last_used: SystemTime,
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
    let over = used.saturating_sub(budget);
    let mut candidates: Vec<&Resident> = images.iter().filter(|image| !image.mounted).collect();
    candidates.sort_by_key(|image| image.last_used);
    let mut needed: Vec<&Resident> = images.iter().collect();
    let mut freed = sweep(objects, over, &needed)?;
    for image in candidates {
        if freed >= over {
            break;
        }
        if let Err(error) = forget(&image.id) {
            tracing::warn!(image = %image.id, error = format!("{error:#}"), "kept an image that should be evicted");
            continue;
        }
        needed.retain(|other| other.id != image.id);
        freed += sweep(objects, over - freed, &needed)?;
    }
    metrics::evicted(freed);
    Ok(freed)
}

/// Takes off the disk what only this image needs; returns the bytes freed. Blocking.
pub fn remove_only_of(image: &ImageId, objects: &Objects, images: &[Resident]) -> anyhow::Result<u64> {
    let (of, others): (Vec<&Resident>, Vec<&Resident>) = images.iter().partition(|other| other.id == *image);
    let mut freed = 0;
    for shard in 0..=u8::MAX {
        let spared = named(shard, &others)?;
        for object in named(shard, &of)?.difference(&spared) {
            for partial in [false, true] {
                freed += remove(objects, &Held { digest: *object, bytes: 0, partial })?;
            }
        }
    }
    metrics::evicted(freed);
    Ok(freed)
}

/// Takes off the disk what none of these images needs, until `enough` bytes are free.
fn sweep(objects: &Objects, enough: u64, needed: &[&Resident]) -> anyhow::Result<u64> {
    let mut freed = 0;
    for shard in 0..=u8::MAX {
        if freed >= enough {
            break;
        }
        let spared = named(shard, needed)?;
        let held = objects.held_in(shard).context("failed to list the local objects")?;
        for held in held.iter().filter(|held| !spared.contains(&held.digest)) {
            if freed < enough {
                freed += remove(objects, held)?;
            }
        }
    }
    Ok(freed)
}

/// What these images name in one shard.
fn named(shard: u8, images: &[&Resident]) -> anyhow::Result<HashSet<Digest>> {
    let mut named = HashSet::new();
    for image in images {
        let context = || format!("failed to read what {} names", image.id);
        for name in image.names.in_shard(shard).with_context(context)? {
            named.insert(name.with_context(context)?.digest);
        }
    }
    Ok(named)
}

fn remove(objects: &Objects, held: &Held) -> anyhow::Result<u64> {
    let removed =
        if held.partial { objects.remove_partial(&held.digest) } else { objects.remove(&held.digest) };
    removed.with_context(|| format!("failed to evict object {}", held.digest))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use image::Map;
    use image::record::ObjectPlace;

    use super::*;

    /// A node with the objects 1 to 6, each of one block, and what a block takes.
    fn node() -> (tempfile::TempDir, Objects, u64) {
        let folder = tempfile::TempDir::new().unwrap();
        let objects = Objects::open(folder.path()).unwrap();
        for name in 1..=6u8 {
            objects.put(&Digest::of(&[name]), &[name]).unwrap();
        }
        let block = objects.used() / 6;
        (folder, objects, block)
    }

    fn image(objects: &Objects, id: &str, names: &[u8], mounted: bool, age: u64) -> Resident {
        let place = |name: &u8| ObjectPlace {
            digest: Digest::of(&[*name]),
            len: 1,
            first_chunk: 0,
            chunk_count: 1,
            offset: 0,
        };
        let mut places: Vec<ObjectPlace> = names.iter().map(place).collect();
        places.sort_by_key(|place| place.digest);
        let names = objects.names(&Map { objects: places, ..Map::default() }).unwrap();
        let last_used = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - age);
        Resident { id: ImageId::new(id), names: Arc::new(names), mounted, last_used }
    }

    fn gone(objects: &Objects) -> Vec<u8> {
        (1..=6).filter(|name| !objects.contains(&Digest::of(&[*name]))).collect()
    }

    /// (blocks of budget, images that must go, objects that must go)
    fn check(blocks: u64, expected_images: &[&str], expected: &[u8]) {
        let (_folder, objects, block) = node();
        let images = [
            image(&objects, "mounted", &[1, 2], true, 900),
            image(&objects, "older", &[2, 3, 4], false, 500),
            image(&objects, "newer", &[4, 5], false, 100),
        ];
        let mut forgotten = Vec::new();
        let freed = enforce(&objects, blocks * block, &images, |id| {
            forgotten.push(id.as_str().to_owned());
            Ok(())
        });
        assert_eq!(freed.unwrap(), expected.len() as u64 * block);
        assert_eq!(
            (forgotten.as_slice(), gone(&objects).as_slice()),
            (&*expected_images.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>(), expected),
            "{blocks}"
        );
    }

    #[test]
    fn the_unneeded_goes_first_then_the_longest_unused_and_never_the_mounted() {
        check(6, &[], &[]);
        check(5, &[], &[6]);
        check(4, &["older"], &[3, 6]);
        check(2, &["older", "newer"], &[3, 4, 5, 6]);
        check(0, &["older", "newer"], &[3, 4, 5, 6]);
    }

    #[test]
    fn evicting_one_image_spares_what_others_share() {
        let (_folder, objects, block) = node();
        let images = [image(&objects, "a", &[1, 2, 3], false, 1), image(&objects, "b", &[2, 4], false, 1)];
        assert_eq!(remove_only_of(&ImageId::new("a"), &objects, &images).unwrap(), 2 * block);
        assert_eq!(gone(&objects), [1, 3]);
    }

    #[test]
    fn an_image_that_cannot_be_forgotten_is_spared() {
        let (_folder, objects, block) = node();
        let images = [image(&objects, "stuck", &[1], false, 2), image(&objects, "free", &[2], false, 1)];
        let freed = enforce(&objects, 0, &images, |id| match id.as_str() {
            "stuck" => anyhow::bail!("busy"),
            _ => Ok(()),
        });
        assert_eq!(gone(&objects), [2, 3, 4, 5, 6]);
        assert_eq!((freed.unwrap(), objects.used()), (5 * block, block));
    }
}
