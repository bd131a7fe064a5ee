//! `sluice compare` beside anything: no port of the machine matters to it, nor another comparison.

use std::net::TcpListener;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use system_tests::kubernetes::busybox;
use system_tests::{Scratch, noise};
use testkit::{ImageSpec, LayoutWriter, Registry};

#[test]
fn two_comparisons_run_side_by_side_whatever_listens_on_the_machine() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut layout = LayoutWriter::create(folder.path())?;
    let tar = busybox()?.file("data", &noise(61, 3_000_000));
    layout.image("app", &ImageSpec::new([tar.finish()]))?;
    let registry = Registry::start()?;
    registry.push(&layout.reference("app"), "app:latest")?;
    let image = registry.reference("app:latest");
    // The port that the containers serve is taken here, by somebody who never answers.
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port();
    let script = format!("cat /data > /dev/null; exec /bin/busybox httpd -f -p {port} -h /");
    let probe = format!("{port}/bin/sh");

    let compare = |more: &[&str]| -> anyhow::Result<Value> {
        let scratch = Scratch::new()?;
        let common = ["--plain-http", "compare", &image, "--ready-http", &probe];
        let report = scratch.json([common.as_slice(), more, &["--", "/bin/sh", "-c", &script]].concat())?;
        let left = std::fs::read_dir(scratch.state())?.flatten().map(|entry| entry.file_name());
        let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with("compare-")).collect();
        ensure!(left.is_empty(), "left behind: {left:?}");
        Ok(report)
    };
    let shapes: [&[&str]; 2] = [&[], &["--rtt", "2ms", "--bandwidth", "400Mbit"]];
    let reports = std::thread::scope(|scope| {
        let running = shapes.map(|shape| scope.spawn(move || compare(shape)));
        running.map(|thread| thread.join().ok().context("a comparison panicked").flatten())
    });
    for report in reports {
        let report = report?;
        for side in ["normal", "streamed", "learned"] {
            let number = |field: &str| report[side][field].as_f64().unwrap_or_default();
            assert!(number("ready") > 0.0, "{side}: {report}");
            assert!(number("bytes_down") > 3e6, "{side}: {report}");
            assert!(number("cpu") > 0.0 && report[side]["link_cpu"].is_f64(), "{side}: {report}");
        }
    }
    Ok(())
}
