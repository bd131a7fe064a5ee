//! The guide of `docs/policies.md`: a project is begun in each language, built with its own script, and decides within the default
//! limits.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;
use serde_json::{Value, json};
use system_tests::{Scratch, binaries};
use testkit::{ImageSpec, LayoutWriter, Registry, Tarball};

use crate::projects::{begun, build};

const NOT_ELIGIBLE: i32 = 3;
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../plugins/examples");

/// Settings, and what is then said of an image of the tag `latest`: exit code and decision.
type Case = (&'static str, i32, &'static str);
const CASES: [Case; 3] = [
    ("tags = ['nightly', 'latest']", NOT_ELIGIBLE, "refuse"),
    ("tags = ['nightly']", 0, "abstain"),
    ("", NOT_ELIGIBLE, "refuse"),
];

fn decides(scratch: &Scratch, plugin: &Path, cases: &[Case]) -> anyhow::Result<()> {
    let (plugin, facts) = (plugin.display().to_string(), format!("{EXAMPLES}/facts.json"));
    let checked = scratch.json(["policy", "check", &plugin])?;
    let shown = (&checked["world"], &checked["version"], &checked["settings"][0]["name"]);
    assert_eq!(shown, (&json!("eligibility"), &json!("1.0.0"), &json!("tags")), "{checked}");

    let run = |settings: &str| {
        let file = scratch.path("settings.toml");
        std::fs::write(&file, settings)?;
        let settings = file.display().to_string();
        scratch.run(["policy", "run", &plugin, "--facts", &facts, "--settings", &settings])
    };
    for (settings, exit, decision) in cases {
        let output = run(settings)?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(*exit), "{settings}: {errors}");
        let verdict: Value = serde_json::from_slice(&output.stdout)?;
        assert_eq!(verdict["decision"], *decision, "{settings}: {verdict}");
        if *decision == "refuse" {
            let said = (&verdict["reason"], &verdict["details"]["tag"]);
            assert_eq!(said, (&json!("tag-refused"), &json!("latest")), "{verdict}");
        }
    }
    let output = run("tags = ['']")?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("its settings are wrong: tags: a tag is never empty"), "{errors}");
    Ok(())
}

/// Pushed to a registry, pulled from there by its digest, and asked by a real import.
fn decides_from_a_registry(scratch: &Scratch, plugin: &Path) -> anyhow::Result<()> {
    let registry = Registry::start()?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    layout.image("app", &ImageSpec::new([Tarball::new().file("file", b"content").finish()]))?;
    let image = registry.push(&layout.reference("app"), "app:latest")?;
    let (plugin, name) = (plugin.display().to_string(), format!("oci://{}/mine:1", registry.host()));
    let source = scratch.succeed(["policy", "push", "--plain-http", &plugin, &name])?;
    let set = format!("policy.set.eligibility=[{{name=\"mine\", source=\"{}\"}}]", source.trim());
    let plain = format!("policy.registry.plain_http=[\"{}\"]", registry.host());
    let output = scratch.run(["--set", &set, "--set", &plain, "import", "--plain-http", &image])?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(NOT_ELIGIBLE), "{errors}");
    assert!(errors.contains("(policy mine: tag-refused)"), "{errors}");
    Ok(())
}

/// Begun and built in a language.
fn built(scratch: &Scratch, language: &str) -> anyhow::Result<PathBuf> {
    build(&begun(scratch, language, "eligibility")?)
}

#[test]
fn the_example_in_rust_is_built_and_decides() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let plugin = built(&scratch, "rust")?;
    decides(&scratch, &plugin, &CASES)?;
    decides_from_a_registry(&scratch, &plugin)
}

#[test]
fn the_example_in_python_is_built_and_decides() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    // Each command compiles a whole interpreter, and an unoptimised build of ours takes its time: so fewer of them.
    let plugin = built(&scratch, "python")?;
    decides(&scratch, &plugin, &CASES[..1])?;
    decides_from_a_registry(&scratch, &plugin)
}

#[test]
fn the_example_in_javascript_is_built_and_decides() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let plugin = built(&scratch, "js")?;
    decides(&scratch, &plugin, &CASES)?;
    decides_from_a_registry(&scratch, &plugin)
}

#[test]
fn the_example_in_c_is_built_and_decides() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let plugin = built(&scratch, "c")?;
    decides(&scratch, &plugin, &CASES)?;
    decides_from_a_registry(&scratch, &plugin)
}

#[test]
fn recorded_decisions_are_taken_again_by_another_version() -> anyhow::Result<()> {
    const DIFFERENT: i32 = 5;
    let scratch = Scratch::new()?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    layout.image("app", &ImageSpec::new([Tarball::new().file("file", b"content").finish()]))?;
    let registry = Registry::start()?;
    let [latest, other] = ["app:latest", "app:2"].map(|name| registry.push(&layout.reference("app"), name));
    let plugin = binaries::plugin("tests/no-latest.wasm")?.display().to_string();
    let source =
        scratch.json(["policy", "check", &plugin])?["source"].as_str().unwrap_or_default().to_owned();
    let set = format!("policy.set.eligibility=[{{name=\"mine\", source=\"{source}\"}}]");
    let file = scratch.path("decisions").display().to_string();
    let record = format!("policy.record.file={file}");
    for image in [&latest?, &other?] {
        let asked = [
            "--set",
            &set,
            "--set",
            &record,
            "inspect",
            "--plain-http",
            "--username",
            "me",
            "--password-stdin",
            image,
        ];
        let mut inspect = scratch.command(asked)?;
        let mut inspect =
            inspect.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        inspect.stdin.take().context("its input")?.write_all(b"a-secret-of-mine")?;
        inspect.wait()?;
    }
    let recorded = std::fs::read_to_string(&file)?;
    assert_eq!(recorded.lines().count(), 2, "{recorded}");
    assert!(!recorded.contains("a-secret-of-mine"), "a credential was written down");

    let replay = |settings: &str| {
        let settings_file = scratch.path("settings.toml");
        std::fs::write(&settings_file, settings)?;
        let settings_file = settings_file.display().to_string();
        let asked = [
            "--json",
            "policy",
            "replay",
            &file,
            "--plugin",
            &plugin,
            "--as",
            "mine",
            "--settings",
            &settings_file,
        ];
        let output = scratch.run(asked)?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let replayed: Value = serde_json::from_slice(&output.stdout).with_context(|| errors)?;
        anyhow::Ok((output.status.code(), replayed))
    };
    let (exit, same) = replay("")?;
    assert_eq!((exit, &same["decisions"], &same["different"]), (Some(0), &json!(2), &json!(0)), "{same}");
    let (exit, other) = replay("tags = ['2', '3']")?;
    assert_eq!((exit, &other["different"]), (Some(DIFFERENT), &json!(2)), "{other}");
    let differences = other["differences"].as_array().cloned().unwrap_or_default();
    let said = |image: &str| {
        let of = differences.iter().find(|one| one["image"].to_string().contains(image));
        of.map(|one| (one["was"].clone(), one["now"].clone()))
    };
    assert_eq!(said("app:latest"), Some((json!("refuse (tag-refused)"), json!("abstain"))), "{other}");
    assert_eq!(said("app:2"), Some((json!("abstain"), json!("refuse (tag-refused)"))), "{other}");
    // The default set lets both stream.
    let output = scratch.run(["policy", "replay", &file])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(DIFFERENT) && text.starts_with("1 of 2 decisions differ"), "{text}");

    let cost = scratch.json(["policy", "bench", &plugin, "--calls", "50"])?;
    assert!(cost["answer"]["p99"].as_f64() >= cost["answer"]["p50"].as_f64(), "{cost}");
    assert!(cost["memory"].as_u64() > Some(0) && cost["compile"].as_u64() > Some(0), "{cost}");
    Ok(())
}
