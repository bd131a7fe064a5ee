//! How long a reader of missing data stands still when the frontend under it is killed and started again.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use testkit::{Compression, ImageSpec, Tarball};

use super::cold::{Cold, Snapshotter};
use super::site::Site;
use crate::kubernetes::busybox;
use crate::noise;

/// One file for each round, more than the link carries in a round.
const FILE_LEN: usize = 64_000_000;
/// One read of the reader, in bytes.
const READ: usize = 64 * 1024;
/// The kill comes when the reader is on its way.
const KILL_AFTER: Duration = Duration::from_millis(500);
/// What systemd waits before it starts a service again, unless told otherwise.
const RESTART_AFTER: Duration = Duration::from_millis(100);
const SETTINGS: [&str; 1] = ["frontend.background=false"];

/// `stalls` holds the longest read of each round, in seconds; `undisturbed` that of a round without a kill.
pub fn measure(site: &Site, rounds: usize) -> anyhow::Result<Value> {
    let (reference, _) = site.add("killed", &image(rounds + 1)?)?;
    let mut node = Cold::start(site, Snapshotter::Sluice, &SETTINGS)?;
    node.cri.pull(&reference)?;
    let container = node.cri.start(&node.pod, "app", &reference, &["/bin/sleep", "1000"])?;
    let data = node.root_of(&container).join("data");
    let undisturbed = read(&data, 0)?;
    let mut stalls = Vec::new();
    for round in 1..=rounds {
        let frontend = node.frontend()?;
        let stall = thread::scope(|scope| {
            let reader = scope.spawn(|| read(&data, round));
            sleep(KILL_AFTER);
            frontend.kill()?;
            sleep(RESTART_AFTER);
            frontend.restart()?;
            reader.join().map_err(|_| anyhow::anyhow!("the reader panicked")).flatten()
        });
        stalls.push(stall.with_context(|| format!("round {round}: {}", node.logs()))?);
    }
    let longest = stalls.iter().copied().fold(0.0, f64::max);
    Ok(json!({ "undisturbed": undisturbed, "stalls": stalls, "longest": longest }))
}

fn image(files: usize) -> anyhow::Result<ImageSpec> {
    let data = (0..files).fold(Tarball::new().directory("data"), |tar, number| {
        tar.file(&format!("data/{number}"), &noise(seed(number), FILE_LEN))
    });
    // Noise: packing it would only take time.
    let layers =
        vec![(busybox()?.finish(), Some(Compression::Gzip)), (data.finish(), Some(Compression::None))];
    Ok(ImageSpec { layers, config: None })
}

fn seed(number: usize) -> u64 {
    40_000 + number as u64
}

/// Reads a file from its beginning to its end, and checks it; how many seconds the longest read took.
fn read(data: &Path, number: usize) -> anyhow::Result<f64> {
    let mut file = File::open(data.join(number.to_string()))?;
    let (mut bytes, mut piece, mut longest) = (Vec::with_capacity(FILE_LEN), vec![0; READ], Duration::ZERO);
    loop {
        let asked = Instant::now();
        let length = file.read(&mut piece)?;
        longest = longest.max(asked.elapsed());
        if length == 0 {
            break;
        }
        bytes.extend_from_slice(&piece[..length]);
    }
    ensure!(bytes == noise(seed(number), FILE_LEN), "file {number} has wrong bytes");
    Ok(longest.as_secs_f64())
}
