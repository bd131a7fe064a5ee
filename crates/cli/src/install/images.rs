//! Images that cannot start under the snapshotter that containerd uses now.
//!
//! containerd has an image's layers as blobs, as snapshots of one snapshotter, or as both; with
//! `discard_unpacked_layers`, and where an image streamed, there are no blobs. Under another snapshotter it would
//! unpack the blobs again, and fails where they are gone. Such an image is taken off containerd's list: Kubernetes
//! pulls it when it is next needed. What runs is not touched, as its own snapshots stay.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::client::Client;

/// An image under all its names.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub names: Vec<String>,
    pub digest: String,
    #[serde(flatten)]
    pub verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// Its layers are snapshots, or blobs that will become some.
    Starts,
    /// So many of its layers are neither.
    Cannot { missing: usize, layers: usize },
    /// Not an image of this machine, or not whole: containerd does not start it anyway.
    Unknown { reason: String },
}

impl Verdict {
    pub fn cannot_start(&self) -> bool {
        matches!(self, Verdict::Cannot { .. })
    }
}

/// A manifest or an index: what of them is needed.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

#[derive(Debug, Deserialize)]
struct Config {
    rootfs: Rootfs,
}

#[derive(Debug, Deserialize)]
struct Rootfs {
    diff_ids: Vec<String>,
}

/// All images, each judged for `snapshotter`.
pub async fn find(client: &mut Client, snapshotter: &str) -> anyhow::Result<Vec<Finding>> {
    let mut images: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, digest) in client.images().await? {
        images.entry(digest).or_default().push(name);
    }
    let mut findings = Vec::new();
    for (digest, names) in images {
        let verdict = judge(client, snapshotter, &digest).await;
        let verdict = verdict.with_context(|| format!("look at image {}", names.join(", ")))?;
        findings.push(Finding { names, digest, verdict });
    }
    Ok(findings)
}

/// What of an image for this machine containerd lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    pub manifest: String,
    pub layers: Vec<Layer>,
}

/// A layer as manifest and configuration say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    pub digest: String,
    pub size: u64,
    pub media_type: String,
    pub diff_id: String,
}

/// Looks for the layers of an image; none: all are here, or nobody can tell. Those that no registry hands out are nobody's business.
pub async fn lacking(client: &mut Client, digest: &str) -> anyhow::Result<Option<Lacking>> {
    let Some(found) = document::<Document>(client, digest).await? else { return Ok(None) };
    let mut manifests = Vec::new();
    if found.config.is_some() {
        manifests.push((digest.to_owned(), found));
    } else {
        for manifest in found.manifests.into_iter().filter(is_for_this_machine) {
            if let Some(document) = document(client, &manifest.digest).await? {
                manifests.push((manifest.digest, document));
            }
        }
    }
    for (manifest, document) in manifests {
        let layers = lacking_of(client, document).await?;
        if !layers.is_empty() {
            return Ok(Some(Lacking { manifest, layers }));
        }
    }
    Ok(None)
}

async fn lacking_of(client: &mut Client, manifest: Document) -> anyhow::Result<Vec<Layer>> {
    let Some(config) = manifest.config else { return Ok(Vec::new()) };
    let Some(config) = document::<Config>(client, &config.digest).await? else { return Ok(Vec::new()) };
    let mut layers = Vec::new();
    for (layer, diff_id) in manifest.layers.into_iter().zip(config.rootfs.diff_ids) {
        let Descriptor { media_type, digest, size, .. } = layer;
        let handed_out = !media_type.contains("nondistributable") && !media_type.contains("foreign");
        if handed_out && !client.has_blob(&digest).await? {
            layers.push(Layer { digest, size, media_type, diff_id });
        }
    }
    Ok(layers)
}

/// None: it is not here, or not what it should be.
async fn document<T: DeserializeOwned>(client: &mut Client, digest: &str) -> anyhow::Result<Option<T>> {
    let bytes = client.read(digest).await?;
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

async fn judge(client: &mut Client, snapshotter: &str, digest: &str) -> anyhow::Result<Verdict> {
    let unknown = |reason: &str| Verdict::Unknown { reason: reason.to_owned() };
    let Some(bytes) = client.read(digest).await? else { return Ok(unknown("its manifest is not here")) };
    let Ok(document) = serde_json::from_slice::<Document>(&bytes) else {
        return Ok(unknown("its manifest cannot be read"));
    };
    if document.config.is_some() {
        return judge_manifest(client, snapshotter, document).await;
    }
    // An index. Of the manifests for this machine any may be the one; those of other machines are mostly not here.
    let mut verdict = unknown("no manifest for this machine is here");
    for manifest in document.manifests.iter().filter(|manifest| is_for_this_machine(manifest)) {
        let Some(bytes) = client.read(&manifest.digest).await? else { continue };
        let Ok(document) = serde_json::from_slice::<Document>(&bytes) else { continue };
        match judge_manifest(client, snapshotter, document).await? {
            Verdict::Starts => return Ok(Verdict::Starts),
            cannot @ Verdict::Cannot { .. } => verdict = cannot,
            Verdict::Unknown { .. } => {}
        }
    }
    Ok(verdict)
}

async fn judge_manifest(
    client: &mut Client,
    snapshotter: &str,
    manifest: Document,
) -> anyhow::Result<Verdict> {
    let unknown = |reason: &str| Ok(Verdict::Unknown { reason: reason.to_owned() });
    let Some(config) = manifest.config else { return unknown("its manifest names no configuration") };
    let Some(bytes) = client.read(&config.digest).await? else {
        return unknown("its configuration is not here");
    };
    let diff_ids = match serde_json::from_slice::<Config>(&bytes) {
        Ok(config) if config.rootfs.diff_ids.len() == manifest.layers.len() => config.rootfs.diff_ids,
        _ => return unknown("it is not a container image"),
    };
    let chains: Vec<String> = image::chain_ids(diff_ids.iter().map(String::as_str)).collect();
    // One whose highest layer is there is there as a whole.
    if let Some(highest) = chains.last()
        && client.has_snapshot(snapshotter, highest).await?
    {
        return Ok(Verdict::Starts);
    }
    let mut missing = 0;
    for (layer, chain) in manifest.layers.iter().zip(&chains) {
        let here = client.has_blob(&layer.digest).await? || client.has_snapshot(snapshotter, chain).await?;
        missing += usize::from(!here);
    }
    Ok(match missing {
        0 => Verdict::Starts,
        missing => Verdict::Cannot { missing, layers: chains.len() },
    })
}

fn is_for_this_machine(manifest: &Descriptor) -> bool {
    let host = crate::platform_name::PlatformName::host().0;
    let same = |platform: &Platform| platform.os == host.os && platform.architecture == host.architecture;
    manifest.platform.as_ref().is_none_or(same)
}
