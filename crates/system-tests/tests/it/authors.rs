//! The guide of `docs/policies.md`: a project is begun in each language, built with its own script, and decides within the default
//! limits. Rust's target may be missing here, so the plugin of that language is the one that `./just plugins` built.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use system_tests::{Scratch, binaries};

const NOT_ELIGIBLE: i32 = 3;
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../plugins/examples");

/// Settings, and what is then said of an image of the tag `latest`: exit code and decision.
type Case = (&'static str, i32, &'static str);
const CASES: [Case; 3] = [
    ("tags = ['nightly', 'latest']", NOT_ELIGIBLE, "refuse"),
    ("tags = ['nightly']", 0, "abstain"),
    ("", NOT_ELIGIBLE, "refuse"),
];

/// Begins a project; its folder.
fn begun(scratch: &Scratch, language: &str) -> anyhow::Result<PathBuf> {
    let folder = scratch.path(language);
    let arguments =
        ["policy", "new", "mine", "--lang", language, &folder.display().to_string()].map(str::to_owned);
    scratch.succeed(&arguments)?;
    let again = scratch.refuse(&arguments)?;
    assert!(again.contains("is not empty: name another folder"), "{again}");
    Ok(folder)
}

/// Begins one and builds it. A tool that is missing is an error: `./just authors` installs them.
fn built(scratch: &Scratch, language: &str) -> anyhow::Result<PathBuf> {
    let folder = begun(scratch, language)?;
    let output = Command::new(folder.join("build")).output().context("running the build script")?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "building the example in {language}: {errors}");
    Ok(folder.join("mine.wasm"))
}

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

#[test]
fn the_example_in_rust_decides_and_a_project_of_it_is_whole() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    decides(&scratch, &binaries::plugin("tests/no-latest.wasm")?, &CASES)?;
    let mut check = Command::new("cargo");
    check.args(["check", "--quiet"]).current_dir(begun(&scratch, "rust")?);
    let output = check.env("CARGO_TARGET_DIR", scratch.path("target")).output().context("running cargo")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn the_example_in_python_is_built_and_decides() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    // Each command compiles a whole interpreter, and an unoptimised build of ours takes its time: so fewer of them.
    decides(&scratch, &built(&scratch, "python")?, &CASES[..1])
}

#[test]
fn the_example_in_javascript_is_built_and_decides() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    decides(&scratch, &built(&scratch, "js")?, &CASES)
}

#[test]
fn the_example_in_c_is_built_and_decides() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    decides(&scratch, &built(&scratch, "c")?, &CASES)
}
