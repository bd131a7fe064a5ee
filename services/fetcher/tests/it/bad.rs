//! What cannot be imported: the error, and that nothing of an image is left.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytesize::ByteSize;
use testkit::layout::sha256;
use testkit::{Compression, ImageSpec, LayoutWriter, Tarball};
use tonic::{Code, Status};

use crate::harness::{Harness, content, layer};

/// The refusal of `reference`; nothing may be left that names content.
async fn refused(harness: &Harness, reference: &str) -> Status {
    let status = harness.import(reference).await.unwrap_err();
    assert!(status.message().contains(reference), "the image is not named: {status}");
    assert!(harness.project().images().await.unwrap().is_empty(), "an image record was left");
    status
}

/// An image of one plain layer whose blob is then changed.
fn damaged(layout: &mut LayoutWriter, damage: impl FnOnce(&mut Vec<u8>)) -> String {
    let tar = layer(1);
    let spec = ImageSpec { layers: vec![(tar.clone(), Some(Compression::Gzip))], config: None };
    layout.image("bad", &spec).unwrap();
    let index = std::fs::read(layout.blob_path(&sha256(&tar))).err();
    assert!(index.is_some(), "the layer is compressed, its blob has another digest");
    let folder = layout.blob_path(&sha256(b"")).parent().unwrap().to_owned();
    let largest = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .max_by_key(|path| std::fs::metadata(path).unwrap().len())
        .unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    damage(&mut bytes);
    std::fs::write(&largest, bytes).unwrap();
    format!("sha256:{}", largest.file_name().unwrap().to_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_byte_anywhere_in_a_blob() {
    for at in [0, 5, 1_000, 100_000] {
        let harness = Harness::start().await;
        let mut layout = harness.layout();
        let digest = damaged(&mut layout, |blob| blob[at] ^= 0x20);
        let status = refused(&harness, &layout.reference("bad")).await;
        assert_eq!(status.code(), Code::DataLoss, "byte {at}: {status}");
        assert!(status.message().contains(&digest) && status.message().contains("digest"), "{status}");
        assert!(!harness.path("store/default/layers").exists(), "a layer record was left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_layer_named_hundreds_of_times() {
    let harness = Harness::start_with(|config| config.limits.image_records = ByteSize::kib(512)).await;
    let mut layout = harness.layout();
    let tar = (0..1_000).fold(Tarball::new(), |tar, number| tar.directory(&format!("{number}"))).finish();
    layout.image("bad", &ImageSpec::new(vec![tar.clone(); 200])).unwrap();
    let status = refused(&harness, &layout.reference("bad")).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("image_records"), "{status}");
    layout.image("good", &ImageSpec::new(vec![tar; 3])).unwrap();
    harness.import(&layout.reference("good")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_and_a_missing_blob() {
    let harness = Harness::start().await;
    let mut layout = harness.layout();
    let digest = damaged(&mut layout, |blob| blob.truncate(blob.len() / 2));
    let status = refused(&harness, &layout.reference("bad")).await;
    assert!(status.message().contains(&digest), "{status}");
    std::fs::remove_file(layout.blob_path(&digest)).unwrap();
    let status = refused(&harness, &layout.reference("bad")).await;
    assert_eq!(status.code(), Code::NotFound, "{status}");
    assert!(status.message().contains(&digest), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_diff_id() {
    let harness = Harness::start().await;
    let mut layout = harness.layout();
    let blob = layout.blob(&layer(1), "application/vnd.oci.image.layer.v1.tar").unwrap();
    let promised = sha256(b"something else");
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [promised] },
    });
    layout.manifest("bad", config, vec![blob]).unwrap();
    let status = refused(&harness, &layout.reference("bad")).await;
    assert_eq!(status.code(), Code::DataLoss, "{status}");
    for word in ["diff id", &promised, &sha256(&layer(1))] {
        assert!(status.message().contains(word), "{word}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_against_the_limits() {
    let harness = Harness::start_with(|config| {
        config.limits.layer_plain_max = ByteSize::mib(8);
        config.limits.layer_entries_max = 100;
    })
    .await;
    let mut layout = harness.layout();
    let zeros = Tarball::new().file("zeros", &vec![0; 64 << 20]).finish();
    let members = (0..101).fold(Tarball::new(), |tar, at| tar.directory(&format!("d{at}"))).finish();
    // A hole costs nothing in the tar, so what it stands for counts.
    layout.image("zeros", &ImageSpec::new([zeros])).unwrap();
    layout.image("members", &ImageSpec::new([members])).unwrap();
    for tag in ["zeros", "members"] {
        let status = refused(&harness, &layout.reference(tag)).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("more than"), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_layer() {
    let harness = Harness::start().await;
    let mut layout = harness.layout();
    let bzip2 = b"BZh91AY&SY and so on".to_vec();
    let not_tar = vec![7; 2048];
    let link = Tarball::new().hard_link("a", "nowhere").finish();
    let outside = Tarball::new().file("../outside", b"x").finish();
    for (tag, bytes, word) in [
        ("bzip2", bzip2, "bzip2"),
        ("not-tar", not_tar, "layer"),
        ("link", link, "nowhere"),
        ("outside", outside, ".."),
    ] {
        layout.image(tag, &ImageSpec { layers: vec![(bytes, None)], config: None }).unwrap();
        let status = refused(&harness, &layout.reference(tag)).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(word), "{status}");
    }
    for reference in ["", "UPPER", "docker://a", "oci:"] {
        assert_eq!(harness.import(reference).await.unwrap_err().code(), Code::InvalidArgument, "{reference}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_fetcher_that_may_reads_its_disk() {
    let harness = Harness::start_with(|config| config.local_sources = false).await;
    let mut layout = harness.layout();
    layout.image("v1", &ImageSpec::new([layer(1)])).unwrap();
    let status = harness.import(&layout.reference("v1")).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

/// A file system of its own, for the store to be too small or read-only on.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(folder: &Path, size: &str) -> Tmpfs {
        std::fs::create_dir_all(folder).unwrap();
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", folder.to_str().unwrap()]);
        Tmpfs(folder.to_owned())
    }

    fn remount(&self, options: &str) {
        run("mount", &["-o", &format!("remount,{options}"), self.0.to_str().unwrap()]);
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_and_one_that_refuses() {
    let harness = Harness::start().await;
    let tmpfs = Tmpfs::mount(&harness.path("store"), "2m");
    std::fs::set_permissions(&tmpfs.0, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut layout = harness.layout();
    layout
        .image("v1", &ImageSpec::new([Tarball::new().file("a", &content(1, 20_000_000)).finish()]))
        .unwrap();
    let status = refused(&harness, &layout.reference("v1")).await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("full"), "{status}");

    tmpfs.remount("ro,size=64m");
    let status = refused(&harness, &layout.reference("v1")).await;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains("refuses"), "{status}");

    tmpfs.remount("rw,size=64m");
    harness.import(&layout.reference("v1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_was_cut_short_goes_on_where_it_stopped() {
    // One at a time, the largest first: so the first layer is whole when the second fails.
    let mut harness = Harness::start_with(|config| config.limits.layers_at_once = 1).await;
    let mut layout = harness.layout();
    let (large, small) = (layer(1), Tarball::new().file("b", &content(2, 400_000)).finish());
    let layers = [&large, &small].map(|tar| (tar.clone(), None));
    layout.image("v1", &ImageSpec { layers: layers.to_vec(), config: None }).unwrap();
    std::fs::remove_file(layout.blob_path(&sha256(&small))).unwrap();
    refused(&harness, &layout.reference("v1")).await;

    harness.restart().await;
    layout.blob(&small, "").unwrap();
    std::fs::remove_file(layout.blob_path(&sha256(&large))).unwrap();
    let resolved = harness.import(&layout.reference("v1")).await.unwrap();
    let summary = resolved.imported.unwrap();
    assert_eq!((summary.layers_read, summary.layers_known), (1, 1));
    harness.objects(&harness.record(&resolved)).await;
}
