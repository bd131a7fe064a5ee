//! Many images one after the other leave nothing behind; many containers at once cost what one does.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::thread;

use system_tests::Numbered;
use system_tests::kubernetes::{Node, Options};

const IMAGES: usize = 100;
/// After a first one in which the process grows to its size.
const ROUNDS: usize = 3;
/// What it may grow by afterwards.
const GROWTH_MAX: u64 = 16 * 1024 * 1024;

/// Every file and every folder below a folder.
pub(crate) fn entries(folder: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let (mut found, mut open) = (BTreeSet::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    Ok(found)
}

/// Processes that the frontend started, whichever of its threads did.
fn children(node: &Node) -> anyhow::Result<usize> {
    let mut count = 0;
    for task in std::fs::read_dir(format!("/proc/{}/task", node.sluice.id()))? {
        // A thread may end in between; its children are another one's then.
        let children = std::fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        count += children.split_whitespace().count();
    }
    Ok(count)
}

/// Pulls all images, starts a container of one, and removes them again. Memory that is held then, in bytes.
fn round(node: &Node, images: &[String], number: usize) -> anyhow::Result<u64> {
    for image in images {
        node.cri.pull(image)?;
    }
    let pod = node.cri.pod(&format!("round-{number}"))?;
    let container = node.cri.start(&pod, "app", &images[number % images.len()], &["/bin/sleep", "1000"])?;
    node.cri.exec(&container, &["/bin/sh", "-euc", "for list in /sums/*; do sha256sum -c $list; done"])?;
    node.cri.stop(&container)?;
    node.cri.remove_pod(&pod)?;
    for image in images {
        node.cri.remove_image(image)?;
    }
    // The image of pods stays.
    node.settle(|status| status["images"].as_array().is_some_and(|images| images.len() == 1))?;
    Ok(node.status()?["resident_bytes"].as_u64().unwrap_or(u64::MAX))
}

#[test]
fn images_that_come_and_go_leave_nothing() -> anyhow::Result<()> {
    let node = Node::start(&Options { services: true, ..Options::default() })?;
    let numbered = |seed| Numbered { files: 3, len: 100_000, seed };
    let images = (0..IMAGES)
        .map(|number| node.push(&format!("app-{number}"), &numbered(number as u64 + 40).image()?))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let pod = node.cri.pod("stays")?;
    node.settle(|status| status["images"][0]["complete"] == true)?;
    let left = |node: &Node| {
        anyhow::Ok((entries(&node.scratch().state())?, node.scratch().mounts()?, children(node)?))
    };
    let before = left(&node)?;
    assert!(before.2 > 0, "not even the holder is seen");
    let warm = round(&node, &images, 0)?;
    for number in 1..ROUNDS {
        let resident = round(&node, &images, number)?;
        println!("resident after {} pulls: {resident}, at first {warm}", (number + 1) * IMAGES);
        // What was freed goes back to the system after a while.
        node.settle(|status| {
            status["resident_bytes"].as_u64().is_some_and(|resident| resident < warm + GROWTH_MAX)
        })?;
    }
    let after = left(&node)?;
    let more: Vec<_> = after.0.difference(&before.0).collect();
    assert!(more.is_empty(), "{} files and folders stay: {more:?}", more.len());
    assert_eq!(after.1, before.1, "mounts stay");
    assert_eq!(after.2, before.2, "processes stay");
    node.cri.remove_pod(&pod)
}

/// Starts containers of one image at once, each of which reads and goes on; what came over the network for that.
fn start_at_once(containers: usize) -> anyhow::Result<u64> {
    let settings = vec!["frontend.background=false".to_owned()];
    let node = Node::start(&Options { settings, ..Options::default() })?;
    let numbered = Numbered { files: 10, len: 1_000_000, seed: 60 };
    let image = numbered.pull(&node, "app")?;
    let pod = node.cri.pod("one")?;
    let read = "sha256sum -c /sums/0 && sha256sum -c /sums/1 && touch /read && sleep 1000";
    let start =
        |number: usize| node.cri.start(&pod, &format!("app-{number}"), &image, &["/bin/sh", "-euc", read]);
    let started = thread::scope(|scope| {
        let start = &start;
        let all: Vec<_> = (0..containers).map(|number| scope.spawn(move || start(number))).collect();
        all.into_iter()
            .map(|one| one.join().map_err(|_| anyhow::anyhow!("a start panicked"))?)
            .collect::<anyhow::Result<Vec<_>>>()
    })?;
    node.settle(|_| started.iter().all(|container| node.root_of(container).join("read").exists()))?;
    for container in &started {
        anyhow::ensure!(node.cri.is_running(container)?, "a container ended");
    }
    let status = node.status()?;
    Ok(status["received_bytes"].as_u64().unwrap_or(u64::MAX))
}

#[test]
fn fifty_containers_fetch_what_one_does() -> anyhow::Result<()> {
    let (one, fifty) = (start_at_once(1)?, start_at_once(50)?);
    println!("received for one container: {one}, for fifty: {fifty}");
    assert!(one > 2_000_000, "nothing was streamed: {one}");
    // What is fetched ahead of a reader may differ a little with the order of reads.
    assert!(fifty < one + one / 4, "fifty containers received {fifty} bytes, one {one}");
    Ok(())
}
