//! What is pushed is imported before anybody pulls it: the first pull anywhere streams.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::Value;
use system_tests::kubernetes::{Node, Options, busybox};
use system_tests::noise;
use testkit::ImageSpec;
use testkit::layout::sha256;

const SOON: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);

#[test]
fn the_first_pull_of_a_pushed_image_streams_and_nothing_is_imported_for_it() -> anyhow::Result<()> {
    let mut node = Node::start(&Options { services: true, pushes: true, ..Options::default() })?;
    // Plain, so that its digest is known here.
    let layer = busybox()?.directory("data").file("data/read", &noise(7, 3_000_000)).finish();
    let digest = sha256(&layer);
    let image = node.push("app", &ImageSpec { layers: vec![(layer, None)], config: None })?;

    let url = node.backend()?.nats.url();
    let started = Instant::now();
    let listed = loop {
        let listed = node.scratch().json(["--nats", &url, "ls"])?;
        let ours = |it: &&Value| it["references"].to_string().contains("/app:latest");
        if let Some(ours) = listed["images"].as_array().and_then(|images| images.iter().find(ours)) {
            break ours.clone();
        }
        ensure!(started.elapsed() < SOON, "not imported: {listed}\n{}", node.registry.log());
        sleep(POLL);
    };
    assert_eq!(listed["references"], serde_json::json!([image]));
    let read = format!("GET /v2/app/blobs/{digest}");
    let reads = |node: &Node| node.registry.log().matches(&read).count();
    assert_eq!(reads(&node), 1, "the import read the layer");

    node.cri.pull(&image)?;
    let events = node.scratch().succeed(["--json", "events", "--image", &image])?;
    let kinds: Vec<Value> = events
        .lines()
        .map(|line| Ok(serde_json::from_str::<Value>(line)?["kind"].clone()))
        .collect::<anyhow::Result<_>>()?;
    assert_eq!(kinds.first(), Some(&"streaming".into()), "{events}");
    node.settle(|status| status["images"][0]["complete"] == true)?;
    assert_eq!(reads(&node), 1, "neither the fetcher nor containerd read the layer again");
    Ok(())
}
