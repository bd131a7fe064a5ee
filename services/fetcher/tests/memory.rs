//! What hostile images take in memory, in a process of its own: its peak is looked at.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

#[path = "it/harness.rs"]
#[allow(dead_code, reason = "the other tests need the rest of it")]
mod harness;

use std::fs;

use bytesize::ByteSize;
use harness::Harness;
use image::record::Entry;
use testkit::layout::sha256;
use testkit::{ImageSpec, Tarball};
use tonic::Code;

const MIB: u64 = 1 << 20;
const LINKS: usize = 20_000;
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// The most memory that this process had at a time since the last call of [`forget_peak`], in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// Empty files under one global header with a long attribute: some KB of gzip.
fn under_one_header(files: usize) -> Vec<u8> {
    let tar = Tarball::new().pax(b'g', &[("SCHILY.xattr.user.x", &[b'x'; 60_000])]);
    (0..files).fold(tar, |tar, number| tar.file(&number.to_string(), b"")).finish()
}

/// Symbolic links whose record takes more than half as much memory as their tar has bytes; of every layer the same names.
fn links(layer: usize) -> Vec<u8> {
    let target = format!("{layer:0>100}");
    let name = |number: usize| format!("{}/{number:0>9}", "d".repeat(90));
    (0..LINKS).fold(Tarball::new(), |tar, number| tar.symlink(&name(number), &target)).finish()
}

/// An image of many layers takes what one of few does, whether they are read or known. Each layer replaces all that the one
/// below it brought.
async fn records_of_many_layers_are_not_held_together() {
    const FEW: usize = 3;
    const MORE: usize = 16;
    let harness = Harness::start_with(|config| config.limits.layers_at_once = 1).await;
    let mut layout = harness.layout();
    let (diff_ids, layers): (Vec<_>, Vec<_>) = (0..2 * FEW + MORE)
        .map(links)
        .map(|tar| (sha256(&tar), layout.blob(&tar, "application/vnd.oci.image.layer.v1.tar").unwrap()))
        .unzip();
    for (tag, range) in [("few", 0..FEW), ("many", FEW..2 * FEW + MORE - 1), ("known", FEW..2 * FEW + MORE)] {
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": diff_ids[range.clone()] },
        });
        layout.manifest(tag, config, layers[range].to_vec()).unwrap();
    }
    let mut peaks = Vec::new();
    for tag in ["few", "many", "known"] {
        forget_peak();
        let resolved = harness.import(&layout.reference(tag)).await.unwrap();
        assert_eq!(harness.record(&resolved).layers[0].entries, LINKS as u64);
        peaks.push(peak());
    }
    let more = ((MORE - 1) * LINKS * (size_of::<Entry>() + 2 * 100)) as u64;
    assert!(peaks.iter().all(|peak| *peak < peaks[0] + more / 2), "{peaks:?}: {more} bytes of records more");
}

/// One test, since what another one allocates meanwhile would count.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_images_take_a_bounded_part_of_memory() {
    let harness = Harness::start_with(|config| config.limits.image_records = ByteSize::mib(64)).await;
    let mut layout = harness.layout();
    layout.image("shared", &ImageSpec::new([under_one_header(14_000)])).unwrap();
    // Each of these would do alone; together they are more than one image may take.
    let files = |seed: usize| {
        (0..30_000).fold(Tarball::new(), |tar, number| tar.file(&format!("{seed}/{number}"), b"")).finish()
    };
    layout.image("many", &ImageSpec::new((0..8).map(files))).unwrap();

    forget_peak();
    let before = peak();
    harness.import(&layout.reference("shared")).await.unwrap();
    let taken = peak().saturating_sub(before);
    assert!(taken < 256 * MIB, "{} MiB for 14,000 empty files", taken / MIB);

    let refused = harness.import(&layout.reference("many")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("fetcher.limits.image_records"), "{refused}");
    assert!(refused.message().contains(&(64 * MIB).to_string()), "{refused}");

    // A manifest as large as one may be, which holds nothing but numbers: 64 may ask for such a one at a time.
    let numbers = vec!["1"; 2 * 1000 * 1000].join(",");
    let layers: serde_json::Value = serde_json::from_str(&format!("[{numbers}]")).unwrap();
    let config = sha256(b"{}");
    let config = serde_json::json!({ "mediaType": OCI_CONFIG, "digest": config, "size": 2 });
    let document = serde_json::json!({ "schemaVersion": 2, "layers": layers, "config": config });
    layout.document("numbers", &document, "application/vnd.oci.image.manifest.v1+json").unwrap();
    drop((document, numbers));
    forget_peak();
    let before = peak();
    let refused = harness.import(&layout.reference("numbers")).await.unwrap_err();
    assert!(refused.message().contains("its layers"), "{refused}");
    let taken = peak().saturating_sub(before);
    assert!(taken < 48 * MIB, "{} MiB for one question", taken / MIB);

    records_of_many_layers_are_not_held_together().await;
}
