//! After a reboot, containers of images that streamed start again.

use system_tests::Numbered;
use system_tests::cri::Pod;
use system_tests::kubernetes::{Node, Options};

const FILES: u64 = 10;

fn start_and_read(node: &Node, numbered: &Numbered, image: &str, name: &str) -> anyhow::Result<Pod> {
    let pod = node.cri.pod(name)?;
    let container = node.cri.start(&pod, name, image, &["/bin/sleep", "1000"])?;
    numbered.read_inside(node, &container, 0..FILES)?;
    Ok(pod)
}

#[test]
fn with_the_mesh_an_image_goes_on_streaming() -> anyhow::Result<()> {
    let settings = vec!["frontend.background=false".to_owned()];
    let options = Options { services: true, settings, ..Options::default() };
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
