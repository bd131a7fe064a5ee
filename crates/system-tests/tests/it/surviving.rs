//! What happens to our own processes does not happen to containers.

use std::path::PathBuf;
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::Context as _;
use system_tests::kubernetes::{Node, Options, busybox};
use system_tests::noise;
use testkit::containerd::Version;
use testkit::{ImageSpec, Tarball};

const FILES: u64 = 60;
const FILE_LEN: usize = 1_000_000;
const KILLS: usize = 6;

/// Nothing arrives but what is read, so that all of it is read through our process.
fn options() -> Options {
    Options { settings: vec!["frontend.background=false".to_owned()], ..Options::default() }
}

/// A container of an image of many files, of which nothing was read; and its root as the host sees it.
fn container(node: &Node) -> anyhow::Result<(String, PathBuf)> {
    let data = (0..FILES)
        .fold(Tarball::new(), |tar, number| tar.file(&format!("file-{number}"), &noise(number, FILE_LEN)));
    let image = node.push("app", &ImageSpec::new([busybox()?.finish(), data.finish()]))?;
    node.cri.pull(&image)?;
    let pod = node.cri.pod("one")?;
    let container = node.cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;
    let root = node.root_of(&container);
    Ok((container, root))
}

#[test]
fn a_frontend_that_is_killed_again_and_again_hurts_no_reader() -> anyhow::Result<()> {
    killed_again_and_again_hurts_no_reader(&options())
}

#[test]
fn with_containerd_2_4_a_frontend_that_is_killed_again_and_again_hurts_no_reader() -> anyhow::Result<()> {
    if !Version::V2_4.is_here() {
        return Ok(());
    }
    killed_again_and_again_hurts_no_reader(&Options { containerd: Version::V2_4, ..options() })
}

fn killed_again_and_again_hurts_no_reader(options: &Options) -> anyhow::Result<()> {
    let mut node = Node::start(options)?;
    let (container, root) = container(&node)?;
    let reader = thread::spawn(move || -> anyhow::Result<()> {
        for number in 0..FILES {
            let bytes = std::fs::read(root.join(format!("file-{number}")))?;
            anyhow::ensure!(bytes == noise(number, FILE_LEN), "file-{number} has wrong bytes");
            // So that every kill finds somebody reading.
            sleep(Duration::from_millis(30));
        }
        Ok(())
    });
    for _ in 0..KILLS {
        sleep(Duration::from_millis(200));
        node.sluice.kill()?;
        node.restart_sluice(options)?;
    }
    reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    assert!(node.sluice.log().contains("going on with the connection"), "{}", node.sluice.log());
    assert_eq!(node.cri.exec(&container, &["/bin/sh", "-c", "echo alive"])?, "alive\n");
    Ok(())
}

#[test]
fn a_process_that_holds_a_file_can_end_while_nobody_answers() -> anyhow::Result<()> {
    let options = options();
    let mut node = Node::start(&options)?;
    let (_container, root) = container(&node)?;
    // The first of all files that is closed.
    let file = std::fs::File::open(root.join("file-0"))?;
    node.sluice.kill()?;
    let (sender, closed) = std::sync::mpsc::channel();
    thread::spawn(move || {
        drop(file);
        sender.send(())
    });
    closed.recv_timeout(Duration::from_secs(20)).context("closing a file waits for a frontend")?;
    node.restart_sluice(&options)?;
    anyhow::ensure!(std::fs::read(root.join("file-0"))? == noise(0, FILE_LEN), "wrong bytes");
    Ok(())
}

#[test]
fn a_holder_that_is_killed_is_replaced() -> anyhow::Result<()> {
    let options = options();
    let mut node = Node::start(&options)?;
    let (container, root) = container(&node)?;
    for number in 0..3 {
        node.kill_holder()?;
        node.sluice.kill()?;
        node.restart_sluice(&options)?;
        let path = root.join(format!("file-{number}"));
        assert!(std::fs::read(path)? == noise(number, FILE_LEN), "file-{number} has wrong bytes");
    }
    assert_eq!(node.cri.exec(&container, &["/bin/sh", "-c", "echo alive"])?, "alive\n");
    Ok(())
}
