//! What containerd waits for when an imported image is pulled and a container of it made: the calls of its snapshotter.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use proto::containerd::snapshots::PrepareSnapshotRequest;
use proto::containerd::snapshots::snapshots_client::SnapshotsClient;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use testkit::{ImageSpec, Tarball};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::cold::{Frontend, drop_caches};
use super::site::{ROUND_TRIP, Site};
use super::{median, medians};
use crate::cri::channel;
use crate::{Scratch, noise};

const LAYER_LEN: usize = 100_000;

/// An image that the mesh knows, as containerd sees it.
struct Image {
    reference: String,
    manifest: String,
    /// Of each layer: the name of its snapshot.
    chains: Vec<String>,
}

/// Times are in seconds; `total` is all calls one after the other.
pub fn measure(site: &Site, layers: usize, rounds: usize) -> anyhow::Result<Value> {
    let image = add(site, layers)?;
    let mut measured = Vec::new();
    for _ in 0..rounds {
        measured.push(round(site, &image)?);
    }
    Ok(json!({ "layers": layers, "median": medians(&measured), "rounds": measured }))
}

fn add(site: &Site, layers: usize) -> anyhow::Result<Image> {
    let name = format!("layers-{layers}");
    let layer = |number: usize| {
        let content = noise((layers * 1000 + number) as u64, LAYER_LEN);
        Tarball::new().file(&format!("file-{number}"), &content).finish()
    };
    let tars: Vec<Vec<u8>> = (0..layers).map(layer).collect();
    let mut chains: Vec<String> = Vec::new();
    for tar in &tars {
        let diff_id = sha256(tar);
        let chain = match chains.last() {
            Some(below) => sha256(format!("{below} {diff_id}").as_bytes()),
            None => diff_id,
        };
        chains.push(chain);
    }
    let (reference, manifest) = site.add(&name, &ImageSpec::new(tars))?;
    Ok(Image { reference, manifest, chains })
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn round(site: &Site, image: &Image) -> anyhow::Result<Value> {
    let scratch = Scratch::new()?;
    let folder = scratch.path("");
    let frontend = Frontend::start(site, &folder, &[])?;
    drop_caches()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let times = runtime
        .block_on(calls(&Frontend::socket_in(&folder), image))
        .with_context(|| format!("the frontend's log: {}", frontend.log()))?;
    let (first, others, container) = times;
    // Not `sum`, whose nothing is -0.0.
    let all_others = others.iter().fold(0.0, |sum, took| sum + took);
    let total = first + all_others + container;
    Ok(json!({
        "first": first,
        "each_other": if others.is_empty() { 0.0 } else { median(others) },
        "others": all_others,
        "container": container,
        "total": total,
        "beyond_round_trip": total - ROUND_TRIP.as_secs_f64(),
    }))
}

/// Seconds of the first layer's call, of each other layer's, and of the container's.
async fn calls(socket: &Path, image: &Image) -> anyhow::Result<(f64, Vec<f64>, f64)> {
    let mut client = SnapshotsClient::new(channel(socket.to_owned()).await?);
    let mut layers = Vec::new();
    for number in 0..image.chains.len() {
        let asked = Instant::now();
        let answer = client.prepare(layer(image, number)).await;
        layers.push(asked.elapsed().as_secs_f64());
        let code = answer.err().as_ref().map(Status::code);
        ensure!(code == Some(Code::AlreadyExists), "layer {number} does not stream: {code:?}");
    }
    let container = container(&mut client, image).await?;
    Ok((layers.remove(0), layers, container))
}

async fn container(client: &mut SnapshotsClient<Channel>, image: &Image) -> anyhow::Result<f64> {
    let request = PrepareSnapshotRequest {
        snapshotter: "sluice".to_owned(),
        key: "k8s.io/1/container".to_owned(),
        parent: image.chains.last().cloned().unwrap_or_default(),
        ..PrepareSnapshotRequest::default()
    };
    let asked = Instant::now();
    let mounts = client.prepare(request).await?.into_inner().mounts;
    let took = asked.elapsed().as_secs_f64();
    ensure!(mounts.len() == 1, "one mount was expected, not {mounts:?}");
    Ok(took)
}

/// What containerd asks for a layer of an image that it pulls.
fn layer(image: &Image, number: usize) -> PrepareSnapshotRequest {
    let chain = &image.chains[number];
    let labels = [
        ("containerd.io/snapshot.ref", chain),
        ("containerd.io/snapshot/cri.image-ref", &image.reference),
        ("containerd.io/snapshot/cri.manifest-digest", &image.manifest),
    ];
    PrepareSnapshotRequest {
        snapshotter: "sluice".to_owned(),
        key: format!("k8s.io/{number}/extract-{number} {chain}"),
        parent: number.checked_sub(1).map(|below| image.chains[below].clone()).unwrap_or_default(),
        labels: labels.map(|(label, value)| (label.to_owned(), value.clone())).into(),
    }
}
