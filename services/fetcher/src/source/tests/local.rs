//! Layout folders and `docker save` archives, good and bad.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use testkit::{ImageSpec, LayoutWriter};

use super::*;
use crate::source::{BlobDigest, Compression, Found};

async fn found(name: &str) -> Result<Found, SourceError> {
    open(&config(), name, Access::default()).await?.manifest(&amd64()).await
}

async fn refusal(name: &str) -> String {
    let error = found(name).await.unwrap_err().to_string();
    assert!(error.contains(name), "{error} does not name the image");
    error
}

#[tokio::test]
async fn a_layout_is_read_by_tag_or_without_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = LayoutWriter::create(folder.path()).unwrap();
    let first = writer.image("v1", &ImageSpec::new([b"first layer".to_vec()])).unwrap();
    let whole = format!("oci:{}", folder.path().display());
    assert_eq!(found(&whole).await.unwrap().manifest_digest, first);
    let second = writer.image("v2", &ImageSpec::new([b"other".to_vec()])).unwrap();
    assert_eq!(found(&writer.reference("v2")).await.unwrap().manifest_digest, second);
    assert!(refusal(&whole).await.contains(r#"name one with oci:DIR:TAG: "v1", "v2""#));
    assert!(refusal(&writer.reference("v3")).await.contains(r#""v1", "v2""#));
}

#[tokio::test]
async fn an_untagged_layout_of_several_platforms_is_one_image() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = LayoutWriter::create(folder.path()).unwrap();
    writer.image("x", &ImageSpec::new([b"layer".to_vec()])).unwrap();
    let path = folder.path().join("index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    index["manifests"][0].as_object_mut().unwrap().remove("annotations");
    let mut other = index["manifests"][0].clone();
    other["platform"] = json!({ "os": "linux", "architecture": "s390x" });
    index["manifests"].as_array_mut().unwrap().insert(0, other);
    fs::write(path, index.to_string()).unwrap();
    found(&format!("oci:{}", folder.path().display())).await.unwrap();
}

#[tokio::test]
async fn a_layout_that_is_broken_says_where() {
    let folder = tempfile::tempdir().unwrap();
    let name = format!("oci:{}", folder.path().display());
    assert!(refusal(&name).await.contains("is not an OCI layout"));
    let mut writer = LayoutWriter::create(folder.path()).unwrap();
    let digest = writer.image("x", &ImageSpec::new([vec![7; 100_000]])).unwrap();
    let good = found(&name).await.unwrap();

    let blob = writer.blob_path(&good.layers[0].digest);
    let bytes = fs::read(&blob).unwrap();
    fs::write(&blob, &bytes[1..]).unwrap();
    let source = open(&config(), &name, Access::default()).await.unwrap();
    let error = read(&source, &good.layers[0], 0).await.unwrap_err().to_string();
    assert!(error.contains(&good.layers[0].digest) && error.contains("the manifest says"), "{error}");
    fs::remove_file(&blob).unwrap();
    let error = read(&source, &good.layers[0], 0).await.unwrap_err();
    assert!(matches!(error, SourceError::NotFound { .. }), "{error}");
    Command::new("mkfifo").arg(&blob).status().unwrap();
    let error = read(&source, &good.layers[0], 0).await.unwrap_err().to_string();
    assert!(error.contains("not a regular file"), "{error}");

    let manifest = writer.blob_path(&digest);
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("linux", "LINUX").replacen("layers", "LAYERS", 1)).unwrap();
    assert!(refusal(&name).await.contains(&format!("{digest} is corrupt")));
    fs::write(
        folder.path().join("index.json"),
        r#"{"schemaVersion":2,"manifests":[{"digest":"sha256:../../etc","size":1}]}"#,
    )
    .unwrap();
    assert!(refusal(&name).await.contains("not a digest"));
}

/// Packs a folder as tools do.
fn tar(folder: &Path, format: &str, archive: &Path) {
    let status = Command::new("tar")
        .arg(format!("--format={format}"))
        .args(["--sort=name", "-C"])
        .arg(folder)
        .arg("-cf")
        .arg(archive)
        .args(["--transform", "s,^\\./,,", "."])
        .status();
    assert!(status.unwrap().success());
}

fn image_config(layers: &[&[u8]]) -> String {
    let diff_ids: Vec<String> = layers.iter().map(|layer| BlobDigest::of(layer).to_string()).collect();
    json!({ "os": "linux", "architecture": "amd64", "rootfs": { "type": "layers", "diff_ids": diff_ids } })
        .to_string()
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn manifest_json(config: &str, layers: &[&str]) -> String {
    json!([{ "Config": config, "RepoTags": ["app:latest"], "Layers": layers }]).to_string()
}

#[tokio::test]
async fn a_legacy_archive_with_linked_layers_is_read() {
    // Names longer than a header's field, to meet every way of writing them.
    let long = format!("{}/{}", "d".repeat(60), "e".repeat(60));
    let layers = [&b"lower layer"[..], b"", b"lower layer"];
    for format in ["gnu", "pax", "ustar"] {
        let work = tempfile::tempdir().unwrap();
        let root = work.path().join("root");
        write(&root.join("config.json"), image_config(&layers).as_bytes());
        write(&root.join(&long).join("layer.tar"), layers[0]);
        write(&root.join("b/layer.tar"), layers[1]);
        fs::create_dir(root.join("c")).unwrap();
        let target =
            if format == "ustar" { "../b/../a/layer.tar".into() } else { format!("../{long}/layer.tar") };
        fs::create_dir(root.join("a")).unwrap();
        fs::hard_link(root.join(&long).join("layer.tar"), root.join("a/layer.tar")).unwrap();
        std::os::unix::fs::symlink(target, root.join("c/layer.tar")).unwrap();
        let names = [format!("{long}/layer.tar"), "b/layer.tar".into(), "c/layer.tar".into()];
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        write(&root.join("manifest.json"), manifest_json("config.json", &names).as_bytes());
        let archive = work.path().join("saved.tar");
        tar(&root, format, &archive);

        let name = format!("docker-archive:{}", archive.display());
        let source = open(&config(), &name, Access::default()).await.unwrap();
        let found = source.manifest(&amd64()).await.unwrap();
        for (layer, content) in found.layers.iter().zip(layers) {
            assert_eq!((layer.compression, &layer.diff_id), (Compression::None, &layer.digest), "{format}");
            assert_eq!(read(&source, layer, 0).await.unwrap(), content, "{format}");
        }
        assert_eq!(read(&source, &found.layers[2], 6).await.unwrap(), b"layer");
        let again =
            open(&config(), &name, Access::default()).await.unwrap().manifest(&amd64()).await.unwrap();
        assert_eq!(found, again, "the manifest that is made up is always the same");
    }
}

#[tokio::test]
async fn an_archive_with_an_oci_layout_and_compressed_layers_is_read() {
    let compressed = [b"\x1f\x8b".as_slice(), b"as if it were gzip"].concat();
    let work = tempfile::tempdir().unwrap();
    let root = work.path().join("root");
    let text = image_config(&[b"plain", b"unpacked"]);
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", BlobDigest::of(bytes).hex());
    let names = [blob(text.as_bytes()), blob(b"plain")];
    write(&root.join(&names[0]), text.as_bytes());
    write(&root.join(&names[1]), b"plain");
    write(&root.join("second.tar.gz"), &compressed);
    write(&root.join("manifest.json"), manifest_json(&names[0], &[&names[1], "second.tar.gz"]).as_bytes());
    let archive = work.path().join("saved.tar");
    tar(&root, "pax", &archive);
    let source =
        open(&config(), &format!("docker-archive:{}", archive.display()), Access::default()).await.unwrap();
    let found = source.manifest(&amd64()).await.unwrap();
    assert_eq!(found.layers[0].digest, BlobDigest::of(b"plain").to_string());
    assert_eq!(found.layers[1].digest, BlobDigest::of(&compressed).to_string());
    assert_eq!(found.layers[1].compression, Compression::Gzip);
    assert_eq!(found.layers[1].diff_id, BlobDigest::of(b"unpacked").to_string());
    assert_eq!(read(&source, &found.layers[1], 0).await.unwrap(), compressed);
}

#[tokio::test]
async fn an_archive_that_is_none_says_so() {
    let work = tempfile::tempdir().unwrap();
    let root = work.path().join("root");
    let archive = work.path().join("saved.tar");
    let name = format!("docker-archive:{}", archive.display());
    assert!(refusal(&name).await.contains("not found"));
    fs::write(&archive, [0x1f, 0x8b, 8, 0]).unwrap();
    assert!(refusal(&name).await.contains("gunzip"));
    fs::write(&archive, vec![b'x'; 4096]).unwrap();
    assert!(refusal(&name).await.contains("not a tar header"));
    fs::write(&archive, b"").unwrap();
    assert!(refusal(&name).await.contains("not an archive of docker save"));

    let two =
        json!([{ "Config": "a", "RepoTags": ["a:1"] }, { "Config": "b", "RepoTags": ["b:1"] }]).to_string();
    let config = image_config(&[b"layer"]);
    for (manifest, expected) in [
        (two, r#"2 images ("a:1", "b:1")"#),
        ("[]".into(), "empty"),
        ("{}".into(), "manifest.json"),
        (manifest_json("config.json", &[]), "names 0 layers, the config 1"),
        (manifest_json("absent.json", &["layer.tar"]), "absent.json"),
        (manifest_json("config.json", &["../../etc/passwd"]), "etc/passwd"),
        (manifest_json("config.json", &["loop"]), "loop"),
    ] {
        write(&root.join("config.json"), config.as_bytes());
        write(&root.join("layer.tar"), b"layer");
        write(&root.join("manifest.json"), manifest.as_bytes());
        let _ = std::os::unix::fs::symlink("loop", root.join("loop"));
        tar(&root, "gnu", &archive);
        let error = refusal(&name).await;
        assert!(error.contains(expected), "{error} (expected {expected})");
    }
    let bytes = fs::read(&archive).unwrap();
    let cut = bytes.windows(8).rposition(|window| window == b"[{\"Confi").unwrap();
    fs::write(&archive, &bytes[..cut + 4]).unwrap();
    assert!(refusal(&name).await.contains("cut off"));
}
