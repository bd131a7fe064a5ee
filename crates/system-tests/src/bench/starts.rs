//! From the kubelet's pull to a container that is ready, for one image: overlayfs beside sluice.

use std::time::Instant;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::cold::{Cold, Snapshotter, drop_caches};
use super::ready::Ready;
use super::site::{FORGOTTEN, Site};
use super::{medians, ratio};

/// An image to measure.
#[derive(Clone, Debug)]
pub struct Image {
    pub name: String,
    /// `oci:DIR:TAG`
    pub layout: String,
    pub ready: Ready,
}

/// Times are in seconds and add up to `total`.
pub fn measure(site: &Site, image: &Image, rounds: usize) -> anyhow::Result<Value> {
    let (reference, _) = site.add_layout(&image.name, &image.layout)?;
    let start = |snapshotter, settings| start(site, snapshotter, image, &reference, settings);
    let first = (0..rounds).map(|_| Ok(start(Snapshotter::Sluice, &FORGOTTEN)?.1));
    let first = first.collect::<anyhow::Result<Vec<_>>>()?;
    let (node, _) = start(Snapshotter::Sluice, &[])?;
    site.wait_until_learned(&reference)?;
    drop(node);
    let (mut overlayfs, mut sluice) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        overlayfs.push(start(Snapshotter::Overlayfs, &[])?.1);
        sluice.push(start(Snapshotter::Sluice, &[])?.1);
    }
    let [first_median, overlayfs_median, sluice_median] = [&first, &overlayfs, &sluice].map(|of| medians(of));
    Ok(json!({
        "ratio": ratio(&sluice_median, &overlayfs_median, "total"),
        "first_ratio": ratio(&first_median, &overlayfs_median, "total"),
        "overlayfs": overlayfs_median,
        "sluice": sluice_median,
        "first": first_median,
        "rounds": { "overlayfs": overlayfs, "sluice": sluice, "first": first },
    }))
}

fn start(
    site: &Site,
    snapshotter: Snapshotter,
    image: &Image,
    reference: &str,
    settings: &[&str],
) -> anyhow::Result<(Cold, Value)> {
    let node = Cold::start(site, snapshotter, settings)?;
    let measured = start_on(&node, site, image, reference)
        .with_context(|| format!("{} with {snapshotter:?}: {}", image.name, node.logs()))?;
    Ok((node, measured))
}

fn start_on(node: &Cold, site: &Site, image: &Image, reference: &str) -> anyhow::Result<Value> {
    image.ready.check_free()?;
    drop_caches()?;
    let (before, asked) = (site.moved()?, Instant::now());
    node.cri.pull(reference)?;
    let pulled = Instant::now();
    let container = node.cri.create(&node.pod, "app", reference, &[])?;
    let created = Instant::now();
    node.cri.begin(&container)?;
    let began = Instant::now();
    image.ready.wait(&node.log_of("app"))?;
    let ready = Instant::now();
    Ok(json!({
        "pull": (pulled - asked).as_secs_f64(),
        "create": (created - pulled).as_secs_f64(),
        "start": (began - created).as_secs_f64(),
        "ready": (ready - began).as_secs_f64(),
        "total": (ready - asked).as_secs_f64(),
        "bytes": site.moved()? - before,
    }))
}
