//! An image that is removed while it arrives stops arriving, and nothing of it stays.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Context as _;
use system_tests::Numbered;
use system_tests::kubernetes::{Node, Options};

use crate::many::entries;

/// So much less than the image has, and more than the image of pods.
const BEFORE: u64 = 8_000_000;
/// Time in which the link would carry far more than what may be on its way when an image goes.
const WHILE: Duration = Duration::from_secs(5);
const ON_ITS_WAY: u64 = 2_000_000;

/// Bytes that the link has carried to the node.
fn carried(node: &mut Node) -> anyhow::Result<u64> {
    let counters = node.around.link.as_mut().context("a link")?.tell("counters")?;
    let counters: serde_json::Value = serde_json::from_str(&counters)?;
    counters["down"].as_u64().context("a count")
}

#[test]
fn an_image_that_is_removed_stops_arriving() -> anyhow::Result<()> {
    let link = ["--bandwidth", "16Mbit"].map(str::to_owned).to_vec();
    let mut node = Node::start(&Options { services: true, link, ..Options::default() })?;
    let numbered = Numbered { files: 60, len: 1_000_000, seed: 400 };
    node.cri.pod("one")?;
    node.settle(|status| status["images"][0]["complete"] == true)?;
    let before = entries(&node.scratch().state())?;
    let image = numbered.pull(&node, "app")?;
    node.settle(|status| status["received_bytes"].as_u64() > Some(BEFORE))?;
    node.cri.remove_image(&image)?;
    node.settle(|status| status["images"].as_array().map(Vec::len) == Some(1))?;
    let at_the_end = carried(&mut node)?;
    sleep(WHILE);
    let more = carried(&mut node)? - at_the_end;
    println!("{at_the_end} bytes came until the image was gone, and {more} afterwards");
    assert!(
        at_the_end < numbered.files * numbered.len as u64 / 2,
        "it was all but here: this tested nothing"
    );
    assert!(more < ON_ITS_WAY, "{more} bytes arrive of an image that is gone");
    let after = entries(&node.scratch().state())?;
    let left: Vec<_> = after.difference(&before).collect();
    assert!(left.is_empty(), "{} files and folders stay: {left:?}", left.len());

    numbered.pull(&node, "app")?;
    let pod = node.cri.pod("two")?;
    let container = node.cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;
    numbered.read_inside(&node, &container, 0..3)
}
