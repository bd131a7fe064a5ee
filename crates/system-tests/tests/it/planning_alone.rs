//! Prefetch policies that come with sluice, in one process.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use system_tests::{Scratch, noise};
use testkit::{ImageSpec, LayoutWriter, Tarball};

/// More than what is packed with other files.
const LEN: usize = 700_000;
const POLL: Duration = Duration::from_millis(100);
const POLLS: usize = 300;

fn until(scratch: &Scratch, what: &str, wanted: impl Fn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    for _ in 0..POLLS {
        if wanted()? {
            return Ok(());
        }
        sleep(POLL);
    }
    bail!("not in time: {what}\n{}", scratch.node_log())
}

/// The first start reads one file of two; the second gets it before anybody reads it, and nothing else.
#[test]
fn the_default_policy_plans_what_an_earlier_start_has_read() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    let tar = Tarball::new().file("wanted", &noise(1, LEN)).file("other", &noise(2, LEN)).finish();
    layout.image("app", &ImageSpec::new([tar]))?;
    let (image, record) = (layout.reference("app"), scratch.path("decisions"));
    let root = scratch.mount_point("root")?;
    let at = root.to_str().context("a UTF-8 path")?;
    let settings = [
        "frontend.background=false".to_owned(),
        "frontend.start_settled=300ms".to_owned(),
        format!("policy.record.file={}", record.display()),
    ];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let mount = || scratch.succeed([&settings[..], &["mount", &image, at]].concat());
    mount()?;
    ensure!(fs::read(root.join("wanted"))? == noise(1, LEN), "wrong bytes");
    let starts = || anyhow::Ok(scratch.json(["inspect", &image])?["starts"].clone());
    until(&scratch, "the start is known", || Ok(starts()?["reported"] == 1))?;
    scratch.succeed(["umount", at])?;
    scratch.succeed(["evict", &image])?;
    mount()?;
    let here = || anyhow::Ok(scratch.json(["status"])?["images"][0]["bytes_local"].clone());
    until(&scratch, "what is wanted is here", || Ok(here()? == LEN))?;

    let chunks = starts()?["chunks"].clone();
    let recorded = fs::read_to_string(&record)?;
    let last = recorded.lines().rfind(|line| line.contains("planned")).context("a plan")?;
    let last: Value = serde_json::from_str(last)?;
    let said = ["policy", "mode", "items", "reason"].map(|of| last["planned"]["said"][of].clone());
    let items = json!([{ "chunks": [0, chunks] }]);
    assert_eq!(said, [json!("learned"), json!("listed-then-rest"), items, json!("profile")], "{last}");
    Ok(())
}

/// Without a background only a plan can bring what nobody reads.
#[test]
fn a_prefetch_policy_brings_the_whole_image_to_a_node_without_a_background() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    let tar = Tarball::new().file("one", &noise(1, 900_000)).file("two", &noise(2, 700_000)).finish();
    layout.image("app", &ImageSpec::new([tar]))?;
    let reference = layout.reference("app");
    let root = scratch.mount_point("root")?;
    let set = "policy.set.prefetch=[{name=\"all\", source=\"builtin:whole-image\"}]";
    let root = root.to_str().unwrap_or_default();
    scratch.succeed(["--set", "frontend.background=false", "--set", set, "mount", &reference, root])?;
    for _ in 0..300 {
        let status = scratch.json(["status"])?;
        if status["images"][0]["complete"] == true {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    anyhow::bail!("the image was not brought: {}\n{}", scratch.json(["status"])?, scratch.node_log())
}
