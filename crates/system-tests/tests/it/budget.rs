//! The frontend of a small node within the memory that is set aside for it: the kernel ends what goes beyond.

use system_tests::Numbered;
use system_tests::kubernetes::{Node, Options};

const GIB: u64 = 1024 * 1024 * 1024;
/// Each is an object of its own, and its sum stands in the tree.
const MANY: Numbered = Numbered { files: 30_000, len: 600, seed: 80 };
/// Of those, how many are read while everything arrives.
const READ: u64 = 300;
const LARGE: Numbered = Numbered { files: 8, len: 16_000_000, seed: 90 };
const IMAGES: u64 = 3;

fn complete(node: &Node, images: usize) -> anyhow::Result<()> {
    node.settle(|status| {
        let all = status["images"].as_array();
        all.is_some_and(|all| all.len() == images && all.iter().all(|image| image["complete"] == true))
    })
}

#[test]
fn a_node_of_sixteen_gib_keeps_within_its_reservation() -> anyhow::Result<()> {
    let reserved =
        std::env::var("BUDGET").ok().and_then(|b| b.parse().ok()).unwrap_or(frontend::reservation(4 * GIB));
    let settings = vec![format!("frontend.memory_budget={reserved}")];
    let options = Options { services: true, memory: Some(reserved), settings, ..Options::default() };
    let node = Node::start(&options)?;
    let memory = node.around.memory.as_ref().ok_or_else(|| anyhow::anyhow!("no limit"))?;
    let pod = node.cri.pod("one")?;
    complete(&node, 1)?;
    println!("of {reserved} bytes, with the image of pods: {}", memory.anonymous()?);
    let large = LARGE.pull(&node, "large")?;
    let container = node.cri.start(&pod, "large", &large, &["/bin/sleep", "1000"])?;
    // While everything arrives: what is read, and what is not.
    LARGE.read_inside(&node, &container, 0..LARGE.files)?;
    complete(&node, 2)?;
    println!("with an image of {} large files: {}", LARGE.files, memory.anonymous()?);
    for number in 1..=IMAGES {
        let many = Numbered { seed: MANY.seed + number, ..MANY };
        let image = many.pull(&node, &format!("many-{number}"))?;
        let container = node.cri.start(&pod, &format!("many-{number}"), &image, &["/bin/sleep", "1000"])?;
        many.read_inside(&node, &container, MANY.files - READ..MANY.files)?;
        complete(&node, 2 + number as usize)?;
        println!("with {number} images of {} files: {}", MANY.files, memory.anonymous()?);
    }
    assert_eq!(memory.killed()?, 0, "the kernel ended the frontend: {}", node.sluice.log());
    Ok(())
}
