//! Puts layers of images that stream into containerd's content store, once the images are complete.
//!
//! Containers need none of them. But what a Docker engine says of an image, saves and pushes it reads from that store, and passes over
//! what is missing there: `docker save` would write an archive without layers, and end with 0. So they come after all, from where the
//! image came from, checked by containerd against their digests. What they refer to is there, so they go with the image.
//!
//! ```text
//! containerd's images --> which lack layers --read for an import just now--> copy of it ---> put --> containerd
//!                                        \--before, or elsewhere; once complete--> registry --/
//! ```

mod attempts;
mod copies;
mod put;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use credentials::Sources as Credentials;
use fetcher::source::{Access, Compression, LayerDescriptor, Sources};
use names::{ImageName, ManifestDigest, Reference};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::install::client::Client;
use crate::install::docker::NAMESPACE;
use crate::install::images::{Lacking, Layer, lacking};
use crate::node::Node;
use crate::settings::Settings;
use attempts::Attempts;
use copies::Copies;

/// How often containerd's images are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Of the disk, what layers leave free.
const LEFT_FREE: u64 = 1 << 30;
/// A label of what came from a registry: which repository has it, so that a push elsewhere need not send it.
const SOURCE: &str = "containerd.io/distribution.source.";
/// A label of a layer: what it is when it is unpacked.
const UNPACKED: &str = "containerd.io/uncompressed";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The socket of the containerd that a Docker engine of this machine works with. Unset: there is none.
    pub containerd: Option<PathBuf>,
    /// Whether layers of images that stream are put into its content store.
    pub layers: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config { containerd: None, layers: true }
    }
}

impl Config {
    /// Whether somebody is to put layers somewhere.
    pub fn wants_layers(&self) -> bool {
        self.layers && self.containerd.is_some()
    }
}

/// Looks after the images of one containerd.
#[derive(Debug)]
pub struct Keeper {
    containerd: PathBuf,
    /// The node, which knows what is complete.
    node: PathBuf,
    state: PathBuf,
    /// Where an import of this process leaves what it read.
    copies: Option<Copies>,
    sources: Sources,
    credentials: Credentials,
}

/// An image under all its names.
#[derive(Debug, Default)]
struct Image {
    names: Vec<String>,
    /// Changes when it is pulled again: what it consists of may have been removed in between.
    stamp: i64,
}

impl Keeper {
    /// Starts it where the settings name a containerd.
    pub fn start(
        settings: &Settings,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let Some(containerd) = settings.docker.containerd.clone().filter(|_| settings.docker.wants_layers())
        else {
            return Ok(());
        };
        let keeper = Keeper {
            containerd,
            node: settings.node_socket().to_owned(),
            state: settings.state.clone(),
            copies: settings.fetcher.layer_copies.clone().map(Copies::new),
            sources: Sources::new(settings.fetcher.source.clone()).context("reach registries for layers")?,
            credentials: Credentials::open(&settings.frontend.credentials)?,
        };
        tasks.spawn(async move { shutdown.run_until_cancelled_owned(keeper.run()).await });
        Ok(())
    }

    async fn run(self) {
        let (mut attempts, mut told) = (Attempts::default(), false);
        loop {
            let looked = Box::pin(self.look(&mut attempts)).await;
            if let Err(error) = &looked
                && !told
            {
                // containerd may be restarting.
                tracing::warn!(
                    error = format!("{error:#}"),
                    "Docker's images cannot be looked at: trying again"
                );
            }
            told = looked.is_err();
            if let Some(copies) = &self.copies {
                copies.tidy().await;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// One round: whatever lacks layers, and is due.
    async fn look(&self, attempts: &mut Attempts) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.containerd, NAMESPACE).await?;
        let images = images(&mut client).await?;
        attempts.keep(|digest| images.contains_key(digest));
        for (digest, image) in images {
            if !attempts.is_due(&digest, image.stamp) {
                continue;
            }
            let Some(lacking) = lacking(&mut client, &digest).await? else {
                attempts.is_whole(&digest, image.stamp);
                continue;
            };
            let lacking = self.take_copies(&mut client, lacking).await;
            if lacking.layers.is_empty() {
                continue; // Looked at once more.
            }
            if attempts.may_wait(&digest) && !self.is_complete(&lacking.manifest).await {
                continue;
            }
            match Box::pin(self.bring(&mut client, &image, &lacking)).await {
                Ok(bytes) => {
                    let image = image.names.join(", ");
                    tracing::info!(
                        image,
                        layers = lacking.layers.len(),
                        bytes,
                        "its layers are in containerd's store now"
                    );
                    attempts.is_done(&digest);
                }
                Err(error) => {
                    let (image, error) = (image.names.join(", "), format!("{error:#}"));
                    let again = attempts.failed(&digest);
                    tracing::warn!(
                        image,
                        error,
                        ?again,
                        "its layers are not in containerd's store: `docker save` and `push` lack them"
                    );
                }
            }
        }
        Ok(())
    }

    /// What nobody waits for is not to slow down what somebody does.
    async fn is_complete(&self, manifest: &str) -> bool {
        let status = async { anyhow::Ok(Node::connect(&self.node).await?.status(false).await?) };
        let Ok(status) = status.await else { return false };
        let found = status.images.into_iter().find(|image| image.manifest_digest == manifest);
        found.is_none_or(|image| image.progress.is_some_and(|progress| progress.complete))
    }

    /// Brings what an image lacks from the first of its repositories that has it; how many bytes.
    async fn bring(&self, client: &mut Client, image: &Image, lacking: &Lacking) -> anyhow::Result<u64> {
        let manifest: ManifestDigest = lacking.manifest.parse().context("read the digest of its manifest")?;
        let mut last = None;
        for name in &image.names {
            // Some names are of no registry: Docker gives them to images that have lost theirs.
            let Some(reference) = Reference::parse(name) else { continue };
            match self.bring_from(client, reference.pinned(&manifest), lacking).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("it has no name of a registry's")))
    }

    async fn bring_from(
        &self,
        client: &mut Client,
        reference: Reference,
        lacking: &Lacking,
    ) -> anyhow::Result<u64> {
        let doing = format!("read {reference}");
        let credential = self.credentials.look_up(&reference.to_string()).await;
        let access = Access { credential, ..Access::default() };
        let source = self.sources.open(&ImageName::Registry(reference), access).await;
        let source = source.with_context(|| doing.clone())?;
        let mut bytes = 0;
        for layer in &lacking.layers {
            self.check_room(layer.size)?;
            let doing = || format!("{doing}, layer {}", layer.digest);
            let labels = self.labels(client, &lacking.manifest, layer).await?;
            let (source, described) = (&source, described(layer));
            let read = |from| async move { Ok(source.blob(&described, from).await?) };
            put::put(client, layer, &labels, read).await.with_context(doing)?;
            bytes += layer.size;
        }
        Ok(bytes)
    }

    /// Takes what an import has just read; what is left of it to bring.
    async fn take_copies(&self, client: &mut Client, mut lacking: Lacking) -> Lacking {
        let Some(copies) = &self.copies else { return lacking };
        let (manifest, layers) = (lacking.manifest.clone(), std::mem::take(&mut lacking.layers));
        for layer in layers {
            let taken = async {
                let Some(copy) = copies.find(&layer).await else { return Ok(false) };
                self.check_room(layer.size)?;
                let labels = self.labels(client, &manifest, &layer).await?;
                put::put(client, &layer, &labels, |from| copy.read(from)).await?;
                anyhow::Ok(true)
            };
            match taken.await {
                Ok(true) => copies.remove(&layer).await,
                Ok(false) => lacking.layers.push(layer),
                Err(error) => {
                    // The registry has it, too.
                    copies.remove(&layer).await;
                    tracing::debug!(
                        layer = layer.digest,
                        error = format!("{error:#}"),
                        "a copy is not taken"
                    );
                    lacking.layers.push(layer);
                }
            }
        }
        lacking
    }

    /// What containerd itself would note with a layer: what it is unpacked, and where the image came from.
    async fn labels(
        &self,
        client: &mut Client,
        manifest: &str,
        layer: &Layer,
    ) -> anyhow::Result<HashMap<String, String>> {
        let labels = client.info(manifest).await?.map(|info| info.labels).unwrap_or_default();
        let origin = labels.into_iter().filter(|(label, _)| label.starts_with(SOURCE));
        Ok(origin.chain([(UNPACKED.to_owned(), layer.diff_id.clone())]).collect())
    }

    fn check_room(&self, size: u64) -> anyhow::Result<()> {
        let disk = rustix::fs::statvfs(&self.state).context("look at the disk")?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        ensure!(
            free >= size.saturating_add(LEFT_FREE),
            "the disk has {} free, of which {} are left alone, and the layer has {}: make room, or set docker.layers = false",
            bytesize::ByteSize(free),
            bytesize::ByteSize(LEFT_FREE),
            bytesize::ByteSize(size)
        );
        Ok(())
    }
}

/// A layer, for its source.
fn described(layer: &Layer) -> LayerDescriptor {
    LayerDescriptor {
        digest: layer.digest.clone(),
        size: layer.size,
        media_type: layer.media_type.clone(),
        diff_id: layer.diff_id.clone(),
        compression: Compression::Unknown,
    }
}

/// All images, by what their names lead to.
async fn images(client: &mut Client) -> anyhow::Result<BTreeMap<String, Image>> {
    let mut images: BTreeMap<String, Image> = BTreeMap::new();
    for found in client.full_images().await? {
        let Some(target) = found.target else { continue };
        let image = images.entry(target.digest).or_default();
        image.names.push(found.name);
        let updated = found
            .updated_at
            .map_or(0, |at| at.seconds.saturating_mul(1_000_000_000).saturating_add(at.nanos.into()));
        image.stamp = image.stamp.max(updated);
    }
    Ok(images)
}
