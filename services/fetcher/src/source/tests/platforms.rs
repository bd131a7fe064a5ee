//! From a name to one platform's image: indexes, digests, refusals.

use serde_json::{Value, json};

use super::fake::{Fake, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use super::*;
use crate::source::{BlobDigest, Compression, Found};

async fn found(fake: &Fake, name: &str, platform: &Platform) -> Result<Found, SourceError> {
    open(&config(), &fake.reference(name), plain_http()).await?.manifest(platform).await
}

fn index(entries: &[(Value, Option<&str>)]) -> Value {
    let manifests: Vec<Value> = entries
        .iter()
        .map(|(descriptor, platform)| {
            let mut descriptor = descriptor.clone();
            if let Some((os, architecture)) = platform.and_then(|platform| platform.split_once('/')) {
                descriptor["platform"] = json!({ "os": os, "architecture": architecture });
            }
            descriptor
        })
        .collect();
    json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests })
}

#[tokio::test]
async fn finds_an_image_and_reads_its_layers() {
    let fake = Fake::start().await;
    let image = fake.image("app", "latest", "linux/amd64", &[b"lower", b"", b"upper"]);
    let source = open(&config(), &fake.reference("app"), plain_http()).await.unwrap();
    let found = source.manifest(&amd64()).await.unwrap();
    assert_eq!(found.manifest_digest, image["digest"]);
    assert_eq!((found.media_type.as_str(), found.platform), (OCI_MANIFEST, amd64()));
    assert_eq!(found.config_digest, BlobDigest::of(&found.config).to_string());
    assert_eq!(found.ineligible, [""; 0]);
    let mut contents = Vec::new();
    for layer in &found.layers {
        assert_eq!((layer.compression, &layer.diff_id), (Compression::None, &layer.digest));
        contents.push(read(&source, layer, 0).await.unwrap());
    }
    assert_eq!(contents, [&b"lower"[..], b"", b"upper"]);
    assert_eq!(read(&source, &found.layers[0], 3).await.unwrap(), b"er");
}

#[tokio::test]
async fn chooses_the_platform_also_through_nested_indexes() {
    let fake = Fake::start().await;
    let arm = fake.image("app", "arm", "linux/arm64", &[b"arm"]);
    let amd = fake.image("app", "amd", "linux/amd64", &[b"amd"]);
    let mut attestation = arm.clone();
    attestation["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let inner = index(&[(amd.clone(), Some("linux/amd64"))]);
    let inner = fake.manifest("app", "inner", &inner);
    let outer = index(&[(attestation, Some("unknown/unknown")), (arm, Some("linux/arm64")), (inner, None)]);
    fake.manifest("app", "latest", &outer);
    assert_eq!(found(&fake, "app", &amd64()).await.unwrap().manifest_digest, amd["digest"]);

    let riscv = Platform { architecture: "riscv64".into(), ..amd64() };
    let error = found(&fake, "app", &riscv).await.unwrap_err().to_string();
    assert!(error.contains("linux/riscv64: it offers linux/amd64, linux/arm64"), "{error}");
}

#[tokio::test]
async fn the_best_variant_is_taken_wherever_it_stands() {
    let fake = Fake::start().await;
    let images = ["v6", "v7", "v5"].map(|variant| {
        let mut image = fake.image("app", variant, "linux/arm", &[variant.as_bytes()]);
        image["platform"] = json!({ "os": "linux", "architecture": "arm", "variant": variant });
        image
    });
    let entries = images.clone().map(|image| (image, None));
    fake.manifest("app", "latest", &index(&entries));
    let arm = Platform { architecture: "arm".into(), variant: "v7".into(), ..amd64() };
    assert_eq!(found(&fake, "app", &arm).await.unwrap().manifest_digest, images[1]["digest"]);
}

#[tokio::test]
async fn an_image_without_index_must_be_for_the_platform_too() {
    let fake = Fake::start().await;
    fake.image("app", "latest", "linux/arm64", &[]);
    let error = found(&fake, "app", &amd64()).await.unwrap_err();
    assert!(matches!(error, SourceError::Unsupported { .. }), "{error}");
}

#[tokio::test]
async fn a_loop_of_indexes_ends() {
    let fake = Fake::start().await;
    // No index can name itself by digest, but a chain can be long.
    let mut last = fake.image("app", "image", "linux/amd64", &[]);
    for _ in 0..8 {
        last = fake.manifest("app", "latest", &index(&[(last, None)]));
    }
    let error = found(&fake, "app", &amd64()).await.unwrap_err().to_string();
    assert!(error.contains("nested"), "{error}");
}

#[tokio::test]
async fn what_does_not_match_its_digest_is_refused() {
    let fake = Fake::start().await;
    let image = fake.image("app", "latest", "linux/amd64", &[b"layer"]);
    let good = found(&fake, "app", &amd64()).await.unwrap();
    let by_digest = format!("app@{}", image["digest"].as_str().unwrap());
    assert_eq!(found(&fake, &by_digest, &amd64()).await.unwrap(), good);

    // Still a valid manifest, with other bytes.
    let path = format!("/v2/app/manifests/{}", good.manifest_digest);
    let mut other: Value = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST });
    other["layers"] = json!([]);
    fake.put(&path, OCI_MANIFEST, other.to_string());
    let error = found(&fake, &by_digest, &amd64()).await.unwrap_err();
    assert!(matches!(&error, SourceError::Corrupt { image, .. } if image.contains("app@")), "{error}");

    for wrong in [&b"{}"[..], &[good.config.as_ref(), b" "].concat(), &good.config.to_ascii_uppercase()] {
        fake.put(&format!("/v2/app/blobs/{}", good.config_digest), OCI_CONFIG, wrong.to_vec());
        let error = found(&fake, "app", &amd64()).await.unwrap_err();
        assert!(matches!(&error, SourceError::Corrupt { what, .. } if what.contains("config")), "{error}");
    }
}

#[tokio::test]
async fn refusals_say_why() {
    let fake = Fake::start().await;
    let layer = fake.blob("app", OCI_LAYER, b"x");
    let config = |diff_ids: Value| {
        let config = json!({ "os": "linux", "architecture": "amd64", "rootfs": { "diff_ids": diff_ids } });
        fake.blob("app", OCI_CONFIG, config.to_string().as_bytes())
    };
    let manifest = |config: Value, layers: Value| json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers });
    let chart = fake.blob("app", "application/vnd.cncf.helm.config.v1+json", b"{}");
    let mut huge = config(json!([]));
    huge["size"] = json!(1_u64 << 40);
    for (document, expected) in [
        (manifest(config(json!([])), json!([layer])), "names 1 layers, its config 0"),
        (manifest(config(json!(["sha256:short"])), json!([layer])), "not a digest"),
        (manifest(chart, json!([])), "vnd.cncf.helm.config"),
        (manifest(huge, json!([])), "at most"),
        (json!({ "schemaVersion": 1, "mediaType": "" }), "no fsLayers"),
        (json!({ "schemaVersion": 2, "mediaType": "application/vnd.else" }), "application/vnd.else"),
    ] {
        fake.manifest("app", "latest", &document);
        let error = found(&fake, "app", &amd64()).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error} (expected {expected})");
        assert!(error.contains(&fake.reference("app:latest")), "{error}");
    }
}

#[tokio::test]
async fn a_manifest_without_end_is_not_read_to_its_end() {
    let fake = Fake::start().await;
    fake.put("/v2/app/manifests/latest", OCI_MANIFEST, vec![b' '; 5 << 20]);
    let error = found(&fake, "app", &amd64()).await.unwrap_err();
    assert!(matches!(&error, SourceError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn layers_that_cannot_be_read_make_the_image_ineligible() {
    let fake = Fake::start().await;
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    for suffix in ["", "+gzip+encrypted", "+lzma"] {
        layers.push(fake.blob("app", &format!("{OCI_LAYER}{suffix}"), suffix.as_bytes()));
        diff_ids.push(BlobDigest::of(b"tar").to_string());
    }
    let config = json!({ "os": "linux", "architecture": "amd64", "rootfs": { "diff_ids": diff_ids } });
    let config = fake.blob("app", OCI_CONFIG, config.to_string().as_bytes());
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers });
    fake.manifest("app", "latest", &manifest);
    let found = found(&fake, "app", &amd64()).await.unwrap();
    assert_eq!(found.ineligible.len(), 2);
    assert!(
        found.ineligible[0].contains("encrypted") && found.ineligible[0].contains(&found.layers[1].digest)
    );
    assert!(found.ineligible[1].contains("lzma"));
}

#[tokio::test]
async fn absence_is_told_from_trouble() {
    let fake = Fake::start().await;
    let error = found(&fake, "nothing:here", &amd64()).await.unwrap_err();
    assert!(matches!(&error, SourceError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("MANIFEST_UNKNOWN"), "{error}");
    let name = fake.reference("app");
    drop(fake);
    let source = open(&config(), &name, plain_http()).await.unwrap();
    let error = source.manifest(&amd64()).await.unwrap_err();
    assert!(matches!(&error, SourceError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn an_image_in_the_old_format_is_recognised_and_cannot_be_streamed() {
    let fake = Fake::start().await;
    let digests = [BlobDigest::of(b"upper"), BlobDigest::of(b"lower")].map(|digest| digest.to_string());
    let layers: Vec<Value> = digests.iter().map(|digest| json!({ "blobSum": digest })).collect();
    let old = json!({ "schemaVersion": 1, "name": "app", "tag": "latest", "architecture": "amd64", "fsLayers": layers });
    fake.manifest("app", "latest", &old);
    let found = found(&fake, "app", &amd64()).await.unwrap();
    assert_eq!(found.schema_version, 1);
    assert_eq!(
        found.layers.iter().map(|layer| layer.digest.clone()).collect::<Vec<_>>(),
        [&*digests[1], &*digests[0]]
    );
    assert!(found.ineligible[0].contains("schema 1"), "{:?}", found.ineligible);
}
