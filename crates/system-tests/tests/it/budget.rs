//! The frontend of a small node within the memory that is set aside for it: the kernel ends what goes beyond.

use std::thread;

use anyhow::{Context as _, ensure};
use system_tests::kubernetes::{Node, Options};
use system_tests::memory::MemoryLimit;
use system_tests::{Numbered, metrics};

const GIB: u64 = 1024 * 1024 * 1024;
/// Each is an object of its own, and its sum stands in the tree.
const MANY: Numbered = Numbered { files: 30_000, len: 600, seed: 80 };
const MORE: Numbered = Numbered { files: 50_000, len: 600, seed: 85 };
/// Of those, how many are read while everything arrives.
const READ: u64 = 300;
const LARGE: Numbered = Numbered { files: 8, len: 16_000_000, seed: 90 };
/// Images that are opened at once.
const AT_ONCE: u64 = 3;

/// A node whose frontend has so much memory, and whose counters can be read.
struct Small {
    node: Node,
    admin: u16,
}

impl Small {
    fn start(options: Options) -> anyhow::Result<Small> {
        let admin = testkit::port::free()?;
        let mut options = Options { services: true, ..options };
        options.settings.push(format!("lifecycle.admin=127.0.0.1:{admin}"));
        Ok(Small { node: Node::start(&options)?, admin })
    }

    fn memory(&self) -> anyhow::Result<&MemoryLimit> {
        self.node.around.memory.as_ref().context("no limit")
    }

    fn alive(&self, doing: &str) -> anyhow::Result<()> {
        ensure!(
            self.memory()?.killed()? == 0,
            "{doing}: the kernel ended the frontend: {}",
            self.node.sluice.log()
        );
        Ok(())
    }

    /// Waits until everything of every image is here; how many there are.
    fn complete(&self, doing: &str) -> anyhow::Result<u64> {
        self.alive(doing)?;
        let images = |status: &serde_json::Value| status["images"].as_array().cloned().unwrap_or_default();
        self.node.settle(|status| images(status).iter().all(|image| image["complete"] == true))?;
        self.alive(doing)?;
        println!("{doing}: {} bytes", self.memory()?.anonymous()?);
        Ok(images(&self.node.status()?).len() as u64)
    }

    /// What the frontend counted; 0 when it never did.
    fn counted(&self, name: &str) -> anyhow::Result<u64> {
        Ok(metrics::sum(self.admin, name)? as u64)
    }
}

#[test]
fn a_node_of_four_gib_keeps_within_its_reservation() -> anyhow::Result<()> {
    let reserved = frontend::reservation(4 * GIB);
    let settings = vec![format!("frontend.memory_budget={reserved}")];
    let small = Small::start(Options { memory: Some(reserved), settings, ..Options::default() })?;
    let node = &small.node;
    let pod = node.cri.pod("one")?;
    small.complete(&format!("of {reserved}, with the image of pods"))?;

    let large = LARGE.pull(node, "large")?;
    let container = node.cri.start(&pod, "large", &large, &["/bin/sleep", "1000"])?;
    // While everything arrives: what is read, and what is not.
    LARGE.read_inside(node, &container, 0..LARGE.files)?;
    small.complete("with an image of large files")?;

    let more = MORE.pull(node, "more")?;
    let container = node.cri.start(&pod, "more", &more, &["/bin/sleep", "1000"])?;
    MORE.read_inside(node, &container, MORE.files - READ..MORE.files)?;
    let before = small.complete("with an image of 50,000 files")?;
    assert_eq!((before, small.counted("sluice_frontend_layers_ordinary_total")?), (3, 0));

    let images = (1..=AT_ONCE).map(|number| {
        let many = Numbered { seed: MANY.seed + number, ..MANY };
        let name = format!("many-{number}");
        let image = node.push(&name, &many.image()?)?;
        Ok((many, name, image))
    });
    let images = images.collect::<anyhow::Result<Vec<_>>>()?;
    thread::scope(|scope| {
        let pulls: Vec<_> = images.iter().map(|(_, _, image)| scope.spawn(|| node.cri.pull(image))).collect();
        pulls.into_iter().try_for_each(|pull| match pull.join() {
            Ok(pulled) => pulled.map(drop),
            Err(_) => anyhow::bail!("a pull panicked"),
        })
    })?;
    small.alive("while images of 30,000 files are opened")?;
    for (many, name, image) in &images {
        let container = node.cri.start(&pod, name, image, &["/bin/sleep", "1000"])?;
        many.read_inside(node, &container, MANY.files - READ..MANY.files)?;
    }
    let streamed = small.complete("with three images of 30,000 files, opened at once")? - before;
    // An image for which there was no memory was pulled without us, and that can be seen.
    let (waited, refused) = (
        small.counted("sluice_frontend_opens_waited_total")?,
        small.counted("sluice_frontend_opens_refused_total")?,
    );
    println!("{waited} waited for memory, {refused} were refused");
    assert_eq!((streamed + refused, refused == AT_ONCE), (AT_ONCE, false));
    let ordinary = small.counted("sluice_frontend_layers_ordinary_total{reason=\"no-room\"")?;
    assert_eq!(ordinary > 0, refused > 0);
    Ok(())
}

/// Nothing is ever complete here, so what is open stays open.
#[test]
fn an_image_for_which_there_is_no_memory_is_pulled_as_ever() -> anyhow::Result<()> {
    // Tables have an eighth of it: those of the first image fit, those of the second do not fit beside them.
    let settings = ["frontend.memory_budget=1MiB", "frontend.background=false"].map(str::to_owned).to_vec();
    let small = Small::start(Options { settings, ..Options::default() })?;
    let node = &small.node;
    let pod = node.cri.pod("one")?;
    for (files, name) in [(1_500, "first"), (600, "second")] {
        let numbered = Numbered { files, len: 600, seed: 70 + files };
        let image = numbered.pull(node, name)?;
        let container = node.cri.start(&pod, name, &image, &["/bin/sleep", "1000"])?;
        numbered.read_inside(node, &container, 0..20)?;
    }
    let ordinary = small.counted("sluice_frontend_layers_ordinary_total{reason=\"no-room\"")?;
    let counted =
        ["waited", "refused"].map(|what| small.counted(&format!("sluice_frontend_opens_{what}_total")));
    let [waited, refused] = counted;
    assert_eq!((ordinary, waited?, refused?), (1, 1, 1));
    let log = node.sluice.log();
    assert!(log.contains("no-room") && log.contains("frontend.memory_budget"), "{log}");
    Ok(())
}
