//! Policies decide what streams: each one that comes with sluice, asked by a real import, in one process and in a mesh. Who
//! is refused learns the policy's reason, and `sluice inspect` shows what every policy says.

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use anyhow::ensure;
use serde_json::{Value, json};
use system_tests::services::{Backend, Service};
use system_tests::{Scratch, binaries, metrics, noise};
use testkit::{Compression, ImageSpec, LayoutWriter, Registry, Tarball, port};

/// A set of all eligibility policies, each set so that one of the images displeases it.
const SET: &str = r#"
[[eligibility]]
name = "schema-version"
source = "builtin:schema-version"
[[eligibility]]
name = "encrypted-layers"
source = "builtin:encrypted-layers"
[[eligibility]]
name = "layer-shape"
source = "builtin:layer-shape"
[[eligibility]]
name = "size-limits"
source = "builtin:size-limits"
settings = { largest-image = 150_000 }
[[eligibility]]
name = "registry-region"
source = "builtin:registry-region"
settings = { region = "eu-1", areas = { europe = ["eu-1"] }, registries = { us-1 = ["REGISTRY"] } }
"#;
pub(crate) const NOT_ELIGIBLE: i32 = 3;

/// Images, one for each policy to refuse, and one that all of them accept.
struct Images {
    registry: Registry,
    layout: LayoutWriter,
}

impl Images {
    fn make(scratch: &Scratch) -> anyhow::Result<Images> {
        let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
        let tar = |seed, len| Tarball::new().file("file", &noise(seed, len)).finish();
        layout.image("good", &ImageSpec::new([tar(1, 10_000)]))?;
        layout.image("large", &ImageSpec::new([tar(2, 200_000)]))?;
        layout.image("twice", &ImageSpec::new([tar(3, 10_000), tar(3, 10_000)]))?;
        let layer = layout.blob(&noise(4, 1_000), "application/vnd.oci.image.layer.v1.tar+gzip+encrypted")?;
        let rootfs = json!({ "type": "layers", "diff_ids": [layer["digest"]] });
        let config = json!({ "os": "linux", "architecture": "amd64", "rootfs": rootfs });
        layout.manifest("encrypted", config, vec![layer.clone()])?;
        let old = json!({ "schemaVersion": 1, "fsLayers": [{ "blobSum": layer["digest"] }] });
        layout.document("old", &old, "application/vnd.docker.distribution.manifest.v1+json")?;
        let registry = Registry::start()?;
        registry.push(&layout.reference("good"), "far:latest")?;
        Ok(Images { registry, layout })
    }

    /// Each image that is refused, the policy that does it, and its code.
    fn refused(&self) -> [(String, &'static str, &'static str); 5] {
        [
            (self.layout.reference("old"), "schema-version", "schema-version"),
            (self.layout.reference("encrypted"), "encrypted-layers", "encrypted-layers"),
            (self.layout.reference("twice"), "layer-shape", "duplicate-layer"),
            (self.layout.reference("large"), "size-limits", "image-too-large"),
            (self.registry.reference("far:latest"), "registry-region", "region-mismatch"),
        ]
    }
}

/// Runs `sluice` as the case has it.
type Sluice<'a> = &'a dyn Fn(&[&str]) -> anyhow::Result<Output>;

pub(crate) fn inspect(sluice: Sluice<'_>, image: &str) -> anyhow::Result<(Option<i32>, Value)> {
    let output = sluice(&["--json", "inspect", "--plain-http", image])?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.stdout.is_empty(), "inspect {image}: {errors}");
    Ok((output.status.code(), serde_json::from_slice(&output.stdout)?))
}

fn says<'a>(inspected: &'a Value, policy: &str) -> &'a Value {
    let policies = inspected["policies"].as_array().map_or(&[][..], Vec::as_slice);
    policies.iter().find(|verdict| verdict["policy"] == policy).unwrap_or(&Value::Null)
}

/// What has to hold in both ways of running sluice.
fn check(sluice: Sluice<'_>, images: &Images) -> anyhow::Result<()> {
    for (image, policy, code) in images.refused() {
        let output = sluice(&["import", "--plain-http", &image])?;
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(NOT_ELIGIBLE), "{image}: {message}");
        assert!(message.contains(&format!("(policy {policy}: {code})")), "{image}: {message}");

        let (exit, inspected) = inspect(sluice, &image)?;
        assert_eq!(exit, Some(NOT_ELIGIBLE), "{inspected}");
        let verdict = says(&inspected, policy);
        assert_eq!(
            (&verdict["decision"], &verdict["reason"]),
            (&json!("refuse"), &json!(code)),
            "{inspected}"
        );
        assert!(inspected["ineligible"].to_string().contains(code), "{inspected}");
        assert_eq!(inspected["image"], Value::Null, "it was imported all the same");
    }
    let good = images.layout.reference("good");
    let output = sluice(&["import", &good])?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (exit, inspected) = inspect(sluice, &good)?;
    assert_eq!((exit, &inspected["ineligible"]), (Some(0), &json!([])), "{inspected}");
    assert_eq!(inspected["policies"].as_array().map(Vec::len), Some(5), "{inspected}");
    Ok(())
}

pub(crate) fn write_set(scratch: &Scratch, set: &str) -> anyhow::Result<PathBuf> {
    let file = scratch.path("policies.toml");
    fs::write(&file, set)?;
    Ok(file)
}

/// NATS, fetcher, cache and, when asked for, the policies, each a process.
pub(crate) struct Mesh {
    pub(crate) backend: Backend,
    pub(crate) policy: Option<Service>,
    pub(crate) scratch: Scratch,
}

impl Mesh {
    pub(crate) fn start(scratch: Scratch, fetcher: &[&str], set: Option<&PathBuf>) -> anyhow::Result<Mesh> {
        let settings: Vec<String> =
            ["fetcher.local_sources=true"].iter().chain(fetcher).map(|s| (*s).to_owned()).collect();
        let backend = Backend::start(&scratch, port::free()?, &settings, &[])?;
        let start = |file: &PathBuf| {
            backend.service(&scratch, "policy", &[format!("policy.file={}", file.display())])
        };
        let policy = set.map(start).transpose()?;
        Ok(Mesh { backend, policy, scratch })
    }

    pub(crate) fn sluice(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = binaries::command("sluice")?;
        command.args(["--nats", &self.backend.nats.url(), "--state"]).arg(self.scratch.path("cli"));
        Ok(command.args(arguments).output()?)
    }
}

#[test]
fn in_one_process_every_policy_refuses_what_displeases_it() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let images = Images::make(&scratch)?;
    let file = write_set(&scratch, &SET.replace("REGISTRY", &images.registry.host()))?;
    let set = format!("policy.file={}", file.display());
    check(&|arguments| scratch.run([&["--set", &set], arguments].concat()), &images)
}

#[test]
fn in_a_mesh_every_policy_refuses_what_displeases_it() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let images = Images::make(&scratch)?;
    let file = write_set(&scratch, &SET.replace("REGISTRY", &images.registry.host()))?;
    // The policies may come up after the fetcher.
    let patience = ["fetcher.judging.unanswered=refuse", "fetcher.judging.wait=30s"];
    let mesh = Mesh::start(scratch, &patience, Some(&file))?;
    check(&|arguments| mesh.sluice(arguments), &images)?;
    ensure!(mesh.policy.is_some(), "no policies ran");
    Ok(())
}

#[test]
fn without_policies_a_mesh_streams_or_refuses_as_it_is_told() -> anyhow::Result<()> {
    let image = |scratch: &Scratch| -> anyhow::Result<String> {
        let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
        let tar = Tarball::new().file("file", &noise(1, 10_000)).finish();
        layout.image("good", &ImageSpec { layers: vec![(tar, Some(Compression::Gzip))], config: None })?;
        Ok(layout.reference("good"))
    };
    let scratch = Scratch::new()?;
    let good = image(&scratch)?;
    let open = Mesh::start(scratch, &[], None)?;
    assert!(open.sluice(&["import", &good])?.status.success());

    let scratch = Scratch::new()?;
    let good = image(&scratch)?;
    let closed =
        Mesh::start(scratch, &["fetcher.judging.unanswered=refuse", "fetcher.judging.wait=1s"], None)?;
    let output = closed.sluice(&["import", &good])?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("policies must agree, and nobody answers for them"), "{message}");
    Ok(())
}

#[test]
fn what_policies_do_is_counted() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    for (name, how) in [("good", "not"), ("bad", "trap")] {
        let tar = Tarball::new().file("file", &noise(1, 10_000)).finish();
        let config = json!({ "Labels": { "misbehave": how } });
        layout
            .image(name, &ImageSpec { layers: vec![(tar, Some(Compression::Gzip))], config: Some(config) })?;
    }
    let plugin = binaries::plugin("tests/hostile.wasm")?;
    let source = format!("file:{}@{}", plugin.display(), testkit::layout::sha256(&fs::read(&plugin)?));
    let set = format!("[[eligibility]]\nname = 'mine'\nsource = '{source}'\non_failure = 'abstain'\n");
    let file = write_set(&scratch, &set)?;
    let mut mesh = Mesh::start(scratch, &[], None)?;
    let admin = port::free()?;
    let settings = [format!("policy.file={}", file.display()), format!("lifecycle.admin=127.0.0.1:{admin}")];
    mesh.policy = Some(mesh.backend.service(&mesh.scratch, "policy", &settings)?);
    let mut tries = 0;
    while metrics::sum(admin, "sluice_policy_evaluations_total").unwrap_or(0.0) == 0.0 {
        // Until the service is there nobody is asked.
        ensure!(tries < 300, "nothing is counted");
        (tries, _) = (tries + 1, mesh.sluice(&["inspect", &layout.reference("good")])?);
    }
    for _ in 0..3 {
        mesh.sluice(&["inspect", &layout.reference("bad")])?;
    }
    for (name, least) in [
        ("sluice_policy_evaluations_total{policy=\"mine\",decision=\"accept\",mode=\"enforce\"}", 1.0),
        ("sluice_policy_evaluations_total{policy=\"mine\",decision=\"abstain\"", 3.0),
        ("sluice_policy_failures_total{policy=\"mine\",kind=\"trap\"}", 3.0),
        ("sluice_policy_duration_seconds_count{policy=\"mine\"}", 4.0),
        ("sluice_policy_cpu_seconds_count{policy=\"mine\"}", 4.0),
        ("sluice_policy_memory_high_water_bytes{policy=\"mine\"}", 65_536.0),
        ("sluice_policy_circuit_open{policy=\"mine\"}", 1.0),
        ("sluice_policy_generation", 1.0),
    ] {
        let counted = metrics::sum(admin, name)?;
        ensure!(counted >= least, "{name} is {counted}, not at least {least}");
    }
    Ok(())
}

#[test]
fn a_policy_that_fails_refuses_by_its_rule_and_inspect_says_why() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    let tar = Tarball::new().file("file", &noise(1, 10_000)).finish();
    let config = json!({ "Labels": { "misbehave": "panic" } });
    layout.image("bad", &ImageSpec { layers: vec![(tar, Some(Compression::Gzip))], config: Some(config) })?;
    let plugin = binaries::plugin("tests/hostile.wasm")?;
    let source = format!("file:{}@{}", plugin.display(), testkit::layout::sha256(&fs::read(&plugin)?));
    for (rule, exit) in [("refuse", NOT_ELIGIBLE), ("abstain", 0)] {
        let set = format!("[[eligibility]]\nname = 'mine'\nsource = '{source}'\non_failure = '{rule}'");
        let set = format!("policy.file={}", write_set(&scratch, &set)?.display());
        let run = |arguments: &[&str]| scratch.run([&["--set", &set], arguments].concat());
        let (code, inspected) = inspect(&run, &layout.reference("bad"))?;
        assert_eq!(code, Some(exit), "{inspected}");
        let verdict = says(&inspected, "mine");
        assert_eq!(
            (&verdict["decision"], &verdict["failure"]),
            (&json!(rule), &json!("trap")),
            "{inspected}"
        );
        assert!(verdict["message"].to_string().contains("nobody expects this"), "{inspected}");
    }
    Ok(())
}

/// docs/policies.md: the example is checked, tried on facts and on an image, and decides.
#[test]
fn the_example_of_the_guide_is_checked_tried_and_used() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let images = Images::make(&scratch)?;
    let latest = images.registry.reference("far:latest");
    let plugin = binaries::plugin("tests/no-latest.wasm")?.display().to_string();
    let checked = scratch.json(["policy", "check", &plugin])?;
    assert_eq!(
        (&checked["world"], &checked["version"]),
        (&json!("eligibility"), &json!("1.0.0")),
        "{checked}"
    );
    let source = checked["source"].as_str().unwrap_or_default().to_owned();

    let facts = scratch.json(["policy", "facts", "--plain-http", &latest])?;
    assert_eq!(
        (&facts["image"]["tag"], &facts["image"]["schema_version"]),
        (&json!("latest"), &json!(2)),
        "{facts}"
    );
    let file = scratch.path("facts.json");
    fs::write(&file, facts.to_string())?;
    for about in [vec!["--facts", file.to_str().unwrap_or_default()], vec!["--plain-http", &latest]] {
        let output = scratch.run([&["policy", "run", plugin.as_str()][..], &about].concat())?;
        assert_eq!(output.status.code(), Some(NOT_ELIGIBLE), "{}", String::from_utf8_lossy(&output.stderr));
        let verdict: Value = serde_json::from_slice(&output.stdout)?;
        assert_eq!(verdict["reason"], "tag-refused", "{verdict}");
    }

    let set = format!("policy.set.eligibility=[{{name=\"mine\", source=\"{source}\"}}]");
    let output = scratch.run(["--set", &set, "import", "--plain-http", &latest])?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(NOT_ELIGIBLE), "{message}");
    assert!(message.contains("name another") && message.contains("(policy mine: tag-refused)"), "{message}");
    let listed = scratch.json(["--set", &set, "policy", "ls"])?;
    assert_eq!(listed["policies"][0]["name"], "mine", "{listed}");
    Ok(())
}
