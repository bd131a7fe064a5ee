//! `gc`, `rm` and `ls` on a machine that did not import what the store holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use system_tests::{Scratch, noise};
use testkit::{ImageSpec, LayoutWriter, Tarball};

/// All files below a folder, and how long they are.
fn files(folder: &Path) -> anyhow::Result<BTreeMap<PathBuf, u64>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => files.extend(self::files(&path)?),
            false => drop(files.insert(path.clone(), path.metadata()?.len())),
        }
    }
    Ok(files)
}

fn as_text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().ok_or_else(|| anyhow::anyhow!("{} is no text", path.display()))
}

#[test]
fn a_collection_with_another_key_keeps_the_store() -> anyhow::Result<()> {
    let (owner, stranger) = (Scratch::new()?, Scratch::new()?);
    let mut layout = LayoutWriter::create(&owner.path("layout"))?;
    let mut references = Vec::new();
    for (seed, tag) in [(1, "one"), (2, "two")] {
        layout.image(tag, &ImageSpec::new([Tarball::new().file("file", &noise(seed, 900_000)).finish()]))?;
        owner.succeed(["import", &layout.reference(tag)])?;
        references.push(layout.reference(tag));
    }
    let store = owner.store();
    let before = files(&store)?;
    let elsewhere = ["--store", as_text(&store)?];

    let said = stranger.refuse(elsewhere.into_iter().chain(["gc", "--grace", "0s"]))?;
    for part in ["unknown key", "sha256:", "sluice rm --force", "fetcher.trusted_keys", "no signing key"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    for arguments in [&["gc", "--grace", "0s", "--force"][..], &["gc", "--dry-run"], &["rm", &references[0]]]
    {
        stranger.refuse(elsewhere.into_iter().chain(arguments.iter().copied()))?;
    }
    let output = stranger.run(elsewhere.into_iter().chain(["ls"]))?;
    let (listed, notes) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    assert!(output.status.success() && !listed.contains("oci:"), "{listed}");
    assert_eq!(notes.matches("is not believed: signed by the unknown key").count(), 2, "{notes}");
    assert!(files(&store)? == before, "the store is another");
    assert!(!stranger.state().exists(), "a question left something behind");

    // With the owner's key among those that are believed it is a collection like others.
    let trusted = format!("trusted_keys=[\"{}\"]", owner.succeed(["config", "key"])?.trim());
    let with_key = ["--store", as_text(&store)?, "--set", &trusted];
    stranger.succeed(with_key.into_iter().chain(["gc", "--grace", "0s"]))?;
    assert!(files(&store)? == before);
    stranger.succeed(with_key.into_iter().chain(["rm", &references[1]]))?;
    stranger.succeed(with_key.into_iter().chain(["gc", "--grace", "0s"]))?;
    assert!(files(&store)?.len() < before.len());
    assert!(!stranger.state().exists());
    owner.succeed(["import", "--verify", &references[0]])?;
    Ok(())
}

#[test]
fn where_there_is_no_store_none_is_made() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    scratch.succeed(["ls"])?;
    for arguments in [&["gc"][..], &["rm", "debian:12"]] {
        let said = scratch.refuse(arguments)?;
        assert!(said.contains("there is no store at"), "{said}");
    }
    assert!(!scratch.state().exists());
    Ok(())
}
