//! Documents of both families, and everything that only looks like one.

use serde_json::json;

use super::*;

fn read(value: serde_json::Value, header: Option<&str>) -> Result<Document, Unreadable> {
    Document::read(&serde_json::to_vec(&value).unwrap(), header)
}

fn blob(media_type: &str) -> serde_json::Value {
    json!({ "mediaType": media_type, "digest": BlobDigest::of(b"x").to_string(), "size": 1 })
}

#[test]
fn reads_both_families() {
    for (manifest, config) in [(OCI_MANIFEST, OCI_CONFIG), (DOCKER_MANIFEST, DOCKER_CONFIG)] {
        let body = json!({"schemaVersion": 2, "mediaType": manifest, "config": blob(config), "layers": [blob(OCI_LAYER)]});
        let Ok(Document::Manifest(read)) = read(body, None) else { panic!("{manifest}") };
        assert_eq!((read.media_type.as_str(), read.layers.len()), (manifest, 1));
    }
    for index in [OCI_INDEX, DOCKER_INDEX] {
        let body = json!({"schemaVersion": 2, "mediaType": index, "manifests": [blob(OCI_MANIFEST)]});
        assert!(matches!(read(body, None), Ok(Document::Index(_))), "{index}");
    }
}

#[test]
fn the_document_itself_decides_what_it_is() {
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []});
    assert!(matches!(read(index, Some(OCI_MANIFEST)), Ok(Document::Index(_))));
    let bare = json!({"schemaVersion": 2, "manifests": []});
    assert!(matches!(read(bare.clone(), Some("application/json")), Ok(Document::Index(_))));
    assert!(matches!(read(bare, Some(OCI_MANIFEST)), Err(Unreadable::Malformed(_))));
    let both = json!({"schemaVersion": 2, "manifests": [], "layers": []});
    assert!(matches!(read(both, None), Err(Unreadable::Malformed(_))));
}

#[test]
fn refuses_by_name() {
    let config = "application/vnd.example.thing.v1+json";
    for (body, header, expected) in [
        (json!({"schemaVersion": 1}), None, "no fsLayers"),
        (json!({}), Some("application/vnd.docker.distribution.manifest.v1+prettyjws"), "no fsLayers"),
        (json!({"schemaVersion": 1, "fsLayers": [{"blobSum": "sha256:../x"}]}), None, "not a digest"),
        (json!({"schemaVersion": 2, "mediaType": "application/vnd.x"}), None, "application/vnd.x"),
        (json!({"schemaVersion": 2, "config": blob(config), "layers": []}), None, "vnd.example.thing"),
        (json!({"schemaVersion": 2, "config": blob(OCI_CONFIG)}), None, "no layers"),
        (json!([]), None, "not a JSON object"),
        (json!({"schemaVersion": 2, "config": {"digest": "sha256:../x", "size": 1}}), None, "not a digest"),
        (
            json!({"schemaVersion": 2, "config": {"digest": BlobDigest::of(b"").to_string(), "size": -1}}),
            None,
            "config",
        ),
    ] {
        let error = read(body, header).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} (expected {expected})");
    }
}

#[test]
fn knows_which_layers_can_be_read() {
    assert_eq!(compression("application/vnd.oci.image.layer.v1.tar+zstd"), Ok(Compression::Zstd));
    for (media_type, expected) in [
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "encrypted"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "distributed"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "distributed"),
        ("application/vnd.oci.image.layer.v1.tar+lzma", "tar+lzma"),
    ] {
        let reason = compression(media_type).unwrap_err();
        assert!(reason.contains(expected), "{reason}");
    }
}
