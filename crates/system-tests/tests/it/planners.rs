//! Prefetch policies as their authors make them: begun in each language, built with their own scripts, asked for plans within the default
//! limits, and followed by a node.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::bail;
use serde_json::{Value, json};
use system_tests::{Scratch, noise};
use testkit::{ImageSpec, LayoutWriter, Tarball};

use crate::projects::{begun, build};

const SETTINGS: &str = "first = ['usr/bin/app', 'usr/lib/']\nbandwidth = 5_000_000";

fn built(scratch: &Scratch, language: &str) -> anyhow::Result<PathBuf> {
    build(&begun(scratch, language, "prefetch")?)
}

/// `sluice policy run`, as the project's own files have it: its exit code, what it printed, its errors.
fn run(
    scratch: &Scratch,
    plugin: &Path,
    settings: &str,
    profile: &str,
) -> anyhow::Result<(bool, Value, String)> {
    let folder = plugin.parent().unwrap_or(plugin);
    let [plugin, facts, file] = [plugin, &folder.join("facts.json"), &scratch.path("settings.toml")]
        .map(|path| path.display().to_string());
    fs::write(&file, settings)?;
    let asked = ["policy", "run", &plugin, "--facts", &facts, "--settings", &file, "--profile", profile];
    let output = scratch.run(asked)?;
    let printed = serde_json::from_slice(&output.stdout).unwrap_or_default();
    Ok((output.status.success(), printed, String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// What every language's plugin has to say; each call compiles it.
fn plans(scratch: &Scratch, plugin: &Path) -> anyhow::Result<()> {
    let (good, plan, errors) = run(scratch, plugin, SETTINGS, "7")?;
    assert!(good, "{errors}");
    let items = json!([{ "path": "usr/bin/app" }, { "path": "usr/lib/" }, { "chunks": [0, 7] }]);
    let said = (&plan["mode"], &plan["items"], &plan["bandwidth"], &plan["reason"]);
    let expected = (&json!("listed-then-rest"), &items, &json!(5_000_000), &json!("paths-and-profile"));
    assert_eq!(said, expected, "{plan}");
    let (good, _, errors) = run(scratch, plugin, "first = ['a', '']\nbandwidth = 0", "7")?;
    let problems = ["first: a path is never empty", "bandwidth: it must be more than 0"];
    assert!(!good && problems.iter().all(|problem| errors.contains(problem)), "{errors}");
    Ok(())
}

/// What is cheap to ask of a plugin that compiles fast.
fn plans_also_without_settings(scratch: &Scratch, plugin: &Path) -> anyhow::Result<()> {
    let checked = scratch.json(["policy", "check", &plugin.display().to_string()])?;
    assert_eq!((&checked["world"], &checked["version"]), (&json!("prefetch"), &json!("1.0.0")), "{checked}");
    let settings = [0, 1].map(|at| (&checked["settings"][at]["name"], &checked["settings"][at]["kind"]));
    let expected = [("first", "a list of texts"), ("bandwidth", "a whole number")]
        .map(|(name, kind)| (json!(name), json!(kind)));
    assert_eq!(settings, expected.each_ref().map(|(name, kind)| (name, kind)), "{checked}");
    let (good, plan, errors) = run(scratch, plugin, "", "0")?;
    assert!(good, "{errors}");
    assert_eq!((&plan["items"], &plan["bandwidth"]), (&json!([]), &Value::Null), "{plan}");
    Ok(())
}

#[test]
fn the_example_in_python_plans() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    plans(&scratch, &built(&scratch, "python")?)
}

#[test]
fn the_example_in_javascript_plans() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    plans(&scratch, &built(&scratch, "js")?)
}

#[test]
fn the_example_in_c_plans() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let plugin = built(&scratch, "c")?;
    plans(&scratch, &plugin)?;
    plans_also_without_settings(&scratch, &plugin)
}

/// Without a background a node fetches what the plan lists, and nothing else.
#[test]
fn the_example_in_rust_plans_and_a_node_fetches_what_its_setting_names() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let plugin = built(&scratch, "rust")?;
    plans(&scratch, &plugin)?;
    plans_also_without_settings(&scratch, &plugin)?;

    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    let folders = ["usr", "usr/bin", "usr/lib", "usr/lib/deep"];
    let tar = folders.iter().fold(Tarball::new(), |tar, folder| tar.directory(folder));
    let files =
        [("usr/bin/app", 1), ("usr/lib/one", 2), ("usr/lib/deep/two", 3), ("usr/share", 4), ("other", 5)];
    // Large enough to share no chunk.
    let tar = files.iter().fold(tar, |tar, (path, seed)| tar.file(path, &noise(*seed, 700_000)));
    layout.image("app", &ImageSpec::new([tar.finish()]))?;
    let source = scratch.json(["policy", "check", &plugin.display().to_string()])?["source"].clone();
    let settings = "{ first = ['/usr/bin/app', 'usr/lib/', 'usr/none'] }";
    let set = format!("policy.set.prefetch=[{{name=\"mine\", source={source}, settings={settings}}}]");
    let root = scratch.mount_point("root")?;
    let mount = ["mount", &layout.reference("app"), root.to_str().unwrap_or_default()];
    scratch.succeed([&["--set", "frontend.background=false", "--set", &set], &mount[..]].concat())?;

    let here = || -> anyhow::Result<u64> {
        let status = scratch.json(["status"])?;
        Ok(status["images"][0]["bytes_local"].as_u64().unwrap_or_default())
    };
    for _ in 0..300 {
        if here()? >= 3 * 700_000 {
            // What nobody named is fetched by who reads it.
            assert_eq!(here()?, 3 * 700_000, "{}", scratch.json(["status"])?);
            assert!(fs::read(root.join("other"))? == noise(5, 700_000), "wrong bytes");
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    bail!("what the plan names was not fetched: {}\n{}", scratch.json(["status"])?, scratch.node_log())
}
