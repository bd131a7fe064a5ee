//! After a reboot, containers of images that streamed start again.

use system_tests::Numbered;
use system_tests::cri::Pod;
use system_tests::kubernetes::{Node, Options};
use testkit::containerd::Version;

const FILES: u64 = 10;

fn start_and_read(node: &Node, numbered: &Numbered, image: &str, name: &str) -> anyhow::Result<Pod> {
    let pod = node.cri.pod(name)?;
    let container = node.cri.start(&pod, name, image, &["/bin/sleep", "1000"])?;
    numbered.read_inside(node, &container, 0..FILES)?;
    Ok(pod)
}

#[test]
fn with_the_mesh_an_image_goes_on_streaming() -> anyhow::Result<()> {
    goes_on_streaming(Version::chosen())
}

#[test]
fn with_the_mesh_and_containerd_2_4_an_image_goes_on_streaming() -> anyhow::Result<()> {
    if !Version::V2_4.is_here() {
        return Ok(());
    }
    goes_on_streaming(Version::V2_4)
}

fn goes_on_streaming(containerd: Version) -> anyhow::Result<()> {
    let settings = vec!["frontend.background=false".to_owned()];
    let options = Options { services: true, settings, containerd, ..Options::default() };
    let mut node = Node::start(&options)?;
    let numbered = Numbered { files: FILES, len: 300_000, seed: 20 };
    let image = numbered.pull(&node, "app")?;
    let pod = node.cri.pod("before")?;
    let container = node.cri.start(&pod, "before", &image, &["/bin/sleep", "1000"])?;
    numbered.read_inside(&node, &container, 0..FILES / 2)?;
    let mut ended = pod;
    for round in ["once", "twice"] {
        node.reboot(&options)?;
        // As the kubelet removes it.
        node.cri.remove_pod(&ended)?;
        ended = start_and_read(&node, &numbered, &image, round)?;
    }
    Ok(())
}

#[test]
fn an_image_that_was_lost_behind_containerds_back_is_asked_for_again() -> anyhow::Result<()> {
    let options = Options { services: true, ..Options::default() };
    let mut node = Node::start(&options)?;
    let numbered = Numbered { files: FILES, len: 300_000, seed: 22 };
    let image = numbered.pull(&node, "app")?;
    let ended = start_and_read(&node, &numbered, &image, "before")?;
    node.cri.remove_pod(&ended)?;
    node.sluice.kill()?;
    // As a power failure does it to what was not on the disk yet.
    for record in std::fs::read_dir(node.scratch().state().join("records"))? {
        std::fs::remove_file(record?.path())?;
    }
    node.restart_sluice(&options)?;
    start_and_read(&node, &numbered, &image, "after")?;
    Ok(())
}

#[test]
fn what_is_here_of_an_image_is_known_after_a_restart() -> anyhow::Result<()> {
    let options = Options { services: true, ..Options::default() };
    let mut node = Node::start(&options)?;
    let numbered = Numbered { files: FILES, len: 300_000, seed: 23 };
    let image = numbered.pull(&node, "app")?;
    let all_complete = |status: &serde_json::Value| {
        let all = status["images"].as_array();
        all.is_some_and(|all| !all.is_empty() && all.iter().all(|image| image["complete"] == true))
    };
    node.settle(all_complete)?;
    let before = node.status()?;
    node.sluice.kill()?;
    node.restart_sluice(&options)?;
    node.settle(all_complete)?;
    let local = |status: &serde_json::Value| status["images"][0]["bytes_local"].as_u64();
    assert_eq!(local(&node.status()?), local(&before), "of {image}");
    assert!(local(&before) >= Some(FILES * 300_000), "{before}");
    // It is measured beside, and counts against the budget.
    node.settle(|status| status["disk_bytes"].as_u64() >= Some(FILES * 300_000))?;
    Ok(())
}

#[test]
fn without_the_mesh_a_complete_image_starts() -> anyhow::Result<()> {
    let options = Options { services: true, ..Options::default() };
    let mut node = Node::start(&options)?;
    let numbered = Numbered { files: FILES, len: 300_000, seed: 21 };
    let image = numbered.pull(&node, "app")?;
    let ended = start_and_read(&node, &numbered, &image, "before")?;
    node.settle(|status| {
        let all = status["images"].as_array();
        all.is_some_and(|all| all.len() == 2 && all.iter().all(|image| image["complete"] == true))
    })?;
    node.backend()?.kill()?;
    node.registry.kill()?;
    node.reboot(&options)?;
    node.cri.remove_pod(&ended)?;
    start_and_read(&node, &numbered, &image, "after")?;
    Ok(())
}
