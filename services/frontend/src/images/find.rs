//! Finds again what an earlier process of this node left: images on the disk, roots that still stand.
//!
//! A root of an earlier process reads what is local; what it would have read through that process's
//! remote file system is gone with it, so its image is completed as soon as possible.

use std::collections::BTreeSet;
use std::time::{Instant, SystemTime};

use proto::ResolveRequest;
use tonic::Status;

use super::resolve::Answered;
use super::{Images, Present};
use crate::mount::MountError;

impl Images {
    pub(super) async fn find(&self) -> anyhow::Result<()> {
        let found = self.blocking(|node| {
            let roots = node.mounts.roots().map_err(MountError::from)?;
            Ok((roots, node.kept_records()?))
        });
        let (roots, kept) = found.await?;
        for (record, signed) in kept {
            let mounted =
                roots.iter().filter(|root| root.tree == record.tree.digest).map(|root| root.point.clone());
            let targets: BTreeSet<_> = mounted.collect();
            let manifest = record.manifest_digest.clone();
            let mut image = Present::of(record.clone());
            image.targets.clone_from(&targets);
            image.last_used = self.node.names.last_used(&manifest).unwrap_or(SystemTime::UNIX_EPOCH);
            self.present().insert(manifest.clone(), image);
            if targets.is_empty() {
                continue;
            }
            tracing::info!(image = manifest, ?targets, "found roots of an earlier process");
            self.bring_found(Answered::from_memory(record, signed));
        }
        Ok(())
    }

    /// Brings the image of a standing root beside everything else: the mesh may be away.
    fn bring_found(&self, remembered: Answered) {
        let images = self.clone();
        let work = async move {
            let manifest = remembered.record.manifest_digest.clone();
            let request = ResolveRequest {
                project: remembered.record.project.clone(),
                reference: remembered.record.references.first().cloned().unwrap_or_default(),
                node: images.node.config.node.clone(),
                ..ResolveRequest::default()
            };
            // A grant lets the rest be fetched. A name that means another image by now gives none for this one.
            let config = &images.node.config;
            let asked = images.node.resolver.resolve(
                &request,
                config.resolve_timeout,
                config.resolve_timeout,
                |_| {},
            );
            let answered = match asked.await {
                Ok(answered) if answered.record.manifest_digest == manifest => answered,
                Ok(_) => remembered,
                Err(error) => {
                    tracing::warn!(image = manifest, %error, "no grant for the image of a standing root");
                    remembered
                }
            };
            if let Err(error) = Box::pin(images.bring(request, answered, Instant::now())).await {
                tracing::error!(image = manifest, %error, "the image of a standing root cannot be completed");
            }
        };
        let shutdown = self.node.shutdown.clone();
        self.node.tasks.spawn(async move { shutdown.run_until_cancelled_owned(work).await });
    }
}

impl super::Node {
    /// Every record on the disk that is still believed.
    fn kept_records(&self) -> Result<Vec<(image::ImageRecord, Vec<u8>)>, Status> {
        let disk = |error: std::io::Error| super::disk_status("read the kept records", &error);
        let mut kept = Vec::new();
        for hex in self.objects.records().map_err(disk)? {
            let Some(signed) = self.objects.record(&hex).map_err(disk)? else { continue };
            match self.resolver.believe_kept(&signed) {
                Ok(record) if record.manifest_digest.strip_prefix("sha256:") == Some(&hex) => {
                    kept.push((record, signed))
                }
                Ok(record) => {
                    tracing::warn!(record = hex, image = record.manifest_digest, "a kept record is misplaced")
                }
                Err(error) => tracing::warn!(record = hex, %error, "a kept record is of no use"),
            }
        }
        Ok(kept)
    }
}
