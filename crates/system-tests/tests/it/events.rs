//! What happens to images is told as events: on the node, and to the whole mesh.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;

use anyhow::Context as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use system_tests::kubernetes::{Node, Options, busybox};
use system_tests::noise;
use testkit::ImageSpec;

/// A program, and so much data beside it.
fn application(seed: u64, len: usize) -> anyhow::Result<ImageSpec> {
    Ok(ImageSpec::new([busybox()?.directory("data").file("data/read", &noise(seed, len)).finish()]))
}

/// What `sluice events --json` prints, of one image.
fn events(node: &Node, image: &str) -> anyhow::Result<Vec<Value>> {
    lines(&node.scratch().succeed(["--json", "events", "--image", image])?)
}

fn lines(text: &str) -> anyhow::Result<Vec<Value>> {
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// Kind and reason of each.
fn told(events: &[Value]) -> Vec<(&str, &str)> {
    fn text(value: &Value) -> &str {
        value.as_str().unwrap_or_default()
    }
    events.iter().map(|event| (text(&event["kind"]), text(&event["reason"]))).collect()
}

/// `sluice events --mesh`, in the background until dropped.
struct Listener {
    process: Child,
    output: PathBuf,
}

impl Listener {
    fn start(node: &mut Node) -> anyhow::Result<Listener> {
        let url = node.backend()?.nats.url();
        let output = node.scratch().path("mesh-events");
        let mut command = node.scratch().command(["--nats", &url, "--json", "events", "--mesh"])?;
        let process = command.stdout(std::fs::File::create(&output)?).stderr(Stdio::null()).spawn()?;
        Ok(Listener { process, output })
    }

    fn heard(&self) -> anyhow::Result<Vec<Value>> {
        // The last line may not be whole yet.
        let text = std::fs::read_to_string(&self.output)?;
        lines(text.rsplit_once('\n').map_or("", |(whole, _)| whole))
    }

    /// Waits until an event is heard that is wanted.
    fn until(&self, node: &Node, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        node.settle(|_| self.heard().is_ok_and(|heard| heard.iter().any(&wanted)))?;
        self.heard()?.into_iter().find(wanted).context("heard and lost")
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[test]
fn a_node_tells_what_streams_what_is_complete_and_what_is_refused() -> anyhow::Result<()> {
    let refusal = r#"policy.set.eligibility=[{name="sizes", source="builtin:size-limits", settings={largest-image=4000000}}]"#;
    let node = Node::start(&Options { settings: vec![refusal.to_owned()], ..Options::default() })?;
    let (small, large) =
        (node.push("small", &application(1, 1_000)?)?, node.push("large", &application(2, 5_000_000)?)?);
    node.cri.pull(&small)?;
    node.cri.pull(&large)?;
    node.settle(|_| events(&node, &small).is_ok_and(|events| events.len() == 2))?;
    let of_small = events(&node, &small)?;
    assert_eq!(told(&of_small), [("streaming", "image-streaming"), ("complete", "image-complete")]);
    assert_eq!(of_small[0]["message"], format!("Image {small} is backed by image streaming."));
    assert_eq!(of_small[0]["warning"], false);
    assert!(of_small[1]["details"]["bytes"].as_str().is_some_and(|bytes| bytes != "0"), "{}", of_small[1]);

    let of_large = events(&node, &large)?;
    assert_eq!(told(&of_large), [("denied", "not-eligible")], "once, whatever the number of layers");
    let details = &of_large[0]["details"];
    assert_eq!((&details["policy"], &details["policy_reason"]), (&"sizes".into(), &"image-too-large".into()));
    assert_eq!(of_large[0]["warning"], true);
    // For people, and of one kind.
    let denied = node.scratch().succeed(["events", "--kind", "denied"])?;
    assert!(denied.lines().count() == 1 && denied.contains("  denied  not-eligible  "), "{denied}");
    Ok(())
}

#[test]
fn policies_know_where_the_node_is_and_what_was_asked_for() -> anyhow::Result<()> {
    let settings = [
        r#"policy.set.eligibility=[{name="near", source="builtin:registry-region"}]"#,
        "frontend.region=us-1",
        r#"frontend.labels={disk="ssd"}"#,
    ]
    .map(str::to_owned);
    let node = Node::start(&Options { settings: settings.to_vec(), ..Options::default() })?;
    let image = node.push("app", &application(1, 1_000)?)?;
    node.cri.pull(&image)?;
    let told = events(&node, &image)?;
    assert_eq!(told[0]["details"]["policy_reason"], "registry-region-unknown", "{told:?}");
    let message = told[0]["message"].to_string();
    assert!(message.contains("the nodes are in us-1") && message.contains("app:latest"), "{message}");
    Ok(())
}

#[test]
fn the_mesh_hears_what_goes_wrong_on_its_nodes() -> anyhow::Result<()> {
    let settings = [
        "frontend.resolve_timeout=8s",
        "frontend.read_timeout=8s",
        "frontend.node=node-7",
        "frontend.background=false",
    ];
    let options =
        Options { services: true, settings: settings.map(str::to_owned).to_vec(), ..Options::default() };
    let mut node = Node::start(&options)?;
    let listener = Listener::start(&mut node)?;
    let (first, second) =
        (node.push("first", &application(1, 3_000_000)?)?, node.push("second", &application(2, 1_000)?)?);
    node.cri.pull(&first)?;
    let streams = listener.until(&node, |event| event["image"] == first.as_str())?;
    assert_eq!((&streams["kind"], &streams["node"]), (&"streaming".into(), &"node-7".into()), "{streams}");

    let pod = node.cri.pod("one")?;
    node.backend()?.fetcher.kill()?;
    node.cri.pull(&second)?;
    let fallback = listener.until(&node, |event| event["image"] == second.as_str())?;
    assert_eq!((&fallback["kind"], &fallback["reason"]), (&"fallback".into(), &"mesh-away".into()));
    assert_eq!(told(&events(&node, &second)?), [("fallback", "mesh-away")], "the node itself says the same");

    // Nothing has its content any more: a read fails, in the end, and says so.
    node.backend()?.cache.kill()?;
    let container = node.cri.start(&pod, "reader", &first, &["/bin/sleep", "1000"]);
    assert!(container.is_err() || node.cri.exec(&container?, &["/bin/cat", "/data/read"]).is_err());
    let failed = listener.until(&node, |event| event["reason"] == "read-failed")?;
    assert_eq!(failed["kind"], "degraded");
    for detail in ["object", "offset", "size"] {
        assert!(failed["details"][detail].is_string(), "{failed}");
    }
    Ok(())
}

/// Every chunk in a store, with one byte changed; what they were.
fn damage(store: &Path) -> anyhow::Result<Vec<(PathBuf, Vec<u8>)>> {
    let (mut found, mut open) = (Vec::new(), vec![store.join("default/chunks")]);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let good = std::fs::read(&path)?;
            let mut bad = good.clone();
            bad[good.len() / 2] ^= 0x20;
            std::fs::write(&path, bad)?;
            found.push((path, good));
        }
    }
    Ok(found)
}

#[test]
fn reads_past_the_caches_and_what_arrives_corrupt_are_told() -> anyhow::Result<()> {
    let background = "frontend.background=false".to_owned();
    let options = Options { services: true, settings: vec![background.clone()], ..Options::default() };
    let mut node = Node::start(&options)?;
    let data = noise(7, 3_000_000);
    let image = node.push("app", &application(7, 3_000_000)?)?;
    node.cri.pull(&image)?;
    let pod = node.cri.pod("one")?;
    let container = node.cri.start(&pod, "reader", &image, &["/bin/sleep", "1000"])?;
    let store = node.scratch().path("mesh-store");
    node.sluice.kill()?;
    let settings = vec![background, format!("store.url={}", store.display())];
    node.restart_sluice(&Options { settings, ..options })?;
    let listener = Listener::start(&mut node)?;
    node.backend()?.cache.kill()?;
    let good = damage(&store)?;
    assert!(good.len() > 3, "{} chunks", good.len());
    let printed = thread::scope(|scope| {
        let reader = scope.spawn(|| node.cri.exec(&container, &["/bin/sha256sum", "/data/read"]));
        let corrupt = listener.until(&node, |event| event["reason"] == "corrupt-content");
        // In any case: the reader waits for it.
        for (path, bytes) in good {
            std::fs::write(path, bytes)?;
        }
        let corrupt = corrupt?;
        assert_eq!(corrupt["kind"], "degraded");
        assert!(corrupt["details"]["digest"].is_string(), "{corrupt}");
        reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?
    })?;
    assert!(printed.starts_with(&hex::encode(Sha256::digest(&data))), "{printed}");
    let past = listener.until(&node, |event| event["reason"] == "past-caches")?;
    assert_eq!(past["kind"], "degraded");
    node.cri.stop(&container)?;
    node.cri.remove_pod(&pod)
}

#[test]
fn events_name_the_pods_that_pulled_and_an_embedded_node_writes_them() -> anyhow::Result<()> {
    let file = tempfile::tempdir()?;
    let path = file.path().join("events.json");
    let settings = [
        format!("events.sinks.audit={{ file = {{ path = {path:?} }} }}"),
        // One streams, the other does not.
        r#"policy.set.eligibility=[{name="sizes", source="builtin:size-limits", settings={largest-image=4000000}}]"#
            .to_owned(),
    ];
    let options = Options { image_service: true, settings: settings.to_vec(), ..Options::default() };
    let node = Node::start(&options)?;
    let (small, large) =
        (node.push("small", &application(1, 1_000)?)?, node.push("large", &application(2, 5_000_000)?)?);
    let pod = node.cri.pod("web")?;
    node.cri.pull_for(&small, &pod)?;
    node.cri.pull_for(&large, &pod)?;
    node.settle(|_| events(&node, &small).is_ok_and(|events| events.len() == 2))?;
    for image in [&small, &large] {
        for event in events(&node, image)? {
            let pods = event["pods"].as_array().context("no pods")?;
            assert_eq!(
                (pods.len(), &pods[0]["name"], &pods[0]["namespace"]),
                (1, &"web".into(), &"default".into())
            );
            assert!(pods[0]["uid"].as_str().is_some_and(|uid| uid.starts_with("web-")), "{event}");
        }
    }
    let of_both = |events: &[Value]| {
        let ours = events
            .iter()
            .filter(|event| [&small, &large].iter().any(|image| event["subject"] == image.as_str()));
        let kinds: Vec<&Value> = ours.map(|event| &event["data"]["kind"]).collect();
        ["streaming", "complete", "denied"].iter().all(|kind| kinds.contains(&&Value::from(*kind)))
    };
    let written = || lines(&std::fs::read_to_string(&path).unwrap_or_default());
    node.settle(|_| written().is_ok_and(|events| of_both(&events)))?;
    let is_small = |event: &Value| event["data"]["kind"] == "streaming" && event["subject"] == small.as_str();
    let streaming = written()?.into_iter().find(is_small);
    let streaming = streaming.context("it was there")?;
    assert_eq!(streaming["type"], "dev.sluice.image.streaming.v1");
    assert_eq!(streaming["data"]["pods"][0]["name"], "web");
    node.cri.remove_pod(&pod)
}
