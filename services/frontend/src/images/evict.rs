//! Taking images off the node: asked of us, or because the disk's budget is used up.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};
use tonic::Status;

use super::resolve::manifest_digest;
use super::{Images, Node, Present, disk_status};
use crate::budget::{self, Resident};
use crate::downloads::ImageId;
use crate::metrics;
use crate::objects::Names;

/// How often the disk is compared with its budget.
const BUDGET_EVERY: Duration = Duration::from_secs(10);
/// How long it is not compared again when there was no room to make: at first, and at most.
const REST_FIRST: Duration = Duration::from_secs(60);
const REST_MAX: Duration = Duration::from_secs(3600);
/// How long an eviction that somebody asked for waits for mounts that are being made.
const EVICT_WAIT: Duration = Duration::from_secs(30);

type Kept = (usize, BTreeSet<String>);

/// The pause after a search for room that found none: it looks at every object, and mounts wait for it. As long as the same images
/// stay, another one finds none either, but for what the downloads of images that are gone still brought.
#[derive(Debug, Default)]
struct Rest {
    of: Option<(Kept, Instant)>,
    pause: Duration,
}

impl Rest {
    fn goes_on(&self, kept: &Kept) -> bool {
        self.of.as_ref().is_some_and(|(of, until)| of == kept && Instant::now() < *until)
    }

    fn begin(&mut self, kept: Kept) {
        let same = self.of.as_ref().is_some_and(|(of, _)| *of == kept);
        self.pause = if same { REST_MAX.min(self.pause * 2) } else { REST_FIRST };
        self.of = Some((kept, Instant::now() + self.pause));
    }
}

impl Images {
    /// Takes one image off the node; refused while it is mounted. Returns the bytes that this freed.
    pub(crate) async fn evict(&self, manifest: &str) -> Result<u64, Status> {
        let busy = || Status::unavailable("images are being mounted: try again");
        let alone = self.node.turns.alone(EVICT_WAIT).await.ok_or_else(busy)?;
        self.compare_with_table().await?;
        if self.node.is_claimed(manifest) {
            return Err(Status::failed_precondition(format!(
                "{manifest} is an image of the container runtime: remove it there"
            )));
        }
        if let Some(target) = self.get(manifest)?.targets.first() {
            return Err(Status::failed_precondition(format!(
                "{manifest} is mounted at {}",
                target.display()
            )));
        }
        let (images, manifest) = (self.clone(), manifest.to_owned());
        self.whole("the eviction", async move {
            let _alone = alone;
            let residents = images.list();
            let evicting = images.clone();
            images
                .blocking(move |node| {
                    let residents = node.residents(residents.into_iter())?;
                    let indexes = evicting.forget(&manifest)?;
                    let objects = budget::remove_only_of(&ImageId::new(&manifest), &node.objects, &residents);
                    Ok(indexes + objects.map_err(|error| Status::internal(format!("{error:#}")))?)
                })
                .await
        })
        .await
    }

    /// Keeps the disk within its budget for as long as the node runs.
    pub(super) fn keep_budget(&self) {
        let (images, shutdown) = (self.clone(), self.node.shutdown.clone());
        self.node.tasks.spawn(async move {
            images.measure_disk().await;
            let mut rest = Rest::default();
            while shutdown.run_until_cancelled(sleep(BUDGET_EVERY)).await.is_some() {
                images.give_up_rest().await;
                let kept = images.kept();
                if !images.over_budget() || rest.goes_on(&kept) {
                    continue;
                }
                // While something is being mounted there is no saying what is needed: the next time, then.
                let Some(alone) = images.node.turns.alone(Duration::ZERO).await else { continue };
                let enforced = images.enforce_budget().await;
                drop(alone);
                if let Err(error) = enforced {
                    tracing::error!(error = error.message(), "the disk cannot be kept within its budget");
                    continue;
                }
                match images.over_budget() {
                    true => {
                        images.node.events.over_budget();
                        rest.begin(kept);
                    }
                    false => rest = Rest::default(),
                }
            }
        });
    }

    fn over_budget(&self) -> bool {
        self.node.objects.used() > self.node.config.disk_budget.as_u64()
    }

    /// The images that stay whatever the budget is, and how many there are besides.
    fn kept(&self) -> Kept {
        let present = self.present();
        let stays = |(manifest, image): &(&String, &Present)| {
            !image.targets.is_empty() || self.node.is_claimed(manifest)
        };
        let kept: BTreeSet<String> =
            present.iter().filter(stays).map(|(manifest, _)| manifest.clone()).collect();
        (present.len() - kept.len(), kept)
    }

    /// What an earlier process left counts, too. A node may hold a million objects, so nobody waits for it.
    async fn measure_disk(&self) {
        let measured = self.blocking(|node| {
            node.objects.measure().map_err(|error| disk_status("measure what is on the disk", &error))
        });
        match measured.await {
            Ok(used) => metrics::disk_used(used),
            Err(error) => tracing::error!(error = error.message(), "the disk's use is not known"),
        }
    }

    async fn enforce_budget(&self) -> Result<(), Status> {
        self.compare_with_table().await?;
        let (images, residents) = (self.clone(), self.list());
        self.blocking(move |node| {
            let residents = node.residents(residents.into_iter())?;
            let budget = node.config.disk_budget.as_u64();
            let forget = |image: &ImageId| {
                images.forget(image.as_str())?;
                tracing::info!(image = image.as_str(), "evicted for the disk's budget");
                Ok(())
            };
            let freed = budget::enforce(&node.objects, budget, &residents, forget);
            let freed = freed.map_err(|error| Status::internal(format!("{error:#}")))?;
            tracing::info!(freed, used = node.objects.used(), budget, "made room on the disk");
            Ok(())
        })
        .await
    }

    /// Takes an image out of memory, and its record and indexes off the disk. Blocking. Returns the bytes freed.
    fn forget(&self, manifest: &str) -> Result<u64, Status> {
        let image = self.get(manifest)?;
        self.unload(manifest);
        Handle::current().block_on(self.node.downloads.settled());
        self.present().remove(manifest);
        let (tree, map) = (image.record.tree.digest, image.record.map.digest);
        let shared = self.present().values().any(|other| other.record.tree.digest == tree);
        let node = &self.node;
        let remove = |hex: &str| -> std::io::Result<u64> {
            node.names.forget(manifest)?;
            let record = node.objects.remove_record(hex)? + node.objects.remove_grant(hex)?;
            if shared {
                return Ok(record);
            }
            node.mounts.remove_tree(&tree);
            Ok(record + node.objects.remove_indexes(&tree, &map)?)
        };
        remove(manifest_digest(manifest)?.hex()).map_err(|error| disk_status("forget the image", &error))
    }
}

impl Node {
    /// All images of the node with what they name: of those that are not at rest, from their maps on the disk.
    fn residents(&self, images: impl Iterator<Item = (String, Present)>) -> Result<Vec<Resident>, Status> {
        let mut residents = Vec::new();
        for (manifest, image) in images {
            let from_disk = || -> std::io::Result<Arc<Names>> {
                // Without a map nothing of it can be read either: its objects are needed by nobody.
                let map = self.objects.map(&image.record.map.digest)?.unwrap_or_default();
                Ok(Arc::new(self.objects.names(&map)?))
            };
            let names = self.known.at_rest(&manifest).map_or_else(from_disk, Ok);
            residents.push(Resident {
                id: ImageId::new(&manifest),
                names: names.map_err(|error| disk_status("look up what an image names", &error))?,
                mounted: !image.targets.is_empty() || self.is_claimed(&manifest),
                last_used: image.last_used,
            });
        }
        Ok(residents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_search_for_room_that_found_none_is_repeated_ever_more_seldom_or_when_other_images_stay() {
        let kept = |name: &str| (1, BTreeSet::from([name.to_owned()]));
        let mut rest = Rest::default();
        assert!(!rest.goes_on(&kept("a")));
        for pause in [REST_FIRST, REST_FIRST * 2, REST_FIRST * 4] {
            rest.begin(kept("a"));
            assert!(
                rest.goes_on(&kept("a")) && !rest.goes_on(&kept("b")) && !rest.goes_on(&(0, kept("a").1))
            );
            tokio::time::advance(pause).await;
            assert!(!rest.goes_on(&kept("a")), "{pause:?}");
        }
        (0..20).for_each(|_| rest.begin(kept("a")));
        assert_eq!(rest.pause, REST_MAX);
        rest.begin(kept("b"));
        assert_eq!(rest.pause, REST_FIRST);
    }
}
