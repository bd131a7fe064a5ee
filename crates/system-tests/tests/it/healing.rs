//! What is damaged in the store is noticed, never shown to a process, and healed where another
//! copy exists.

use std::fs;
use std::path::{Path, PathBuf};

use system_tests::{Scratch, noise};
use testkit::{ImageSpec, LayoutWriter, Tarball};

const LEN: usize = 3_000_000;

/// An image with a large and some small files, imported into a fresh store.
struct Imported {
    scratch: Scratch,
    reference: String,
    large: Vec<u8>,
}

impl Imported {
    fn new() -> anyhow::Result<Imported> {
        let scratch = Scratch::new()?;
        let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
        let large = noise(1, LEN);
        let tar = Tarball::new()
            .file("large", &large)
            .file("small", &noise(2, 5_000))
            .file("tiny", b"tiny")
            .finish();
        layout.image("app", &ImageSpec::new([tar]))?;
        let reference = layout.reference("app");
        scratch.succeed(["import", &reference])?;
        Ok(Imported { scratch, reference, large })
    }

    /// Changes one byte in the middle of every stored file below `kind`.
    fn damage(&self, kind: &str) -> anyhow::Result<usize> {
        let files = files_below(&self.scratch.store().join("default").join(kind))?;
        for path in &files {
            let mut bytes = fs::read(path)?;
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x20;
            fs::write(path, bytes)?;
        }
        Ok(files.len())
    }

    fn mount(&self) -> anyhow::Result<PathBuf> {
        let root = self.scratch.mount_point("root")?;
        self.scratch.succeed([Path::new("mount"), Path::new(&self.reference), &root])?;
        Ok(root)
    }

    fn reads_right(&self) -> anyhow::Result<()> {
        let root = self.mount()?;
        assert!(fs::read(root.join("large"))? == self.large, "wrong bytes were read");
        assert_eq!(fs::read(root.join("small"))?, noise(2, 5_000));
        assert_eq!(fs::read(root.join("tiny"))?, b"tiny");
        Ok(())
    }
}

fn files_below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(files_below(&entry.path())?)
        } else {
            files.push(entry.path())
        }
    }
    Ok(files)
}

#[test]
fn damaged_chunks_are_healed_from_the_image() -> anyhow::Result<()> {
    let imported = Imported::new()?;
    assert!(imported.damage("chunks")? > 1);
    imported.reads_right()
}

#[test]
fn damaged_trees_maps_and_records_are_healed_from_the_image() -> anyhow::Result<()> {
    for kind in ["trees", "maps", "images", "layers"] {
        let imported = Imported::new()?;
        assert_eq!(imported.damage(kind)?, 1, "{kind}");
        imported.reads_right()?;
    }
    Ok(())
}

#[test]
fn import_verify_repairs_the_store() -> anyhow::Result<()> {
    let imported = Imported::new()?;
    let chunks = imported.scratch.store().join("default/chunks");
    let before: Vec<_> = files_below(&chunks)?.into_iter().map(|path| (fs::read(&path).ok(), path)).collect();
    imported.damage("chunks")?;
    fs::remove_file(&before[0].1)?;
    imported.scratch.succeed(["import", "--verify", &imported.reference])?;
    for (bytes, path) in before {
        assert!(fs::read(&path).ok() == bytes, "{} was not repaired", path.display());
    }
    Ok(())
}

#[test]
fn without_another_copy_a_read_fails_and_never_lies() -> anyhow::Result<()> {
    let imported = Imported::new()?;
    let root = imported.scratch.mount_point("root")?;
    imported.damage("chunks")?;
    let layout = imported.scratch.path("layout");
    // The layers go, the manifest stays: the image resolves, but nothing can be brought back.
    for blob in files_below(&layout.join("blobs"))? {
        if fs::metadata(&blob)?.len() > 100_000 {
            fs::remove_file(blob)?;
        }
    }
    let set = ["--set", "frontend.read_timeout=3s"];
    imported.scratch.succeed(set.iter().map(Path::new).chain([
        Path::new("mount"),
        Path::new(&imported.reference),
        &root,
    ]))?;
    let error = fs::read(root.join("large")).expect_err("a damaged file was read");
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    assert_eq!(fs::read(root.join("tiny"))?, b"tiny", "what the tree holds is still there");
    Ok(())
}
