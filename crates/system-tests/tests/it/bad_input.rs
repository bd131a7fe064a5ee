//! What cannot be imported ends in an error that names the image, the layer and the cause; nothing
//! is left in the store that an image could be made of, and nothing is left mounted.

use std::fs;
use std::path::Path;

use rustix::mount::{MountFlags, mount};
use serde_json::json;
use system_tests::{Scratch, noise};
use testkit::layout::sha256;
use testkit::{Compression, ImageSpec, LayoutWriter, Tarball};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Imports `reference`, which must be refused with a message that holds each of `words`.
fn refused(scratch: &Scratch, reference: &str, words: &[&str]) -> anyhow::Result<()> {
    let message = scratch.refuse(["import", reference])?;
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
    let images = scratch.json(["ls"])?;
    assert_eq!(images["images"], json!([]), "an image was left behind");
    let records = scratch.store().join("default/images");
    assert!(!records.exists() || fs::read_dir(records)?.next().is_none(), "a record was left behind");

    let root = scratch.mount_point("root")?;
    scratch.refuse([Path::new("mount"), Path::new(reference), &root])?;
    assert!(!scratch.mounts()?.contains(&root), "something was left mounted");
    Ok(())
}

/// An image whose only layer is `tar`, which must be refused.
fn layer_refused(tar: Vec<u8>, words: &[&str]) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    layout.image("bad", &ImageSpec::new([tar]))?;
    refused(&scratch, &layout.reference("bad"), words)
}

/// A layout with the image "good", whose layer blob is then changed by `damage`.
fn blob_refused(damage: impl FnOnce(&mut Vec<u8>), words: &[&str]) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    let tar = Tarball::new().file("a", &[7; 100_000]).finish();
    let spec = ImageSpec { layers: vec![(tar.clone(), Some(Compression::None))], config: None };
    layout.image("bad", &spec)?;
    let path = layout.blob_path(&sha256(&tar));
    let mut bytes = fs::read(&path)?;
    damage(&mut bytes);
    fs::write(&path, bytes)?;
    let digest = sha256(&tar);
    let words: Vec<&str> = words.iter().copied().chain([&digest[..19]]).collect();
    refused(&scratch, &layout.reference("bad"), &words)
}

#[test]
fn a_blob_that_does_not_match_its_digest() -> anyhow::Result<()> {
    blob_refused(|bytes| bytes[1000] ^= 1, &["digest"])
}

#[test]
fn a_truncated_blob() -> anyhow::Result<()> {
    blob_refused(|bytes| bytes.truncate(50_000), &[])
}

#[test]
fn a_layer_that_does_not_match_its_diff_id() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    let tar = Tarball::new().file("a", b"content").finish();
    let layer = layout.blob(&tar, "application/vnd.oci.image.layer.v1.tar")?;
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [sha256(b"something else")] },
    });
    layout.manifest("bad", config, vec![layer])?;
    refused(&scratch, &layout.reference("bad"), &["diff id"])
}

#[test]
fn a_gzip_bomb_against_the_declared_limit() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    layout.image("bad", &ImageSpec::new([Tarball::new().file("zeros", &vec![0; 64 << 20]).finish()]))?;
    let message = scratch.refuse([
        "--set",
        "fetcher.limits.layer_plain_max=16MiB",
        "import",
        &layout.reference("bad"),
    ])?;
    assert!(message.contains("limit") || message.contains("more than"), "{message}");
    assert_eq!(scratch.json(["ls"])?["images"], json!([]));
    Ok(())
}

#[test]
fn names_that_leave_the_root() -> anyhow::Result<()> {
    layer_refused(Tarball::new().file("../outside", b"x").finish(), &[".."])?;
    layer_refused(Tarball::new().file("a/../../outside", b"x").finish(), &[".."])?;
    layer_refused(Tarball::new().file("/../etc/passwd", b"x").finish(), &[".."])
}

#[test]
fn a_hard_link_to_nothing() -> anyhow::Result<()> {
    layer_refused(Tarball::new().hard_link("a", "nowhere").finish(), &["nowhere"])
}

#[test]
fn a_path_through_a_loop_of_links() -> anyhow::Result<()> {
    let tar = Tarball::new().symlink("a", "b").symlink("b", "a").file("a/file", b"x").finish();
    layer_refused(tar, &["a/file"])
}

#[test]
fn a_path_through_a_file() -> anyhow::Result<()> {
    let tar = Tarball::new().file("a", b"x").hard_link("b", "a/deeper").finish();
    layer_refused(tar, &["a/deeper"])
}

#[test]
fn a_device_that_overlayfs_would_take_for_a_whiteout() -> anyhow::Result<()> {
    layer_refused(Tarball::new().member(b'3', "null", "", 0o666, b"").finish(), &["null"])
}

#[test]
fn what_is_no_tar_at_all() -> anyhow::Result<()> {
    layer_refused(b"This is not a tar archive. ".repeat(100), &[])
}

#[test]
fn unknown_media_types() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    let tar = Tarball::new().file("a", b"content").finish();
    let layer = layout.blob(&tar, "application/x-unheard-of")?;
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [sha256(&tar)] },
    });
    layout.manifest("bad", config, vec![layer])?;
    refused(&scratch, &layout.reference("bad"), &["application/x-unheard-of"])
}

#[test]
fn a_schema_1_manifest() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let layout = LayoutWriter::create(&scratch.path("layout"))?;
    let media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let manifest = json!({ "schemaVersion": 1, "name": "old", "tag": "bad", "fsLayers": [], "history": [] });
    let descriptor = layout.blob(&serde_json::to_vec(&manifest)?, media_type)?;
    let index = json!({ "schemaVersion": 2, "manifests": [descriptor] });
    fs::write(scratch.path("layout/index.json"), serde_json::to_vec(&index)?)?;
    refused(&scratch, &format!("oci:{}", scratch.path("layout").display()), &["schema"])
}

#[test]
fn a_registry_that_is_not_there_or_refuses() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let port = testkit::port::free()?;
    let reference = format!("127.0.0.1:{port}/app:latest");
    let message = scratch.refuse(["--plain-http", "import", &reference])?;
    assert!(message.contains(&format!("127.0.0.1:{port}")), "{message}");

    let registry = testkit::Registry::start_private()?;
    let message = scratch.refuse(["--plain-http", "import", &registry.reference("app:latest")])?;
    assert!(message.contains("app") && message.contains(&registry.host()), "{message}");
    Ok(())
}

/// An image of 3 MB, which a store on a file system of its own must refuse.
fn store_refuses(flags: MountFlags, words: &[&str]) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    let tar = Tarball::new().file("a", &noise(1, 3_000_000)).finish();
    layout.image("good", &ImageSpec::new([tar]))?;
    // Root may write whatever the permissions say; a file system can still say no.
    fs::create_dir_all(scratch.store())?;
    mount("sluice-test", scratch.store(), "tmpfs", flags, Some(c"size=1m"))?;
    refused(&scratch, &layout.reference("good"), words)
}

#[test]
fn a_full_store() -> anyhow::Result<()> {
    store_refuses(MountFlags::empty(), &["good", "No space left on device"])
}

#[test]
fn a_store_that_may_not_be_written() -> anyhow::Result<()> {
    store_refuses(MountFlags::RDONLY, &["good", "Read-only file system"])
}

#[test]
fn a_mount_point_that_cannot_be_used() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    layout.image("good", &ImageSpec::new([Tarball::new().file("a", b"content").finish()]))?;
    let reference = layout.reference("good");
    let root = scratch.mount_point("root")?;
    let target = root.to_str().unwrap_or_default();

    scratch.refuse(["mount", &reference, scratch.path("missing").to_str().unwrap_or_default()])?;
    scratch.succeed(["mount", &reference, target])?;
    let message = scratch.refuse(["mount", &reference, target])?;
    assert!(message.contains(target), "{message}");
    assert_eq!(fs::read(root.join("a"))?, b"content", "the first mount must not suffer");
    Ok(())
}

#[test]
fn a_layer_of_an_unknown_compression_is_named() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
    let layer = layout.blob(b"BZh91AY&SY not really", LAYER)?;
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [sha256(b"")] },
    });
    layout.manifest("bad", config, vec![layer])?;
    refused(&scratch, &layout.reference("bad"), &["layer"])
}
