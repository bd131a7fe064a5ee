//! Many containers of one image, started at once on a node that has nothing of it.

use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use anyhow::Context as _;
use serde_json::{Value, json};
use testkit::{ImageSpec, Tarball};

use super::cold::{Cold, Snapshotter, drop_caches};
use super::ready::Ready;
use super::site::{FORGOTTEN, Site};
use super::{medians, ratio};
use crate::cri::Pod;
use crate::kubernetes::busybox;
use crate::noise;

pub const CONTAINERS: usize = 50;
/// What each container reads before it is ready: as much as an application's start; and as much that none reads.
const FILES: u64 = 64;
const FILE_LEN: usize = 1_000_000;
const START: [&str; 3] = ["/bin/sh", "-euc", "cat /read/* >/dev/null; echo ready; sleep 1000"];
/// Nothing arrives but what is read, so that bytes can be compared; and no start helps the next.
const SETTINGS: [&str; 2] = ["frontend.background=false", FORGOTTEN[0]];

/// Times are in seconds from the moment when all are asked for, with the image pulled.
pub fn measure(site: &Site, rounds: usize) -> anyhow::Result<Value> {
    let (reference, _) = site.add("many", &image()?)?;
    let (mut one, mut overlayfs, mut sluice) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        one.push(round(site, Snapshotter::Sluice, &reference, 1)?);
        overlayfs.push(round(site, Snapshotter::Overlayfs, &reference, CONTAINERS)?);
        sluice.push(round(site, Snapshotter::Sluice, &reference, CONTAINERS)?);
    }
    let [one_median, overlayfs_median, sluice_median] = [&one, &overlayfs, &sluice].map(|of| medians(of));
    Ok(json!({
        "containers": CONTAINERS,
        "bytes_ratio": ratio(&sluice_median, &one_median, "bytes"),
        "one": one_median,
        "overlayfs": overlayfs_median,
        "sluice": sluice_median,
        "rounds": { "one": one, "overlayfs": overlayfs, "sluice": sluice },
    }))
}

fn image() -> anyhow::Result<ImageSpec> {
    let folder = |name: &str, seed: u64| {
        (0..FILES).fold(Tarball::new().directory(name), |tar, number| {
            tar.file(&format!("{name}/{number}"), &noise(seed + number, FILE_LEN))
        })
    };
    Ok(ImageSpec::new([
        busybox()?.finish(),
        folder("read", 20_000).finish(),
        folder("unread", 30_000).finish(),
    ]))
}

fn round(site: &Site, snapshotter: Snapshotter, reference: &str, containers: usize) -> anyhow::Result<Value> {
    let mut node = Cold::start(site, snapshotter, &SETTINGS)?;
    let pods = node.pods(containers)?;
    drop_caches()?;
    let (before, asked) = (site.moved()?, Instant::now());
    node.cri.pull(reference)?;
    let pull = asked.elapsed().as_secs_f64();
    let mut ready = start_at_once(&node, reference, &pods)
        .with_context(|| format!("{containers} containers with {snapshotter:?}: {}", node.logs()))?;
    ready.sort_by(f64::total_cmp);
    let (first, last) = (ready[0], ready[containers - 1]);
    Ok(json!({
        "pull": pull,
        "first": first,
        "last": last,
        "last_by_first": last / first,
        "bytes": site.moved()? - before,
    }))
}

/// Seconds until each was ready, one container in each pod.
fn start_at_once(node: &Cold, reference: &str, pods: &[Pod]) -> anyhow::Result<Vec<f64>> {
    let together = Barrier::new(pods.len());
    let start = |number: usize, pod: &Pod| {
        let name = format!("app-{number}");
        together.wait();
        let asked = Instant::now();
        let container = node.cri.create(pod, &name, reference, &START)?;
        node.cri.begin(&container)?;
        Ready::Line("ready".to_owned()).wait(&node.log_of(&name))?;
        anyhow::Ok(asked.elapsed().as_secs_f64())
    };
    let start = &start;
    thread::scope(|scope| {
        let numbered = pods.iter().enumerate();
        let threads: Vec<_> = numbered.map(|(number, pod)| scope.spawn(move || start(number, pod))).collect();
        let ended = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a starting thread panicked")).flatten());
        ended.collect()
    })
}
