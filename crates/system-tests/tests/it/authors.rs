//! The worked examples of `docs/policies.md`: each is copied as a user would, built with its own script, and decides within the
//! default limits. The one in Rust is built by `./just plugins`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use system_tests::{Scratch, binaries};

const NOT_ELIGIBLE: i32 = 3;
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../plugins/examples");

/// Copies the example and builds it. A tool that is missing is an error: `./just authors` installs them.
fn built(scratch: &Scratch, language: &str) -> anyhow::Result<PathBuf> {
    let folder = scratch.path(language);
    let copied = Command::new("cp").arg("-rL").arg(Path::new(EXAMPLES).join(language)).arg(&folder).status()?;
    ensure!(copied.success(), "copying the example in {language}");
    let output = Command::new(folder.join("build")).output().context("running the build script")?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "building the example in {language}: {errors}");
    Ok(folder.join("no-latest.wasm"))
}

fn decides(scratch: &Scratch, plugin: &Path) -> anyhow::Result<()> {
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
    for (settings, exit, decision) in [
        ("", NOT_ELIGIBLE, "refuse"),
        ("tags = ['nightly', 'latest']", NOT_ELIGIBLE, "refuse"),
        ("tags = ['nightly']", 0, "abstain"),
    ] {
        let output = run(settings)?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(exit), "{settings}: {errors}");
        let verdict: Value = serde_json::from_slice(&output.stdout)?;
        assert_eq!(verdict["decision"], decision, "{settings}: {verdict}");
        if decision == "refuse" {
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
fn the_example_in_rust_decides() -> anyhow::Result<()> {
    decides(&Scratch::new()?, &binaries::plugin("tests/no-latest.wasm")?)
}

#[test]
fn the_example_in_python_is_built_and_decides() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    decides(&scratch, &built(&scratch, "python")?)
}

#[test]
fn the_example_in_javascript_is_built_and_decides() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    decides(&scratch, &built(&scratch, "javascript")?)
}

#[test]
fn the_example_in_c_is_built_and_decides() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    decides(&scratch, &built(&scratch, "c")?)
}
