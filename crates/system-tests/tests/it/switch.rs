//! Streaming is switched off and on on a node: no container notices, and whoever looks sees it.

use std::collections::BTreeSet;

use system_tests::Numbered;
use system_tests::kubernetes::{Node, Options};

const FILES: u64 = 4;

fn numbered(seed: u64) -> Numbered {
    Numbered { files: FILES, len: 200_000, seed }
}

/// The references of all images that stream here.
fn streamed(node: &Node) -> anyhow::Result<BTreeSet<String>> {
    let status = node.status()?;
    let all = status["images"].as_array().into_iter().flatten();
    Ok(all.filter_map(|image| image["reference"].as_str().map(str::to_owned)).collect())
}

fn streams(node: &Node, image: &str) -> anyhow::Result<bool> {
    Ok(streamed(node)?.iter().any(|reference| reference.starts_with(image)))
}

#[test]
fn a_node_is_switched_off_and_on_under_running_containers() -> anyhow::Result<()> {
    let on = Options { services: true, ..Options::default() };
    let off = Options { settings: vec!["frontend.streaming=false".to_owned()], ..on.clone() };
    let mut node = Node::start(&on)?;
    let first = numbered(501).pull(&node, "first")?;
    let pod = node.cri.pod("one")?;
    let container = node.cri.start(&pod, "early", &first, &["/bin/sleep", "1000"])?;
    numbered(501).read_inside(&node, &container, 0..FILES / 2)?;
    assert_eq!(node.status()?["streaming"], true);

    node.sluice.kill()?;
    node.restart_sluice(&off)?;
    assert_eq!(node.status()?["streaming"], false);
    assert!(node.scratch().succeed(["status"])?.contains("switched off"));
    numbered(501).read_inside(&node, &container, FILES / 2..FILES)?;
    let late = node.cri.start(&pod, "late", &first, &["/bin/sleep", "1000"])?;
    numbered(501).read_inside(&node, &late, 0..FILES)?;
    let second = numbered(502).pull(&node, "second")?;
    assert!(streams(&node, &first)? && !streams(&node, &second)?, "{:?}", streamed(&node)?);
    let told = node.scratch().succeed(["events", "--kind", "fallback", "--image", &second])?;
    // Its lowest layer streams as that of the first image.
    assert!(told.contains("switched-off") && told.lines().count() == 1, "{told}");
    let ordinary = node.cri.start(&pod, "ordinary", &second, &["/bin/sleep", "1000"])?;
    numbered(502).read_inside(&node, &ordinary, 0..FILES)?;

    node.sluice.kill()?;
    node.restart_sluice(&on)?;
    let third = numbered(503).pull(&node, "third")?;
    assert!(streams(&node, &third)?, "{:?}", streamed(&node)?);
    for container in [container, late, ordinary] {
        node.cri.stop(&container)?;
    }
    node.cri.remove_pod(&pod)
}
