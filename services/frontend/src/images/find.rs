//! Finds again what an earlier process of this node left: images on the disk, roots that still stand.
//!
//! A root of an earlier process reads what is local. What is not, it reads through the connection that a holder
//! kept; without one that is gone, and its image is completed as soon as possible. Whatever hinders that, who reads waits, and it is
//! tried again.

use std::collections::BTreeSet;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt as _;
use image::ImageRecord;
use proto::DownloadProgress;
use tokio::time::{sleep, timeout};
use tonic::Status;

use super::{Images, Present};
use crate::fuse::Awaited;
use crate::mount::MountError;

/// Images of standing roots that are opened at the same time: containers wait, each tree is hashed.
const OPENED_AT_ONCE: usize = 4;
/// How long the start waits for one of them. Then others are served, and who reads this one waits.
const OPEN_WAIT: Duration = Duration::from_secs(1);
/// After an image that containers read could not be opened: the first wait, and the longest.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

impl Images {
    pub(super) async fn find(&self) -> anyhow::Result<()> {
        let found = self.blocking(|node| {
            let roots = node.mounts.roots().map_err(MountError::from)?;
            let (kept, all_good) = node.kept_records()?;
            // What a record names that is not believed today may be believed again tomorrow.
            if all_good {
                node.remove_unnamed_indexes(&kept, &roots);
            }
            Ok((roots, kept))
        });
        let (roots, kept) = found.await?;
        let (mut standing, mut others) = (Vec::new(), Vec::new());
        for record in kept {
            let mounted =
                roots.iter().filter(|root| root.tree == record.tree.digest).map(|root| root.point.clone());
            let targets: BTreeSet<_> = mounted.collect();
            let manifest = record.manifest_digest.clone();
            let mut image = Present::of(record.clone());
            image.targets.clone_from(&targets);
            image.last_used = self.node.names.last_used(&manifest).unwrap_or(SystemTime::UNIX_EPOCH);
            self.present().insert(manifest.clone(), image);
            if targets.is_empty() {
                others.push(record);
                continue;
            }
            tracing::info!(image = manifest, ?targets, "found roots of an earlier process");
            standing.push((Arc::new(record), self.node.known.await_image()));
        }
        let open = |(record, awaited)| self.open_standing(record, awaited);
        futures::stream::iter(standing).for_each_concurrent(OPENED_AT_ONCE, open).await;
        let (images, shutdown) = (self.clone(), self.node.shutdown.clone());
        let count = async move { images.count(others).await };
        self.node.tasks.spawn(async move { shutdown.run_until_cancelled_owned(count).await });
        Ok(())
    }

    /// From the disk: the mesh may be away, and processes wait for what they read. What takes longer, or fails, is tried again
    /// beside what is served meanwhile.
    async fn open_standing(&self, record: Arc<ImageRecord>, awaited: Awaited) {
        match timeout(OPEN_WAIT, self.open_once(&record)).await {
            Ok(true) => {}
            opened => {
                if opened.is_err() {
                    let image = &*record.manifest_digest;
                    tracing::error!(image, ?OPEN_WAIT, "the image of a standing root was not opened in time");
                }
                let images = self.clone();
                // Until it is open: the end of this process tells nobody who waits that it will never be. The next one serves them.
                let awaited = ManuallyDrop::new(awaited);
                self.node.tasks.spawn(async move {
                    images.open_at_last(&record).await;
                    drop(ManuallyDrop::into_inner(awaited));
                });
            }
        }
    }

    /// Until it is open, or nobody needs it any more.
    async fn open_at_last(&self, record: &Arc<ImageRecord>) {
        let mut wait = RETRY_FIRST;
        loop {
            sleep(wait).await;
            let unused = |image: &Present| image.targets.is_empty();
            if self.get(&record.manifest_digest).map_or(true, |image| unused(&image)) {
                return;
            }
            if self.open_once(record).await {
                tracing::info!(image = record.manifest_digest, "opened the image of a standing root");
                return;
            }
            wait = RETRY_MAX.min(wait * 2);
        }
    }

    async fn open_once(&self, record: &Arc<ImageRecord>) -> bool {
        let image = &*record.manifest_digest;
        let reference = record.references.first().cloned().unwrap_or_default();
        let opened = self.bring_kept(image, &reference, record).await;
        if let Err(error) = &opened {
            tracing::error!(image, %error, "the image of a standing root cannot be opened");
        }
        opened.is_ok()
    }

    /// How much of each image is here, one after the other: for whoever asks before it is opened.
    async fn count(&self, records: Vec<ImageRecord>) {
        for record in records {
            let (manifest, bytes_total) = (record.manifest_digest, record.plain_bytes);
            let counted = self.blocking(move |node| Ok(node.counted(&record.map.digest, bytes_total)));
            let Ok(Some(found)) = counted.await else { continue };
            if let Some(image) = self.present().get_mut(&manifest) {
                image.found = Some(found);
            }
        }
    }
}

impl super::Node {
    /// What is here of the objects that a kept map names, as far as they are whole.
    fn counted(&self, map: &image::Digest, bytes_total: u64) -> Option<DownloadProgress> {
        let map = self.objects.map(map).ok().flatten()?;
        let here = map.objects.iter().filter(|place| self.objects.contains_of_len(&place.digest, place.len));
        let (objects_local, bytes_local) =
            here.fold((0, 0), |(count, bytes), place| (count + 1, bytes + map.data_len(place)));
        let objects_total = map.objects.len() as u64;
        let complete = objects_local == objects_total;
        Some(DownloadProgress {
            objects_local,
            objects_total,
            bytes_local,
            bytes_total,
            complete,
            ..DownloadProgress::default()
        })
    }

    /// Every record on the disk that is still believed, and whether all of them are.
    fn kept_records(&self) -> Result<(Vec<ImageRecord>, bool), Status> {
        let disk = |error: std::io::Error| super::disk_status("read the kept records", &error);
        let (mut kept, mut all_good) = (Vec::new(), true);
        for hex in self.objects.records().map_err(disk)? {
            let signed = match self.objects.record(&hex) {
                Ok(Some(signed)) => signed,
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!(record = hex, %error, "a kept record cannot be read");
                    all_good = false;
                    continue;
                }
            };
            match self.resolver.believe_kept(&signed) {
                Ok(record) if record.manifest_digest.strip_prefix("sha256:") == Some(&hex) => {
                    kept.push(record);
                    continue;
                }
                Ok(record) => {
                    tracing::warn!(record = hex, image = record.manifest_digest, "a kept record is misplaced")
                }
                Err(error) => tracing::warn!(record = hex, %error, "a kept record is of no use"),
            }
            all_good = false;
        }
        Ok((kept, all_good))
    }
}
