//! Signatures of policies in a real registry: ours, other tools', and wrong ones.

use std::path::Path;
use std::process::Command;

use policy::{Required, SigningKey};
use proto::Decision;
use registry::document::{OCI_CONFIG, OCI_MANIFEST};
use registry::{BlobDigest, Descriptor};
use serde_json::{Value, json};

use crate::harness::Harness;
use crate::registry::{Author, NO_LATEST, OTHER, refused, says_of_latest, using};

const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";

/// Puts a signature beside a manifest, as cosign's specification has it and with nothing of ours.
async fn put_signature(author: &Author, name: &str, signed: BlobDigest, payload: &str, signature: &str) {
    let repository = author.repository(name);
    let payload = bytes::Bytes::from(payload.to_owned());
    let config = bytes::Bytes::from_static(b"{}");
    let described = |media_type: &str, bytes: &[u8]| {
        let descriptor = Descriptor::of(media_type, bytes);
        json!({ "mediaType": media_type, "digest": descriptor.digest.to_string(), "size": descriptor.size })
    };
    let mut layer = described(PAYLOAD, &payload);
    layer["annotations"] = json!({ ANNOTATION: signature });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described(OCI_CONFIG, &config), "layers": [layer],
    });
    repository.put_blob(payload).await.unwrap();
    repository.put_blob(config).await.unwrap();
    let tag = format!("sha256-{}.sig", signed.hex());
    repository.put_manifest(&tag, OCI_MANIFEST, manifest.to_string().into()).await.unwrap();
}

fn payload_of(digest: BlobDigest) -> String {
    let critical = json!({
        "identity": { "docker-reference": "" },
        "image": { "docker-manifest-digest": digest.to_string() },
        "type": "cosign container image signature",
    });
    json!({ "critical": critical, "optional": { "by": "a test" } }).to_string()
}

fn run(folder: &Path, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_who_is_believed_signed_is_refused_by_what_is_missing() {
    let author = Author::new();
    let (ours, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let source = author.push(OTHER, "policy").await;
    let trusting = || author.config(&[&ours]);
    let error = refused(trusting(), &source).await;
    assert!(error.contains("it is not signed") && error.contains("`sluice policy sign`"), "{error}");
    author.sign(&source, &other).await;
    let error = refused(trusting(), &source).await;
    assert!(error.contains("none of its signatures (1) is by a key in policy.trust.public_keys"), "{error}");

    // A good signature, of another plugin.
    let moved = author.push(NO_LATEST, "moved").await;
    author.sign(&moved, &ours).await;
    let signatures = author.repository(&format!("moved:sha256-{}.sig", moved.pin().unwrap().hex()));
    let (_, manifest) = signatures.root("it", OCI_MANIFEST).await.unwrap();
    let tag = format!("sha256-{}.sig", source.pin().unwrap().hex());
    let there = author.repository("moved");
    there.put_manifest(&tag, OCI_MANIFEST, manifest).await.unwrap();
    let copied = author.push(OTHER, "moved").await;
    assert_eq!(copied.pin(), source.pin());
    let error = refused(trusting(), &copied).await;
    assert!(
        error.contains(&format!("its signature is for another manifest, {}", moved.pin().unwrap())),
        "{error}"
    );

    let digest = source.pin().unwrap();
    put_signature(&author, "policy", digest, &payload_of(digest), "AAAA").await;
    let error = refused(trusting(), &source).await;
    assert!(error.contains("none of its signatures (1)"), "{error}");

    author.sign(&source, &ours).await;
    assert!(Harness::start(using(trusting(), &source)).await.is_ok(), "one good signature suffices");

    // Kept beside the plugin, a signature counts only as long as its key does.
    let error = refused(author.config(&[&SigningKey::generate().unwrap()]), &source).await;
    assert!(error.contains("none of its signatures (2)"), "{error}");
    let mut keyless = author.config(&[]);
    keyless.trust.required = Required::Registry;
    let error = refused(keyless, &source).await;
    assert!(error.contains("names no key"), "{error}");
}

/// As `cosign sign --key` does it: keys and signature by openssl, laid out by hand.
#[tokio::test(flavor = "multi_thread")]
async fn what_other_tools_signed_is_believed() {
    let author = Author::new();
    let folder = author.folder.path();
    run(folder, "openssl", &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "key.pem"]);
    run(folder, "openssl", &["ec", "-in", "key.pem", "-pubout", "-out", "key.pub"]);
    let source = author.push(NO_LATEST, "policy").await;
    let digest = source.pin().unwrap();
    std::fs::write(folder.join("payload"), payload_of(digest)).unwrap();
    run(folder, "openssl", &["dgst", "-sha256", "-sign", "key.pem", "-out", "signature", "payload"]);
    let signature = run(folder, "base64", &["-w0", "signature"]);
    put_signature(&author, "policy", digest, &payload_of(digest), &signature).await;

    let mut config = author.config(&[]);
    config.trust.public_keys = vec![folder.join("key.pub").display().to_string()];
    let harness = Harness::start(using(config, &source)).await.unwrap();
    assert_eq!(says_of_latest(&harness).await, Decision::Refuse);
    let key = SigningKey::read(&std::fs::read_to_string(folder.join("key.pem")).unwrap()).unwrap();
    assert!(!author.sign(&source, &key).await, "it is signed by that key");
}

/// What `cosign verify --key` does, by openssl and by hand.
#[tokio::test(flavor = "multi_thread")]
async fn other_tools_can_verify_what_we_signed() {
    let author = Author::new();
    let (folder, key) = (author.folder.path(), SigningKey::generate().unwrap());
    let source = author.push(OTHER, "policy").await;
    author.sign(&source, &key).await;
    let digest = source.pin().unwrap();
    let repository = author.repository(&format!("policy:sha256-{}.sig", digest.hex()));
    let (_, manifest) = repository.root("it", OCI_MANIFEST).await.unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["config"]["mediaType"], OCI_CONFIG);
    let layer = &manifest["layers"][0];
    assert_eq!(layer["mediaType"], PAYLOAD);
    let described: Descriptor = serde_json::from_value(layer.clone()).unwrap();
    let payload = repository.whole_blob("it", &described, 10_000).await.unwrap();
    let said: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(said["critical"]["image"]["docker-manifest-digest"], digest.to_string());
    assert_eq!(said["critical"]["type"], "cosign container image signature");
    let place = format!("{}/policy", author.registry.host());
    assert_eq!(said["critical"]["identity"]["docker-reference"], place);

    std::fs::write(folder.join("payload"), &payload).unwrap();
    std::fs::write(folder.join("key.pub"), key.public_pem().unwrap()).unwrap();
    std::fs::write(folder.join("base64"), layer["annotations"][ANNOTATION].as_str().unwrap()).unwrap();
    run(folder, "sh", &["-c", "base64 -d base64 > signature"]);
    let verified = run(
        folder,
        "openssl",
        &["dgst", "-sha256", "-verify", "key.pub", "-signature", "signature", "payload"],
    );
    assert_eq!(verified.trim(), "Verified OK");
}
