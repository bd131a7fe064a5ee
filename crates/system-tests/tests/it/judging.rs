//! Who judges images, what holds when those who should do not answer, and that containers start whatever they say.

use std::collections::HashSet;
use std::fs;

use anyhow::ensure;
use serde_json::{Value, json};
use system_tests::kubernetes::{Node, Options};
use system_tests::{Numbered, Scratch, binaries, noise};
use testkit::{Compression, ImageSpec, LayoutWriter, Server, Tarball};

use crate::policies::{Mesh, NOT_ELIGIBLE, inspect, write_set};

/// That nobody answers, and that no answer comes in time, are two things.
#[test]
fn an_image_that_keeps_a_mesh_from_judging_it_does_not_stream() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    let tar = Tarball::new().file("file", &noise(1, 10_000)).finish();
    let config = json!({ "Labels": { "misbehave": "loop" } });
    layout.image("bad", &ImageSpec { layers: vec![(tar, Some(Compression::Gzip))], config: Some(config) })?;
    let plugin = binaries::plugin("tests/hostile.wasm")?;
    let source = format!("file:{}@{}", plugin.display(), testkit::layout::sha256(&fs::read(&plugin)?));
    let file = write_set(&scratch, &format!("[[eligibility]]\nname = 'mine'\nsource = '{source}'\n"))?;
    let mut mesh = Mesh::start(scratch, &["fetcher.judging.wait=1s"], None)?;
    let set = format!("policy.file={}", file.display());
    let settings = [set, "policy.limits.time=60s".to_owned(), "policy.limits.total_time=60s".to_owned()];
    mesh.policy = Some(mesh.backend.service(&mesh.scratch, "policy", &settings)?);
    let mut tries = 0;
    while !mesh.sluice(&["policy", "ls"])?.status.success() {
        ensure!(tries < 300, "no policy answers");
        tries += 1;
    }
    let output = mesh.sluice(&["import", &layout.reference("bad")])?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(NOT_ELIGIBLE), "{message}");
    assert!(message.contains("was not answered within 1s") && message.contains("policy-failed"), "{message}");
    let (exit, inspected) = inspect(&|arguments| mesh.sluice(arguments), &layout.reference("bad"))?;
    assert_eq!((exit, &inspected["image"]), (Some(NOT_ELIGIBLE), &Value::Null), "{inspected}");
    assert!(inspected["ineligible"].to_string().contains("policy-failed"), "{inspected}");
    Ok(())
}

/// Beside a policy service whose set has the policy `strict`.
fn policies_that_answer_beside_a_node(own: Option<&str>) -> anyhow::Result<HashSet<String>> {
    let scratch = Scratch::new()?;
    let set = write_set(&scratch, "[[eligibility]]\nname = 'strict'\nsource = 'builtin:size-limits'\n")?;
    let mesh = Mesh::start(scratch, &[], Some(&set))?;
    let names = || -> anyhow::Result<Vec<String>> {
        let output = mesh.sluice(&["--json", "policy", "ls"])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let listed: Value = serde_json::from_slice(&output.stdout)?;
        let policies = listed["policies"].as_array().map_or(&[][..], Vec::as_slice);
        Ok(policies.iter().filter_map(|policy| Some(policy["name"].as_str()?.to_owned())).collect())
    };
    let mut tries = 0;
    while names().is_err() {
        ensure!(tries < 300, "no policy answers");
        tries += 1;
    }
    let mut command =
        mesh.scratch.command(["--nats", &mesh.backend.nats.url(), "--set", "lifecycle.drain_timeout=1s"])?;
    command.arg("--store").arg(mesh.scratch.path("mesh-store"));
    if let Some(own) = own {
        command.args(["--set", own]);
    }
    let socket = mesh.scratch.path("node.sock");
    command.arg("--node").arg(&socket).arg("serve");
    let mut node = Server::spawn(command, &mesh.scratch.path("serve.log"), "a binary of this workspace")?;
    node.wait_until("the node", || socket.exists())?;
    // Whom a question goes to is chance.
    (0..20)
        .map(|_| names())
        .collect::<anyhow::Result<Vec<_>>>()
        .map(|names| names.concat().into_iter().collect())
}

#[test]
fn a_node_of_a_mesh_leaves_policies_to_the_mesh_unless_it_is_told_its_own() -> anyhow::Result<()> {
    let answered = policies_that_answer_beside_a_node(None)?;
    assert!(answered.contains("strict") && !answered.contains("schema-version"), "{answered:?}");
    let own = "policy.set.eligibility=[{name=\"own\", source=\"builtin:schema-version\"}]";
    let answered = policies_that_answer_beside_a_node(Some(own))?;
    assert!(answered.contains("strict") && answered.contains("own"), "{answered:?}");
    Ok(())
}

#[test]
fn a_node_starts_containers_while_its_policies_cannot_be_used() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let file = scratch.path("policies.toml");
    let settings = vec![format!("policy.file={}", file.display())];
    let node = Node::start(&Options { settings, ..Options::default() })?;
    let numbered = Numbered { files: 2, len: 10_000, seed: 40 };
    let image = numbered.pull(&node, "app")?;
    let pod = node.cri.pod("one")?;
    let container = node.cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;
    numbered.read_inside(&node, &container, 0..2)?;
    let told = node.scratch().succeed(["events", "--kind", "policy-set"])?;
    assert!(told.contains("unusable") && told.contains("policies.toml"), "{told}");
    fs::write(&file, "[[eligibility]]\nname = 'size'\nsource = 'builtin:size-limits'\n")?;
    node.settle(|_| node.sluice.log().contains("the policies can be used now"))
}

#[test]
fn a_container_of_an_image_that_a_policy_refused_starts_the_ordinary_way() -> anyhow::Result<()> {
    let refusal = r#"policy.set.eligibility=[{name="sizes", source="builtin:size-limits", settings={largest-image=1}}]"#;
    let node = Node::start(&Options { settings: vec![refusal.to_owned()], ..Options::default() })?;
    let numbered = Numbered { files: 2, len: 10_000, seed: 41 };
    let image = numbered.pull(&node, "app")?;
    let pod = node.cri.pod("one")?;
    let container = node.cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;
    numbered.read_inside(&node, &container, 0..2)?;
    let told = node.scratch().succeed(["events", "--image", &image])?;
    assert!(told.contains("image-too-large") && !told.contains("image-streaming"), "{told}");
    let status = node.scratch().json(["status"])?;
    assert_eq!(status["images"], json!([]), "it streams all the same: {status}");
    Ok(())
}
