//! A complete image needs nobody: no registry, no mesh, and while a container runs not even the frontend.

use system_tests::Numbered;
use system_tests::kubernetes::{Node, Options};

const FILES: u64 = 12;

fn numbered(seed: u64) -> Numbered {
    Numbered { files: FILES, len: 300_000, seed }
}

fn options() -> Options {
    Options { services: true, ..Options::default() }
}

/// Waits until so many images are on the node, all of them whole.
fn complete(node: &Node, images: usize) -> anyhow::Result<()> {
    node.settle(|status| {
        let all = status["images"].as_array();
        all.is_some_and(|all| all.len() == images && all.iter().all(|image| image["complete"] == true))
    })
}

#[test]
fn with_registry_and_mesh_away_complete_images_start() -> anyhow::Result<()> {
    let options = options();
    let mut node = Node::start(&options)?;
    let (first, second) = (numbered(1), numbered(2));
    let images = [first.pull(&node, "first")?, second.pull(&node, "second")?];
    // The first is started before and after, the second only after.
    let pod = node.cri.pod("early")?;
    let early = node.cri.start(&pod, "early", &images[0], &["/bin/sleep", "1000"])?;
    complete(&node, 3)?;

    node.backend()?.kill()?;
    node.registry.kill()?;
    first.read_inside(&node, &early, 0..FILES)?;
    start_and_read(&node, &[&first, &second], &images, "late")?;
    // So does a frontend that starts into this.
    node.sluice.kill()?;
    node.restart_sluice(&options)?;
    start_and_read(&node, &[&first, &second], &images, "later")?;
    first.read_inside(&node, &early, 0..FILES)
}

fn start_and_read(node: &Node, all: &[&Numbered], images: &[String], name: &str) -> anyhow::Result<()> {
    let pod = node.cri.pod(name)?;
    for (number, (numbered, image)) in all.iter().zip(images).enumerate() {
        let container = node.cri.start(&pod, &format!("{name}-{number}"), image, &["/bin/sleep", "1000"])?;
        numbered.read_inside(node, &container, 0..FILES)?;
    }
    Ok(())
}

#[test]
fn with_nothing_of_ours_running_a_container_goes_on() -> anyhow::Result<()> {
    let options = options();
    let mut node = Node::start(&options)?;
    let numbered = numbered(3);
    let image = numbered.pull(&node, "app")?;
    complete(&node, 1)?;
    let pod = node.cri.pod("one")?;
    complete(&node, 2)?;
    let container = node.cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;
    numbered.read_inside(&node, &container, 0..2)?;

    node.backend()?.kill()?;
    node.registry.kill()?;
    node.kill_all()?;
    // What was read before, and what never was.
    numbered.read_inside(&node, &container, 0..FILES)?;
    let change = "echo new > /data/0 && mv /data /moved && chmod 600 /moved/1 && cat /moved/0";
    assert_eq!(node.cri.exec(&container, &["/bin/sh", "-euc", change])?, "new\n");
    assert!(node.cri.is_running(&container)?);

    // A frontend that comes back starts others, also beside it; and the old one goes as any.
    node.restart_sluice(&options)?;
    start_and_read(&node, &[&numbered], &[image], "after")?;
    assert_eq!(node.cri.exec(&container, &["/bin/cat", "/moved/0"])?, "new\n");
    node.cri.stop(&container)?;
    node.cri.remove_pod(&pod)
}

#[test]
fn with_nothing_of_ours_running_an_early_container_goes_on() -> anyhow::Result<()> {
    // At first nothing arrives but what is read.
    let settings = vec!["frontend.background=false".to_owned()];
    let mut node = Node::start(&Options { settings, ..options() })?;
    let numbered = numbered(4);
    let image = numbered.pull(&node, "app")?;
    let pod = node.cri.pod("one")?;
    let container = node.cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;
    numbered.read_inside(&node, &container, 0..2)?;
    node.sluice.end()?;
    node.restart_sluice(&options())?;
    complete(&node, 2)?;
    node.backend()?.kill()?;
    node.kill_all()?;
    numbered.read_inside(&node, &container, 2..FILES)?;
    // What was read through us before is local too: the kernel need not remember a byte of it.
    for number in 0..2 {
        let file = std::fs::File::open(node.root_of(&container).join(format!("data/{number}")))?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    numbered.read_inside(&node, &container, 0..2)
}
