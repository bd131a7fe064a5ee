//! A mounted image equals what `umoci unpack` makes of it, whoever built it.

use std::path::{Path, PathBuf};

use system_tests::{Scratch, builders, facts};

#[test]
fn an_image_built_by_umoci_mounts_as_it_unpacks() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let reference = builders::umoci(&work(&scratch)?, &scratch.path("layout"))?;
    mounts_as_it_unpacks(&scratch, &reference, &reference)
}

#[test]
fn an_image_built_by_buildah_mounts_as_it_unpacks() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let reference = builders::buildah(&work(&scratch)?, &scratch.path("layout"))?;
    mounts_as_it_unpacks(&scratch, &reference, &reference)
}

#[test]
fn an_image_saved_by_docker_mounts_as_it_unpacks() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let reference = builders::docker(&work(&scratch)?, &scratch.path("saved.tar"))?;
    let layout = builders::to_layout(&reference, &scratch.path("layout"))?;
    mounts_as_it_unpacks(&scratch, &reference, &layout)
}

fn work(scratch: &Scratch) -> anyhow::Result<PathBuf> {
    scratch.mount_point("work")
}

fn mounts_as_it_unpacks(scratch: &Scratch, reference: &str, layout: &str) -> anyhow::Result<()> {
    let bundle = scratch.path("bundle");
    builders::unpack(layout, &bundle)?;
    let root = scratch.mount_point("root")?;
    scratch.succeed([Path::new("mount"), Path::new(reference), &root])?;

    let mut expected = facts::tree(&bundle.join("rootfs"))?;
    let mut found = facts::tree(&root)?;
    // The builders' layers hold no entry for the root itself: umoci leaves its own folder's facts.
    for tree in [&mut expected, &mut found] {
        tree.remove(Path::new(""));
    }
    assert!(expected.len() > 30, "the reference has only {} entries", expected.len());
    let differences = facts::differences(&expected, &found);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}
