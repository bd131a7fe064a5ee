//! Finds again what an earlier process of this node left: images on the disk, roots that still stand.
//!
//! A root of an earlier process reads what is local. What is not, it reads through the connection that a holder
//! kept; without one that is gone, and its image is completed as soon as possible.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::timeout;
use tonic::Status;

use super::{Images, Present};
use crate::mount::MountError;

impl Images {
    pub(super) async fn find(&self) -> anyhow::Result<()> {
        let found = self.blocking(|node| {
            let roots = node.mounts.roots().map_err(MountError::from)?;
            Ok((roots, node.kept_records()?))
        });
        let (roots, kept) = found.await?;
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
                continue;
            }
            tracing::info!(image = manifest, ?targets, "found roots of an earlier process");
            // From the disk: the mesh may be away, and processes wait for what they read.
            let bound = self.node.config.known_resolve_timeout;
            let reference = record.references.first().cloned().unwrap_or_default();
            let record = Arc::new(record);
            match timeout(bound, self.bring_kept(&manifest, &reference, &record)).await {
                Ok(Ok(_turn)) => {}
                Ok(Err(error)) => {
                    tracing::error!(image = manifest, %error, "the image of a standing root cannot be completed");
                }
                Err(_) => tracing::error!(
                    image = manifest,
                    ?bound,
                    "the image of a standing root was not found in time"
                ),
            }
        }
        Ok(())
    }
}

impl super::Node {
    /// Every record on the disk that is still believed.
    fn kept_records(&self) -> Result<Vec<image::ImageRecord>, Status> {
        let disk = |error: std::io::Error| super::disk_status("read the kept records", &error);
        let mut kept = Vec::new();
        for hex in self.objects.records().map_err(disk)? {
            let Some(signed) = self.objects.record(&hex).map_err(disk)? else { continue };
            match self.resolver.believe_kept(&signed) {
                Ok(record) if record.manifest_digest.strip_prefix("sha256:") == Some(&hex) => {
                    kept.push(record)
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
