//! A policy service plans for a node, each a process of its own on a real NATS server; and a node starts images as ever when the plan
//! fails or makes no sense.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use system_tests::mesh::Mesh;
use system_tests::services::Service;
use system_tests::{binaries, metrics, noise};
use testkit::{ImageSpec, LayoutWriter, Tarball, port};

/// More than what is packed with other files.
const LEN: usize = 700_000;
const POLL: Duration = Duration::from_millis(100);
const POLLS: usize = 600;
/// Starts until one gets its plan in time: a node waits 300 ms for it, whatever else a machine does.
const STARTS: usize = 20;
/// What a node logs when it plans by itself.
const NO_PLAN: &str = "no prefetch plan";

/// A mesh whose node fetches nothing that nobody lists or reads, and its policy service.
struct Planning {
    mesh: Mesh,
    _policy: Service,
    admin: u16,
    layout: LayoutWriter,
    images: u64,
}

/// An image with the files `data/wanted` and `data/other`, which are like no other image's.
struct Image {
    reference: String,
    wanted: Vec<u8>,
    other: Vec<u8>,
}

impl Planning {
    /// With these settings of the policy service.
    fn start(settings: &[String]) -> anyhow::Result<Planning> {
        let frontend = [
            "frontend.background=false",
            "frontend.start_settled=300ms",
            "lifecycle.log.filter=info,frontend=debug",
        ];
        let mesh = Mesh::start_with(&["--rtt", "2ms"], &frontend)?;
        let (scratch, admin) = (mesh.scratch(), port::free()?);
        let more = [
            // A busy machine is no part of what is tested.
            "policy.limits.total_time=30s".to_owned(),
            format!("lifecycle.admin=127.0.0.1:{admin}"),
            format!("policy.record.file={}", scratch.path("decisions").display()),
        ];
        let settings = [&more[..], settings].concat();
        let policy = mesh.backend.service(scratch, "policy", &settings)?;
        let layout = LayoutWriter::create(&scratch.path("layout"))?;
        let planning = Planning { mesh, _policy: policy, admin, layout, images: 0 };
        planning.until("policies answer", || Ok(planning.mesh.succeed(&["policy", "ls"]).is_ok()))?;
        Ok(planning)
    }

    /// An image that makes the hostile planner misbehave as its name says.
    fn image(&mut self, name: &str) -> anyhow::Result<Image> {
        self.images += 1;
        let [wanted, other] = [0, 1].map(|file| noise(2 * self.images + file, LEN));
        let tar = Tarball::new().directory("data").file("data/wanted", &wanted).file("data/other", &other);
        let config = json!({ "Labels": { "misbehave": name } });
        self.layout.image(name, &ImageSpec { config: Some(config), ..ImageSpec::new([tar.finish()]) })?;
        Ok(Image { reference: self.layout.reference(name), wanted, other })
    }

    fn mount(&self, image: &Image) -> anyhow::Result<PathBuf> {
        self.mesh.mount(&image.reference, "root")
    }

    fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.mesh.succeed(&[&["--json"], arguments].concat())?)?)
    }

    fn until(&self, what: &str, wanted: impl Fn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
        for _ in 0..POLLS {
            if wanted()? {
                return Ok(());
            }
            sleep(POLL);
        }
        bail!("not in time: {what}\n{}", self.mesh.frontend.server.log())
    }

    /// What the node has of its only image, in bytes.
    fn here(&self) -> anyhow::Result<u64> {
        let status = self.json(&["status"])?;
        status["images"][0]["bytes_local"].as_u64().with_context(|| format!("one image: {status}"))
    }

    /// Takes the image off the node.
    fn forget(&self, image: &Image, root: &Path) -> anyhow::Result<()> {
        self.mesh.succeed(&["umount", &root.display().to_string()])?;
        self.mesh.succeed(&["evict", &image.reference]).map(drop)
    }

    /// Starts the image until the node has got a plan for it in time.
    fn mount_by_plan(&self, image: &Image) -> anyhow::Result<PathBuf> {
        let unplanned = || self.mesh.frontend.server.log().matches(NO_PLAN).count();
        for _ in 0..STARTS {
            let before = unplanned();
            let root = self.mount(image)?;
            if unplanned() == before {
                return Ok(root);
            }
            self.forget(image, &root)?;
        }
        bail!("no plan came in time")
    }

    /// A start that reads `data/wanted`, until all know of it; then the image leaves the node. How many chunks it read.
    fn learn(&self, image: &Image) -> anyhow::Result<u64> {
        let root = self.mount(image)?;
        ensure!(fs::read(root.join("data/wanted"))? == image.wanted, "wrong bytes");
        let starts = || anyhow::Ok(self.json(&["inspect", &image.reference])?["starts"].clone());
        self.until("the start is known", || Ok(starts()?["reported"] == 1))?;
        self.forget(image, &root)?;
        starts()?["chunks"].as_u64().filter(|chunks| *chunks > 0).context("the start read nothing")
    }

    fn counted(&self, policy: &str, outcome: &str) -> anyhow::Result<f64> {
        let metric = format!("sluice_policy_plans_total{{policy=\"{policy}\",outcome=\"{outcome}\"");
        metrics::sum(self.admin, &metric)
    }

    /// `data/wanted` is here, whole, before anybody reads it, and nothing else is: it can be read without a cache.
    fn wanted_alone_is_here(&mut self, image: &Image, root: &Path) -> anyhow::Result<()> {
        self.until("what is wanted is here", || Ok(self.here()? >= LEN as u64))?;
        assert_eq!(self.here()?, LEN as u64, "something else was fetched, too");
        self.mesh.backend.cache.kill()?;
        ensure!(fs::read(root.join("data/wanted"))? == image.wanted, "wrong bytes");
        let status = self.json(&["status"])?;
        assert_eq!(status["images"][0]["demand_bytes"], 0, "{status}");
        Ok(())
    }
}

/// The set of the hostile planner alone.
fn hostile() -> anyhow::Result<String> {
    let plugin = binaries::plugin("tests/hostile-planner.wasm")?;
    let digest = testkit::layout::sha256(&fs::read(&plugin)?);
    Ok(format!("policy.set.prefetch=[{{name=\"bad\", source=\"file:{}@{digest}\"}}]", plugin.display()))
}

#[test]
fn the_default_policy_plans_what_an_earlier_start_has_read() -> anyhow::Result<()> {
    // Of policies nothing is said: the default set.
    let mut planning = Planning::start(&[])?;
    let image = planning.image("app")?;
    let chunks = planning.learn(&image)?;
    let root = planning.mount_by_plan(&image)?;
    planning.wanted_alone_is_here(&image, &root)?;

    let last = recorded(&planning)?.pop().context("a plan")?;
    let planned = &last;
    let asked = (&planned["starts"], &planned["chunks"], &planned["facts"]["image"]["reference"]);
    assert_eq!(asked, (&json!(1), &json!(chunks), &json!(image.reference)), "{last}");
    let said = ["policy", "mode", "items", "reason"].map(|of| planned["said"][of].clone());
    let items = json!([{ "chunks": [0, chunks] }]);
    assert_eq!(said, [json!("learned"), json!("listed-then-rest"), items, json!("profile")], "{last}");
    assert!(planning.counted("learned", "plan")? >= 2.0, "the plans were not counted");
    Ok(())
}

/// What was recorded of each plan, the oldest first.
fn recorded(planning: &Planning) -> anyhow::Result<Vec<Value>> {
    let recorded = fs::read_to_string(planning.mesh.scratch().path("decisions"))?;
    let lines = recorded.lines().filter(|line| line.contains("planned"));
    lines.map(|line| Ok(serde_json::from_str::<Value>(line)?["planned"].clone())).collect()
}

#[test]
fn what_one_node_read_is_planned_for_another_that_has_never_seen_the_image() -> anyhow::Result<()> {
    let mut planning = Planning::start(&[])?;
    let image = planning.image("app")?;
    let chunks = planning.learn(&image)?;
    planning.mesh.replace_node("node-2")?;
    let root = planning.mount_by_plan(&image)?;
    planning.wanted_alone_is_here(&image, &root)?;

    let plans = recorded(&planning)?;
    let of = |plan: &Value| {
        let asked = &plan["facts"]["asker"]["node"];
        (asked.clone(), plan["starts"].clone(), plan["said"]["policy"].clone(), plan["said"]["items"].clone())
    };
    let learned = json!("learned");
    let (first, last) = (plans.first().map(of), plans.last().map(of));
    assert_eq!(first, Some((json!("node"), json!(0), learned.clone(), json!([]))), "{plans:?}");
    let items = json!([{ "chunks": [0, chunks] }]);
    assert_eq!(last, Some((json!("node-2"), json!(1), learned, items)), "{plans:?}");
    Ok(())
}

#[test]
fn a_policy_plans_everything_for_a_node_that_fetches_nothing_by_itself() -> anyhow::Result<()> {
    let set = "policy.set.prefetch=[{name=\"all\", source=\"builtin:whole-image\"}]";
    let mut planning = Planning::start(&[set.to_owned()])?;
    let image = planning.image("app")?;
    let root = planning.mount_by_plan(&image)?;
    planning.until("all of it is here", || Ok(planning.here()? == 2 * LEN as u64))?;
    planning.mesh.backend.cache.kill()?;
    for (file, bytes) in [("data/wanted", &image.wanted), ("data/other", &image.other)] {
        ensure!(fs::read(root.join(file))? == *bytes, "{file}: wrong bytes");
    }
    let plans = recorded(&planning)?;
    let said = plans.last().map(|plan| (plan["said"]["policy"].clone(), plan["said"]["mode"].clone()));
    assert_eq!(said, Some((json!("all"), json!("everything"))), "{plans:?}");
    assert!(planning.counted("all", "plan")? >= 1.0, "the plans were not counted");
    Ok(())
}

#[test]
fn a_node_starts_images_while_its_prefetch_policy_fails() -> anyhow::Result<()> {
    let mut planning = Planning::start(&[hostile()?])?;
    // Some of all the ways: services/policy tests them all.
    for how in ["loop", "million-items"] {
        let image = planning.image(how)?;
        let root = planning.mount(&image)?;
        for (file, bytes) in [("data/wanted", &image.wanted), ("data/other", &image.other)] {
            ensure!(fs::read(root.join(file))? == *bytes, "{how}: wrong bytes");
        }
        planning.forget(&image, &root)?;
    }
    // The third failure, the last before it rests; and the same image again meanwhile, or a moment later.
    let image = planning.image("trap")?;
    planning.learn(&image)?;
    let root = planning.mount(&image)?;
    // As without any policy, the node fetches what the start before read.
    planning.wanted_alone_is_here(&image, &root)?;
    let log = planning.mesh.frontend.server.log();
    assert!(log.contains(NO_PLAN) && log.contains("no prefetch policy has a plan"), "{log}");
    // The node may have given up before the policy did.
    let counted = |outcome: &str| planning.counted("bad", outcome);
    planning
        .until("the failures are counted", || Ok((counted("time")?, counted("output")?) == (1.0, 1.0)))?;
    assert_eq!((counted("trap")? + counted("bypassed")?, counted("plan")?), (2.0, 0.0));
    Ok(())
}

#[test]
fn a_node_passes_over_what_no_image_has_and_no_path_leads_out_of_one() -> anyhow::Result<()> {
    let mut planning = Planning::start(&[hostile()?])?;
    let image = planning.image("absurd")?;
    let root = planning.mount_by_plan(&image)?;
    planning.wanted_alone_is_here(&image, &root)?;
    assert!(planning.counted("bad", "plan")? >= 1.0, "the plans were not counted");
    Ok(())
}
