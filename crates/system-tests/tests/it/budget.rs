//! The frontend of a small node within the memory that is set aside for it: the kernel ends what goes beyond.

use std::path::Path;

use system_tests::kubernetes::{Node, Options, busybox};
use system_tests::noise;
use testkit::{ImageSpec, Tarball};

const GIB: u64 = 1024 * 1024 * 1024;
/// Of one image; larger than what stands in the tree itself, so that each is an object.
const FILES: u64 = 50_000;
const FILE_LEN: usize = 600;
const PER_FOLDER: u64 = 1000;
const LARGE: u64 = 8;
const LARGE_LEN: usize = 16_000_000;

fn many_files(seed: u64) -> anyhow::Result<ImageSpec> {
    let many = (0..FILES).fold(Tarball::new(), |tar, number| {
        let tar = if number % PER_FOLDER == 0 { tar.directory(&format!("d{}", number / PER_FOLDER)) } else { tar };
        tar.file(&path(number), &noise(seed * 1_000_000 + number, FILE_LEN))
    });
    Ok(ImageSpec::new([busybox()?.finish(), many.finish()]))
}

fn path(number: u64) -> String {
    format!("d{}/{number}", number / PER_FOLDER)
}

fn large_files(seed: u64) -> anyhow::Result<ImageSpec> {
    let name = |number| format!("large-{number}");
    let large = (0..LARGE)
        .fold(Tarball::new(), |tar, number| tar.file(&name(number), &noise(seed + number, LARGE_LEN)));
    Ok(ImageSpec::new([busybox()?.finish(), large.finish()]))
}

fn complete(node: &Node, images: usize) -> anyhow::Result<()> {
    node.settle(|status| {
        let all = status["images"].as_array();
        all.is_some_and(|all| all.len() == images && all.iter().all(|image| image["complete"] == true))
    })
}

fn check(root: &Path, name: &str, expected: &[u8]) -> anyhow::Result<()> {
    anyhow::ensure!(std::fs::read(root.join(name))? == expected, "{name} has wrong bytes");
    Ok(())
}

#[test]
fn a_node_of_four_gib_keeps_within_its_reservation() -> anyhow::Result<()> {
    let reserved = frontend::reservation(4 * GIB);
    let settings = vec![format!("frontend.memory_budget={reserved}")];
    let options = Options { services: true, memory: Some(reserved), settings, ..Options::default() };
    let node = Node::start(&options)?;
    let memory = node.memory.as_ref().ok_or_else(|| anyhow::anyhow!("no limit"))?;
    let pod = node.cri.pod("one")?;
    complete(&node, 1)?;
    println!("of {reserved} bytes, with the image of pods: {}", memory.anonymous()?);
    let large = node.push("large", &large_files(1)?)?;
    node.cri.pull(&large)?;
    let container = node.cri.start(&pod, "large", &large, &["/bin/sleep", "1000"])?;
    let root = node.root_of(&container);
    // While everything arrives: what is read, and what is not.
    for number in (0..LARGE).rev() {
        check(&root, &format!("large-{number}"), &noise(1 + number, LARGE_LEN))?;
    }
    complete(&node, 2)?;
    println!("with an image of {LARGE} large files: {}", memory.anonymous()?);
    const MANY: u64 = 4;
    for seed in 1..=MANY {
        let many = node.push(&format!("many-{seed}"), &many_files(seed)?)?;
        node.cri.pull(&many)?;
        let container = node.cri.start(&pod, &format!("many-{seed}"), &many, &["/bin/sleep", "1000"])?;
        let root = node.root_of(&container);
        for number in (0..FILES).step_by(500) {
            check(&root, &path(number), &noise(seed * 1_000_000 + number, FILE_LEN))?;
        }
        complete(&node, 2 + seed as usize)?;
        println!("with {seed} images of {FILES} files: {}", memory.anonymous()?);
    }
    assert_eq!(memory.killed()?, 0, "the kernel ended the frontend");
    Ok(())
}
